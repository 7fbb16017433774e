"""The tokens of those who may call: read from a file, checked, compared, and read again."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path

from ocps_jobmanager.errors import StartupError, shown
from ocps_jobmanager.private_files import PrivateFileError, read_private

#: Guessed in no time if shorter; 32 hexadecimal digits are as good as a token gets.
SHORTEST_TOKEN = 16
_LONGEST_TOKEN = 512
_LONGEST_NAME = 63
#: What may stand after ``Bearer`` (RFC 6750, section 2.1).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A token and whose it is. The token itself is not kept, so that nothing can show it."""

    name: str
    name_digest: bytes = field(repr=False)
    token_digest: bytes = field(repr=False)


class Tokens:
    """The tokens that are in force.

    The file has a line ``name:token`` for each. Blank lines and lines that begin with ``#`` count
    for nothing. A name may stand on several lines, so that a token can be changed without a gap.

    Parameters
    ----------
    path : pathlib.Path
        The file. Read here, so the constructor blocks.

    Raises
    ------
    StartupError
        The file can't be used: with a line for each thing that is wrong, none of which shows a
        token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _read(path)

    def reload(self) -> tuple[bool, str]:
        """Read the file again. Blocks. If it can't be used, the tokens from before stay in force.

        Returns
        -------
        tuple of bool and str
            Whether it could be used, and what is to be said in the log.
        """
        try:
            self._entries = _read(self._path)
        except StartupError as error:
            problems = str(error).replace("\n", " ")
            stay = f"The API tokens stay as they were ({len(self._entries)} in force)"
            return False, f"{stay}: {problems}"
        return True, f"The API tokens were read again ({len(self._entries)} in force)."

    def owner_of(self, token: bytes, name: bytes | None = None) -> str | None:
        """Give the name that a token belongs to; None if it is not in force.

        How long that takes tells nothing about a token but how many there are.

        Parameters
        ----------
        token : bytes
            As a caller shows it.
        name : bytes or None
            In UTF-8, if the caller says one: then it must be the token's own.
        """
        owner = None
        token_digest = _digest(token)
        name_digest = None if name is None else _digest(name)
        for entry in self._entries:
            matches = hmac.compare_digest(token_digest, entry.token_digest)
            matches &= name_digest is None or hmac.compare_digest(name_digest, entry.name_digest)
            if matches:
                owner = entry.name
        return owner


def _digest(secret: bytes) -> bytes:
    # Equally long for all, as a comparison in constant time demands.
    return hashlib.sha256(secret).digest()


def _read(path: Path) -> tuple[_Entry, ...]:
    subject = f'OCPS_API_TOKENS is "{shown(str(path), 200)}"'
    try:
        text = read_private(path).decode("utf-8-sig")
    except PrivateFileError as error:
        raise StartupError(f"{subject}: the file {error}.") from None
    except UnicodeDecodeError:
        raise StartupError(f"{subject}: the file must be UTF-8.") from None
    entries: dict[bytes, _Entry] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, token = line.strip().partition(":")
        entry = _Entry(
            name=name, name_digest=_digest(name.encode()), token_digest=_digest(token.encode())
        )
        why = _why_refused(name, token) if colon else "must be name:token"
        if why is None and entry.token_digest in entries:
            why = "has the token of an earlier line"
        if why is None:
            entries[entry.token_digest] = entry
        else:
            problems.append(f"{subject}: line {number} {why}.")
    if problems:
        raise StartupError("\n".join(problems))
    if not entries:
        raise StartupError(f"{subject}: the file must have a line name:token at least.")
    return tuple(entries.values())


def _why_refused(name: str, token: str) -> str | None:
    if not name or name != name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        return f"must have a name of 1 to {_LONGEST_NAME} printable characters before the colon"
    if not _TOKEN.fullmatch(token) or len(token) > _LONGEST_TOKEN:
        return (
            f"must have a token of at most {_LONGEST_TOKEN} letters, digits and . _ ~ + / - after "
            "the colon"
        )
    if len(token) < SHORTEST_TOKEN:
        return f"has a token of fewer than {SHORTEST_TOKEN} characters"
    return None
