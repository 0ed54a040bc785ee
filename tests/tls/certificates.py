"""The certificates of a test run: a CA, servers' and agents' certificates of it, and what must not be accepted."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization


@dataclass(frozen=True)
class Identity:
    """A certificate with its chain, and its key."""

    cert: str
    key: str
    serial: str

    @property
    def proxy(self) -> dict[str, Any]:
        """Settings of a proxy that shows it."""
        return {"tls_cert": self.cert, "tls_key": self.key}

    def spoil(self) -> None:
        """Makes the certificate's file useless."""
        Path(self.cert).write_text("rubbish")

    @property
    def client(self) -> dict[str, Any]:
        """Settings of an agent that shows it."""
        return {"client_cert": self.cert, "client_key": self.key}


class Certificates:
    """Made once for a run; `issue` makes more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self._other = trustme.CA()
        self.ca = self._anchors("ca.pem", self._authority)
        self.other_ca = self._anchors("other-ca.pem", self._other)
        self.server = self.issue("server", "localhost", "127.0.0.1")
        self.renewed = self.issue("renewed", "localhost", "127.0.0.1")
        self.wrong_name = self.issue("wrong-name", "other.example")
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.expired = self.issue(
            "expired", "localhost", "127.0.0.1", not_before=yesterday - timedelta(days=9), not_after=yesterday
        )
        self.agent = self.issue("agent", "svc.agents.example", common_name="svc")
        self.foreign_agent = self.issue("foreign-agent", "svc.agents.example", authority=self._other)
        self.expired_agent = self.issue(
            "expired-agent", "svc.agents.example", not_before=yesterday - timedelta(days=9), not_after=yesterday
        )

    def _anchors(self, name: str, authority: trustme.CA) -> str:
        path = self.folder / name
        authority.cert_pem.write_to_path(path)
        return str(path)

    def issue(self, name: str, *identities: str, authority: trustme.CA | None = None, **options: Any) -> Identity:
        leaf = (authority or self._authority).issue_cert(*identities, **options)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return Identity(str(cert), str(key), serial_of(cert.read_text()))

    def encrypted_key(self, identity: Identity, path: Path) -> str:
        """The key of an identity under a passphrase."""
        key = serialization.load_pem_private_key(Path(identity.key).read_bytes(), None)
        secret = serialization.BestAvailableEncryption(b"secret")
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
        return str(path)

    def context(self, *, ca: str | None = None, identity: Identity | None = None) -> ssl.SSLContext:
        """What a client uses that trusts the CA."""
        context = ssl.create_default_context(cafile=ca or self.ca)
        if identity is not None:
            context.load_cert_chain(identity.cert, identity.key)
        return context


def serial_of(pem: str) -> str:
    """What tells one certificate from another: the bytes of the first in a PEM text, as text."""
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)]).hex()
