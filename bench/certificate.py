"""A certificate for the run, by the openssl command: for 127.0.0.1 and localhost, and its own CA."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Fleet

INSTALL = "no openssl found to make a certificate; install it: apt-get install openssl"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of PEM files."""

    cert: str
    key: str


def make_certificate(fleet: Fleet) -> Certificate | None:
    """An ECDSA certificate that is good for a day; None where there is no openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    cert, key = Path(fleet.directory, "cert.pem"), Path(fleet.directory, "key.pem")
    argv = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    fleet.run("openssl", [*argv, "-out", str(cert), "-keyout", str(key)], timeout=20)
    return Certificate(str(cert), str(key))
