"""Makes a certificate authority and a server's certificate, for this machine's own names."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True)
class Certificates:
    """PEM files.

    Attributes
    ----------
    ca : pathlib.Path
        The authority's certificate, which a client is to believe.
    cert, key : pathlib.Path
        The server's.
    """

    ca: Path
    cert: Path
    key: Path

    def settings(self) -> dict[str, str]:
        """The settings of a server that uses them."""
        return {
            "API_PROTOCOL": "https",
            "OCPS_TLS_CERT": str(self.cert),
            "OCPS_TLS_KEY": str(self.key),
            "OCPS_TLS_CA": str(self.ca),
        }


def make_certificates(directory: Path) -> Certificates:
    """Make new ones; without the program for it the test is skipped."""
    if shutil.which("openssl") is None:
        pytest.skip("TLS IS NOT TESTED: openssl is not on the PATH")
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("authority", "server"):
        (directory / f"{name}.cnf").write_text(_CONFIG.format(name=f"tests' {name}"))
    made = Certificates(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    openssl(
        *("req", "-x509", *_NEW_KEY, "-config", "authority.cnf", "-extensions", "authority"),
        *("-days", "3", "-keyout", "ca.key", "-out", made.ca),
    )
    openssl("req", *_NEW_KEY, "-config", "server.cnf", "-keyout", made.key, "-out", "server.csr")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", made.ca, "-CAkey", "ca.key"),
        *("-set_serial", "1", "-days", "3", "-extfile", "server.cnf", "-extensions", "server"),
        *("-out", made.cert),
    )
    made.key.chmod(0o600)
    return made
