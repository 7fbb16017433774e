"""The token file: what is read, what is refused and how, and whose a token is."""

import os
from pathlib import Path

import pytest

from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.tokens import Tokens

CSC = "0123456789abcdef0123456789abcdef"
OPERATOR = "operators-token.of~16+/=="


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.touch(0o600)
    return path


def tokens(path: Path, text: str) -> Tokens:
    path.write_text(text, encoding="utf-8")
    return Tokens(path)


def refusal(path: Path, text: str) -> list[str]:
    with pytest.raises(StartupError) as refused:
        tokens(path, text)
    return str(refused.value).split("\n")


def test_a_token_has_the_name_before_it(path):
    found = tokens(path, f"csc:{CSC}\noperator:{OPERATOR}\n")
    assert found.owner_of(CSC.encode()) == "csc"
    assert found.owner_of(OPERATOR.encode()) == "operator"


@pytest.mark.parametrize(
    "wrong", [b"", CSC[:-1].encode(), CSC.upper().encode(), f"{CSC} ".encode(), b"\xff", b"csc"]
)
def test_what_is_not_exactly_a_token_is_nobodys(path, wrong):
    assert tokens(path, f"csc:{CSC}").owner_of(wrong) is None


def test_with_a_name_both_must_fit(path):
    found = tokens(path, f"csc:{CSC}\nJosé:{OPERATOR}\n")
    assert found.owner_of(CSC.encode(), b"csc") == "csc"
    assert found.owner_of(OPERATOR.encode(), "José".encode()) == "José"
    assert found.owner_of(OPERATOR.encode(), b"csc") is None
    assert found.owner_of(CSC.encode(), b"") is None


def test_a_name_may_have_two_tokens_while_they_are_changed(path):
    found = tokens(path, f"csc:{CSC}\ncsc:{OPERATOR}\n")
    assert found.owner_of(CSC.encode()) == found.owner_of(OPERATOR.encode()) == "csc"
    assert found.owner_of(CSC.encode(), b"csc") == "csc"


def test_comments_blank_lines_and_line_ends_do_not_count(path):
    text = f"\ufeff# who: what\r\n\r\n  # csc:x\n  csc:{CSC} \r\n\n"
    assert tokens(path, text).owner_of(CSC.encode()) == "csc"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (CSC, "must be name:token"),
        (f":{CSC}", "name of 1 to 63"),
        (f"{'n' * 64}:{CSC}", "name of 1 to 63"),
        (f"a\x07b:{CSC}", "printable"),
        (f"a\u2028b:{CSC}", "printable"),
        (f"csc :{CSC}", "printable"),
        ("csc:", "must have a token"),
        (f"csc: {CSC}", "letters, digits"),
        (f"csc:{CSC}\u00e9", "letters, digits"),
        (f"csc:{CSC}:x", "letters, digits"),
        (f"csc:{'x' * 513}", "at most 512"),
        ("csc:0123456789abcde", "fewer than 16"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_not_shown(path, line, words):
    (said,) = refusal(path, f"# first\nother:{OPERATOR}\n{line}\n")
    assert said.startswith(f'OCPS_API_TOKENS is "{path}": line 3 ')
    assert words in said
    assert CSC not in said
    assert "0123456789abcde" not in said


def test_all_that_is_wrong_is_told_at_once(path):
    lines = refusal(path, f"csc\n:{CSC}\nok:{OPERATOR}\ncsc:short\n")
    assert [line.split(": line ")[1].split()[0] for line in lines] == ["1", "2", "4"]


def test_one_token_for_two_is_refused(path):
    """Whose would it be?"""
    (said,) = refusal(path, f"a:{CSC}\nb:{CSC}\n")
    assert "line 2 has the token of an earlier line" in said


@pytest.mark.parametrize("text", ["", "\n# nobody\n"])
def test_a_file_without_tokens_is_refused(path, text):
    (said,) = refusal(path, text)
    assert "must have a line" in said


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_file_that_others_may_touch_is_refused(path, mode):
    path.write_text(f"csc:{CSC}\n")
    path.chmod(mode)
    (said,) = refusal(path, f"csc:{CSC}\n")
    assert f"{mode:04o}" in said
    assert "chmod 600" in said


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_for_its_owner_alone_is_read(path, mode):
    path.write_text(f"csc:{CSC}\n")
    path.chmod(mode)
    assert Tokens(path).owner_of(CSC.encode()) == "csc"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    (tmp_path / "binary").touch(0o600)
    (tmp_path / "binary").write_bytes(b"csc:\xff\xfe")
    (tmp_path / "huge").touch(0o600)
    (tmp_path / "huge").write_bytes(b"#" * (1024 * 1024 + 1))
    for name, words in [
        ("pipe", "regular file"),
        ("folder", "regular file"),
        ("none", "exists"),
        ("binary", "UTF-8"),
        ("huge", "larger"),
    ]:
        with pytest.raises(StartupError, match=f'^OCPS_API_TOKENS is "[^\n]*{words}[^\n]*$'):
            Tokens(tmp_path / name)


def test_read_again_the_file_counts_as_it_is_now(path):
    found = tokens(path, f"csc:{CSC}\n")
    path.write_text(f"operator:{OPERATOR}\n")
    assert found.owner_of(OPERATOR.encode()) is None
    assert found.reload() == (True, "The API tokens were read again (1 in force).")
    assert found.owner_of(OPERATOR.encode()) == "operator"
    assert found.owner_of(CSC.encode()) is None


@pytest.mark.parametrize("text", ["", f"csc:short\n:{OPERATOR}\n", None])
def test_a_bad_new_file_changes_nothing_and_is_told_in_one_line(path, text):
    found = tokens(path, f"csc:{CSC}\n")
    if text is None:
        path.chmod(0o644)
    else:
        path.write_text(text)
    well, said = found.reload()
    assert not well
    assert said.startswith('The API tokens stay as they were (1 in force): OCPS_API_TOKENS is "')
    assert "\n" not in said
    assert OPERATOR not in said
    assert found.owner_of(CSC.encode()) == "csc"


def test_nothing_of_the_object_shows_a_token(path):
    found = tokens(path, f"csc:{CSC}\n")
    assert CSC not in repr(found) + repr(vars(found))
