"""TLS: the server's certificate and key, and the authorities that its monitors believe."""

import ssl
from pathlib import Path

from ocps_jobmanager.errors import StartupError, shown
from ocps_jobmanager.private_files import PrivateFileError, read_private


class _EncryptedKeyError(Exception):
    """The key asks for a password, which nobody is there to type."""


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What the server speaks TLS with: version 1.2 or later. Blocks.

    Parameters
    ----------
    cert : pathlib.Path
        PEM: the server's certificate, then those that lead from it to the authority.
    key : pathlib.Path
        PEM: its key, not encrypted, for its owner alone.

    Raises
    ------
    StartupError
        A file can't be used, or they don't belong together. One line.
    """
    cert_is = f'OCPS_TLS_CERT is "{shown(str(cert), 200)}"'
    key_is = f'OCPS_TLS_KEY is "{shown(str(key), 200)}"'
    try:
        read_private(key)
    except PrivateFileError as error:
        raise StartupError(f"{key_is}: the file {error}.") from None
    _load_authorities(cert, cert_is)  # otherwise OpenSSL doesn't say which file is at fault
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def refuse() -> str:
        raise _EncryptedKeyError

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except _EncryptedKeyError:
        raise StartupError(f"{key_is}: the key must not be encrypted.") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartupError(f"{key_is}: the key must be that of the certificate.") from None
        raise StartupError(f"{key_is}: the file must be a key in PEM.") from None
    except OSError as error:
        raise StartupError(f"{cert_is}: the file can't be read ({error.strerror}).") from None
    return context


def check_authorities(ca: Path) -> None:
    """See that the authorities that monitors are to believe can be had. Blocks.

    Raises
    ------
    StartupError
        One line.
    """
    _load_authorities(ca, f'OCPS_TLS_CA is "{shown(str(ca), 200)}"')


def _load_authorities(path: Path, subject: str) -> None:
    try:
        if not path.is_file():
            raise StartupError(f"{subject}: it must be a file that exists.")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise StartupError(f"{subject}: the file must be a certificate in PEM.") from None
    except OSError as error:
        raise StartupError(f"{subject}: the file can't be read ({error.strerror}).") from None
