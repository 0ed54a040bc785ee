"""TLS contexts of the program's own for an agent's dials (`ssl_context`), and TLS through a forward proxy."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import backstream
from backstream.certificates import server_context
from tests.forward import forward
from tests.rig import ID, ok_app, request, tunnel, until
from tests.tls.wire import TlsWire


def agent_for(pair, *, ssl_context=None, **settings) -> backstream.Agent:
    url = f"wss://localhost:{pair.address[1]}/ws"
    settings = {"reconnect_min": 0.02, "reconnect_max": 0.1, "refused_max": 0.1} | settings
    made = backstream.AgentSettings(proxy_url=url, client_id=ID, **settings)
    return backstream.Agent(made, ok_app, ssl_context=ssl_context)


async def test_a_context_is_used_as_it_is(certificates, caplog) -> None:
    async with tunnel(agents=0, proxy=certificates.server.proxy) as pair:
        async with agent_for(pair, ssl_context=certificates.context()):
            await pair.connected()
        async with agent_for(pair, ssl_context=certificates.context(ca=certificates.other_ca)) as agent:
            await until(lambda: "a CA that is not trusted here" in caplog.text)
            assert not agent.connected


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_function_gives_each_dial_its_certificate(certificates, asynchronous) -> None:
    """As a program does whose certificates live for minutes."""
    identities = [certificates.issue(f"short-{asynchronous}-{number}", "svc.agents.example") for number in range(3)]
    given, shown = [], []

    def context() -> ssl.SSLContext:
        given.append(identities[len(given)])
        return certificates.context(identity=given[-1])

    async def later() -> ssl.SSLContext:
        await asyncio.sleep(0)
        return context()

    def authorize(handshake: backstream.Handshake) -> bool:
        shown.append(handshake.certificate["serialNumber"])
        return True

    proxy = certificates.server.proxy | {"tls_client_ca": certificates.ca}
    async with tunnel(agents=0, proxy=proxy, authorize=authorize) as pair:
        async with agent_for(pair, ssl_context=later if asynchronous else context):
            for number in range(1, 4):
                await until(lambda number=number: len(shown) == number and len(pair.proxy.agents) == 1)
                if number < 3:
                    next(iter(pair.proxy.agents)).abort("for the test")
        assert len(set(shown)) == 3


async def test_a_function_that_fails_is_a_failed_dial(certificates, caplog) -> None:
    failures = 0

    def context() -> ssl.SSLContext:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise RuntimeError("on purpose")
        return certificates.context()

    async with tunnel(agents=0, proxy=certificates.server.proxy) as pair, agent_for(pair, ssl_context=context):
        await pair.connected()
    assert caplog.text.count("there is no TLS context: on purpose; next try in") == 2
    assert caplog.text.count("Traceback") == 2


async def test_a_function_that_hangs_costs_the_connect_timeout(certificates, caplog) -> None:
    async def context() -> ssl.SSLContext:
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        tunnel(agents=0, proxy=certificates.server.proxy) as pair,
        agent_for(pair, ssl_context=context, connect_timeout=0.1),
    ):
        await until(lambda: caplog.text.count("within 0.1 s") == 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"proxy_url": "ws://localhost/ws"}, "wss://"),
        ({"proxy_url": "wss://localhost/ws", "ca": "a"}, "in place of ca"),
        ({"proxy_url": "wss://localhost/ws", "client_cert": "a", "client_key": "b"}, "in place of ca"),
    ],
)
def test_a_context_that_would_not_be_used_or_used_up_is_refused(settings, words) -> None:
    made = backstream.AgentSettings(client_id=ID, **settings)
    with pytest.raises(backstream.ConfigurationError, match=words):
        backstream.Agent(made, ok_app, ssl_context=ssl.create_default_context())


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_tls_goes_through_a_forward_proxy_to_the_end(certificates, scheme, caplog) -> None:
    with forward("user:secret") as through:
        via = through.url(scheme, "user:secret@")
        async with tunnel(agents=0, proxy=certificates.server.proxy) as pair:
            async with agent_for(pair, via=via, ca=certificates.ca):
                await pair.connected()
                await through.passed(str(pair.address[1]))
                async with await TlsWire.secure(pair.address, certificates.context()) as wire:
                    await wire.send(request())
                    assert (await wire.answer()).body == b"ok"
            async with agent_for(pair, via=via, ca=certificates.other_ca):
                await until(lambda: "a CA that is not trusted here" in caplog.text)


def test_a_certificate_and_a_key_of_different_kinds_are_told_from_files_that_are_none(certificates, tmp_path) -> None:
    """OpenSSL has another reason for these than for two of one kind."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for other in (str(path), certificates.renewed.key):
        with pytest.raises(backstream.ConfigurationError) as caught:
            server_context(certificates.server.cert, other)
        assert str(caught.value) == f"tls_key: {other} is not the key of the certificate in {certificates.server.cert}"
