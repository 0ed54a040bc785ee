"""TLS as files and words: SSL contexts from PEM files, and what a failed handshake means in one line.

TLS 1.2 and newer, verification always on, the host name among it. A file that can't be used raises
`ConfigurationError`, which names it.
"""

from __future__ import annotations

import os
import ssl
from typing import Final, NoReturn

from backstream.errors import ConfigurationError

__all__ = ["client_context", "describe", "is_refusal", "server_context", "stamp"]

ALPN: Final = ["http/1.1"]


def server_context(cert: str, key: str, client_ca: str | None = None) -> ssl.SSLContext:
    """A listener's context.

    cert: its certificate and those up to its anchor; key: its private key; client_ca: anchors that the certificates
    of whoever connects must lead to (mutual TLS). All are paths of PEM files.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_identity(context, "tls_cert", cert, "tls_key", key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_anchors(context, "tls_client_ca", client_ca)
    return context


def client_context(
    ca: str | None = None, cert: str | None = None, key: str | None = None, *, ca_name: str = "ca"
) -> ssl.SSLContext:
    """The context of whoever dials.

    ca: trust anchors instead of the system's; cert and key: its own certificate and private key, for servers that ask
    for one. All are paths of PEM files. ca_name: the setting that an error names.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and host name
    _harden(context)
    context.hostname_checks_common_name = False  # RFC 9525 §2: only the names made for it
    if ca is None:
        context.load_default_certs()
    else:
        _load_anchors(context, ca_name, ca)
    if cert is not None and key is not None:
        _load_identity(context, "client_cert", cert, "client_key", key)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation (of TLS 1.2) lets a peer make us work for nothing.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # An intermediate CA in a file of anchors is one; newer Pythons do so by default.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(ALPN)


def _load_identity(context: ssl.SSLContext, cert_name: str, cert: str, key_name: str, key: str) -> None:
    _readable(cert_name, cert)
    _readable(key_name, key)

    def refuse() -> NoReturn:
        # Otherwise OpenSSL asks for the passphrase on the terminal, and everything waits.
        raise ConfigurationError(f"{key_name}: {key} is encrypted; a key without a passphrase is needed")

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        # The latter where they are of different kinds, such as RSA and EC.
        if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise ConfigurationError(f"{key_name}: {key} is not the key of the certificate in {cert}") from None
        raise ConfigurationError(
            f"{cert_name}, {key_name}: {cert} and {key} are not a certificate and a key in PEM"
            + (f" ({error.reason.replace('_', ' ').lower()})" if error.reason else "")
        ) from None


def _load_anchors(context: ssl.SSLContext, name: str, path: str) -> None:
    _readable(name, path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ConfigurationError(f"{name}: {path} holds no certificates in PEM") from None


def _readable(name: str, path: str) -> None:
    """`ssl` does not say which file it is that can't be read."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot read {path}: {error.strerror}") from None


def stamp(*paths: str | None) -> tuple[tuple[int, int] | None, ...]:
    """Something that changes when one of the files does."""
    found: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            status = os.stat(path) if path is not None else None
        except OSError:
            status = None
        found.append((status.st_ino, status.st_mtime_ns) if status is not None else None)
    return tuple(found)


# X509_V_ERR_…, of OpenSSL's x509_vfy.h
_EXPIRED: Final = 10
_NOT_YET: Final = 9
_WRONG_NAME: Final = (62, 64)
_UNKNOWN_CA: Final = (2, 18, 19, 20, 21)

_ALERTS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate, and none was given",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the CA of the client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that the client certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that the client certificate is revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses the client certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses the client certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it refuses the client certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refuses the handshake (no cipher in common, or no client certificate given)",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no version of TLS in common (1.2 or newer is needed)",
    "UNSUPPORTED_PROTOCOL": "no version of TLS in common (1.2 or newer is needed)",
    "TLSV1_UNRECOGNIZED_NAME": "it does not know this host name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port",
    "HTTP_REQUEST": "it does not speak TLS on this port",
    "PACKET_LENGTH_TOO_LONG": "it does not speak TLS on this port",
    "RECORD_LAYER_FAILURE": "it does not speak TLS on this port",
}


def describe(error: BaseException) -> str:
    """Why a TLS connection to a server failed, in a few words without its name."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        if code == _EXPIRED:
            return "its certificate has expired"
        if code == _NOT_YET:
            return "its certificate is not valid yet"
        if code in _WRONG_NAME:
            return "its certificate is for another host name"
        if code in _UNKNOWN_CA:
            return "its certificate comes from a CA that is not trusted here"
        return f"its certificate is not valid ({error.verify_message})"
    reason = getattr(error, "reason", None)
    if isinstance(reason, str) and reason:
        return _ALERTS.get(reason) or f"TLS failed ({reason.replace('_', ' ').lower()})"
    return str(error)


def is_refusal(error: BaseException) -> bool:
    """Whether trying again soon is pointless: somebody has to mend a certificate or a setting first."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
