"""What became of a run, for people and for programs."""

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.verdict import Verdict


@dataclass
class Report:
    """What became of a run."""

    verdict: Verdict
    counts: Counter[str]
    answers: dict[int, int]
    seconds: float
    missed: list[str] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict.is_well

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "is_well": self.is_well,
            "seconds": round(self.seconds),
            "counts": dict(sorted(self.counts.items())),
            "states": dict(sorted(self.verdict.counts.items())),
            "answers": dict(sorted(self.answers.items())),
            "wrong": self.verdict.wrong,
            "not_reached": self.missed,
        }

    def text(self) -> str:
        """For people."""
        lines = [f"{count:7d} {what}" for what, count in sorted(self.counts.items())]
        lines += [f"{count:7d} jobs {what}" for what, count in sorted(self.verdict.counts.items())]
        told = ", ".join(f"{count} x {status}" for status, count in sorted(self.answers.items()))
        lines += [f"answers: {told}", f"{self.seconds:.0f} s"]
        if self.missed:
            lines.append(f"not reached, killed at any instant instead: {', '.join(self.missed)}")
        for kind, sentences in self.verdict.wrong.items():
            lines.append(f"{len(sentences):7d} {kind}")
            lines += [f"          {sentence}" for sentence in sentences[:20]]
        return "\n".join(lines)
