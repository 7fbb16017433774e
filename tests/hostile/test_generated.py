"""A short run of requests that are made up; `bash run_tests.sh hostile` is the long one."""

from pathlib import Path

import pytest

from tests.hostile.generated import run


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [False, True], ids=["without keys", "with keys"])
def test_whatever_is_asked_the_answer_is_as_described(tmp_path: Path, keys: bool) -> None:
    figures = run(tmp_path, examples=25, seed=1, keys=keys)
    assert figures.requests > 300
    assert figures.accepted > 5
    assert {200, 400, 401, 404, 405} <= set(figures.answers)
