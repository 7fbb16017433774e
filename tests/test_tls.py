"""TLS: what the server speaks, what it refuses to start with, and that its monitors get through."""

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.tls import check_authorities, server_context
from tests.certificates import Certificates, make_certificates
from tests.server import ServerProcess, wait_until

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(made: Certificates, tmp_path: Path) -> Certificates:
    """A copy of one's own."""
    copies = Certificates(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    for copy, original in ((copies.ca, made.ca), (copies.cert, made.cert), (copies.key, made.key)):
        copy.touch(0o600)
        copy.write_bytes(original.read_bytes())
    return copies


def refusal(tls: Certificates) -> str:
    with pytest.raises(StartupError) as refused:
        server_context(tls.cert, tls.key)
    assert "\n" not in str(refused.value)
    assert "BEGIN" not in str(refused.value)
    return str(refused.value)


def test_nothing_older_than_1_2_is_spoken(tls: Certificates) -> None:
    assert server_context(tls.cert, tls.key).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_may_read_is_refused(tls: Certificates, mode: int) -> None:
    tls.key.chmod(mode)
    said = refusal(tls)
    assert said.startswith(f'OCPS_TLS_KEY is "{tls.key}": ')
    assert f"{mode:04o}" in said


@pytest.mark.parametrize(("which", "name"), [("cert", "OCPS_TLS_CERT"), ("key", "OCPS_TLS_KEY")])
@pytest.mark.parametrize("content", [None, b"", b"not PEM", b"\xff\x00" * 100, "folder"])
def test_what_is_no_pem_is_refused_by_the_name_of_its_setting(
    tls: Certificates, which: str, name: str, content: bytes | str | None
) -> None:
    path = getattr(tls, which)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.unlink()
        if content is not None:
            path.mkdir(0o700)
    assert refusal(tls).startswith(f'{name} is "{path}": ')


def test_the_other_file_in_the_place_of_one_is_refused(tls: Certificates) -> None:
    swapped = Certificates(tls.ca, tls.key, tls.cert)
    assert refusal(swapped).startswith("OCPS_TLS_CERT is ")
    tls.key.write_bytes(tls.cert.read_bytes())
    assert refusal(tls).startswith("OCPS_TLS_KEY is ")


def test_the_key_of_another_certificate_is_refused(tls: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    said = refusal(Certificates(tls.ca, tls.cert, other.key))
    assert said.startswith(f'OCPS_TLS_KEY is "{other.key}": ')
    assert "certificate" in said


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(tls: Certificates) -> None:
    encrypted = tls.key.with_name("encrypted.pem")
    subprocess.run(
        ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", tls.key, "-out", encrypted],
        check=True,
        capture_output=True,
    )
    encrypted.chmod(0o600)
    assert "must not be encrypted" in refusal(Certificates(tls.ca, tls.cert, encrypted))


def test_authorities_that_can_not_be_had_are_refused(tls: Certificates) -> None:
    check_authorities(tls.ca)
    for path in (tls.ca.with_name("none"), tls.key, tls.ca.parent):
        with pytest.raises(StartupError, match=r"^OCPS_TLS_CA is [^\n]*$"):
            check_authorities(path)


@pytest.fixture
def server(
    tls: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServerProcess]:
    """With TLS and tokens."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.ca))
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"csc:{TOKEN}\n")
    environ = {**tls.settings(), "OCPS_API_TOKENS": str(tokens)}
    with ServerProcess(tmp_path, environ, user_info=f"csc:{TOKEN}@") as server:
        yield server


def test_a_job_from_post_to_end_over_tls(server: ServerProcess) -> None:
    """The monitor calls back over it, too, and so does the server itself."""
    job_id = server.submit()
    server.data_arrive(job_id)
    job = server.ended(job_id)
    assert (job["exit_code"], job["owner"]) == (0, "csc")
    wait_until(lambda: server.ready()[0] == 200, "the server can call itself")


def test_who_does_not_believe_the_authority_is_not_served(server: ServerProcess) -> None:
    root = server.root.replace(server.user_info, "")
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{root}/healthz", timeout=10, verify=requests.certs.where())
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{root}/healthz".replace("https", "http"), timeout=10)
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("setting", "content"),
    [("OCPS_TLS_KEY", b"no key"), ("OCPS_TLS_CERT", b"none"), ("OCPS_TLS_CA", None)],
)
def test_bad_files_stop_the_start_with_one_line(
    tls: Certificates, tmp_path: Path, setting: str, content: bytes | None
) -> None:
    environ = tls.settings()
    path = Path(environ[setting])
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    server = ServerProcess(tmp_path, environ)
    assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert line.startswith(f'{setting} is "{path}": ')


def test_urls_that_do_not_fit_are_remarked_on(tls: Certificates, tmp_path: Path) -> None:
    """`API_PROTOCOL` makes URLs and nothing else."""
    server = ServerProcess(tmp_path, {**tls.settings(), "API_PROTOCOL": "http"})
    process = server.spawn()
    try:
        wait_until(lambda: "API_PROTOCOL is http" in server.log(), "the server says so")
    finally:
        process.terminate()
        process.wait(60)
