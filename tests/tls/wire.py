"""A raw wire under TLS: the test decides about every record, and what it does not read stays unread."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from tests.rig import LIMIT, Ended, Wire


class TlsWire(Wire):
    """`ended` is "fin" after close_notify, "cut" after an end without one, "reset", or an alert's name."""

    tls: ssl.SSLObject

    @classmethod
    async def secure(
        cls,
        address: tuple[str, int],
        context: ssl.SSLContext,
        *,
        hostname: str = "localhost",
        receive_buffer: int = 0,
    ) -> TlsWire:
        """A connection whose handshake is done. Raises ssl.SSLError or Ended when it fails."""
        wire = await cls.connect(address, receive_buffer=receive_buffer)
        assert isinstance(wire, TlsWire)
        wire.begin(context, hostname)
        try:
            await wire.shake()
        except BaseException:
            wire.close()
            raise
        return wire

    def begin(self, context: ssl.SSLContext, hostname: str) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=hostname)
        self.unsent = b""

    async def shake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError:
                await self._flush()
                raise
            await self._more()

    async def _flush(self) -> None:
        data = self.unsent + self.outgoing.read()
        self.unsent = b""
        if data:
            await super().send(data)

    async def _more(self, seconds: float = LIMIT) -> None:
        try:
            async with asyncio.timeout(seconds):
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionError:
            self.ended = "reset"
            raise Ended("reset") from None
        if not data:
            self.ended = "cut"
            raise Ended("cut")
        self.incoming.write(data)

    async def fill(self, seconds: float = LIMIT) -> None:
        if self.ended:
            raise Ended(self.ended)
        while True:
            try:
                data = self.tls.read(65536)
            except ssl.SSLWantReadError:
                await self._more(seconds)
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as error:
                self.ended = error.reason or str(error)
                raise Ended(self.ended) from None
            if not data:
                self.ended = "fin"
                raise Ended("fin")
            self.buffer += data
            return

    async def send(self, data: bytes, *, seconds: float = LIMIT) -> None:
        if data:
            self.tls.write(data)
        async with asyncio.timeout(seconds):
            await self._flush()

    def send_now(self, data: bytes) -> int:
        """All of `data` or 0: while the kernel has not taken what was encrypted before, nothing more is."""
        if not self.unsent:
            self.tls.write(data)
            self.unsent = self.outgoing.read()
            taken = len(data)
        else:
            taken = 0
        self.unsent = self.unsent[super().send_now(self.unsent) :]
        return taken

    def half_close(self) -> None:
        """Sends close_notify; the TCP connection stays open in both directions."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        super().send_now(self.outgoing.read())

    def half_close_socket(self) -> None:
        """Ends the TCP connection's direction without a word of TLS."""
        super().half_close()

    def certificate(self) -> str:
        """The server's certificate, as `Identity.serial` has it."""
        found: Any = self.tls.getpeercert(binary_form=True)
        assert found
        return str(found.hex())
