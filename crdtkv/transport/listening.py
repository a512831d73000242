"""The port of a node: who connects to make a single call of ours gets a stream of ours, everybody else gets gRPC's server.

Which of the two it is stands in the settings with which every HTTP/2 connection begins (`http2.SINGLE_CALL`), before anything was asked. A
connection of the other kind is passed on, byte by byte, to the gRPC server, which listens on a Unix socket that only this process's user
can reach; so any gRPC client can call any method here, and those of this package have the shorter way. TLS ends at the port for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from crdtkv.transport import MESSAGE_BYTES_MAX, address_of
from crdtkv.transport.answering import Method, ServerStream
from crdtkv.transport.http2 import FRAME, PREFACE, SETTING, SETTINGS, SINGLE_CALL, read_buffer

GREETING_S: Final = 20.0
"""How long a connection may take to begin."""
_SETTINGS_BYTES_MAX: Final = 16_384
_BACKLOG: Final = 512
_HIGH_WATER: Final = 256 << 10
"""Bytes on their way in one direction of a connection that is passed on before its sender has to wait."""


class Listener:
    """One port. `open`, `start`, then `close`; each once, in one event loop.

    Args:
        methods: those that have the shorter way, by path.
        onward: the path of the gRPC server's Unix socket.
        tls: who we are, and whom we trust; None: plain text.
    """

    def __init__(
        self, methods: Mapping[bytes, Method], onward: str, *, tls: ssl.SSLContext | None = None, message_bytes_max: int = MESSAGE_BYTES_MAX
    ) -> None:
        self.methods = methods
        self.onward = onward
        self.message_bytes_max = message_bytes_max
        self.streams: set[ServerStream] = set()
        """Connections with a call of their own."""
        self.passed_on: set[_Relay] = set()
        """Connections that the gRPC server serves."""
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._newcomers: set[_Newcomer] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._one_left = asyncio.Event()

    def open(self, host: str, port: int) -> int:
        """Take the port, on all addresses of the host; nobody is accepted yet. Returns the port, which the system chose if it was 0.

        Raises:
            OSError: it cannot be had.
        """
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
                try:
                    listening = socket.socket(family, kind, protocol)
                except OSError:
                    continue  # a family that this machine does not have
                self._sockets.append(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    only = host != "::"  # which means any address, also of the older kind
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
                try:
                    listening.bind((address[0], port, *address[2:]))
                except OSError as e:
                    if e.errno != errno.EADDRNOTAVAIL or len(self._sockets) == 1:
                        raise
                    self._sockets.pop().close()  # an address that is not there, of a host that has another
                    continue
                listening.setblocking(False)
                port = listening.getsockname()[1]
        except OSError:
            self._close_sockets()
            raise
        return port

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    async def start(self) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            server = await loop.create_server(lambda: _Newcomer(self), sock=listening, ssl=self._tls, backlog=_BACKLOG)
            self._servers.append(server)

    def pass_on(self, transport: Any, begun: bytes) -> None:
        """Let the gRPC server serve a connection of which `begun` was read."""
        task = asyncio.get_running_loop().create_task(self._pass_on(transport, begun))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass_on(self, transport: Any, begun: bytes) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: _Relay(self, transport, begun), self.onward)
        except (OSError, asyncio.CancelledError):
            transport.abort()

    def newcomer(self, one: _Newcomer, here: bool) -> None:
        """A connection has come that has not said what it wants, or has gone on."""
        (self._newcomers.add if here else self._newcomers.discard)(one)

    def left(self, relay: _Relay) -> None:
        """A connection that was passed on is closed."""
        self.passed_on.discard(relay)
        self._one_left.set()

    def stop_accepting(self) -> None:
        """Take no more connections; those that are there go on."""
        for server in self._servers:
            server.close()
        self._close_sockets()

    async def close(self) -> None:
        """End all that is left, and the port."""
        self.stop_accepting()
        for one in list(self._newcomers):
            one.abort()
        for task in list(self._passing):
            task.cancel()
        streams = list(self.streams)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*(stream.closed() for stream in streams))
        for relay in list(self.passed_on):
            relay.abort()
        while self.passed_on:
            self._one_left.clear()
            await self._one_left.wait()
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await server.wait_closed()


class _Newcomer(asyncio.BufferedProtocol):
    """A connection until its first settings have come."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._incoming = read_buffer()
        self._transport: Any = None
        self._begun = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._listener.newcomer(self, True)
        self._timer = asyncio.get_running_loop().call_later(GREETING_S, self.abort)

    def abort(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._listener.newcomer(self, False)
        if self._timer is not None:
            self._timer.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        self._begun += bytes(self._incoming[:nbytes])
        is_ours = _is_single_call(self._begun)
        if is_ours is None:
            return
        self._leave()
        listener, transport = self._listener, self._transport
        if not is_ours:
            transport.pause_reading()
            listener.pass_on(transport, self._begun)
            return
        stream = ServerStream(listener.methods, _address(transport), listener.message_bytes_max)
        listener.streams.add(stream)
        stream.gone.add_done_callback(lambda _: listener.streams.discard(stream))
        transport.set_protocol(stream)
        stream.connection_made(transport)
        stream.take(self._begun[len(PREFACE) :])


def _is_single_call(begun: bytes) -> bool | None:
    """Whether a connection that begins so says that it is for a single call; None: it has not said enough."""
    head = begun[: len(PREFACE)]
    if not PREFACE.startswith(head):
        return False
    settings = begun[len(PREFACE) :]
    if len(settings) < FRAME.size:
        return None
    word, _, _ = FRAME.unpack_from(settings)
    size = word >> 8
    if word & 0xFF != SETTINGS or size > _SETTINGS_BYTES_MAX or size % SETTING.size:
        return False
    if len(settings) < FRAME.size + size:
        return None
    return (SINGLE_CALL, 1) in SETTING.iter_unpack(settings[FRAME.size : FRAME.size + size])


def _address(transport: Any) -> str:
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "?"
    return address_of(*name[:2])


class _Half(asyncio.BufferedProtocol):
    """One side of a connection that is passed on: what it reads is written to the other."""

    def __init__(self) -> None:
        self._incoming = read_buffer()
        self.other: Any = None  # the other side's transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        self.other.write(bytes(self._incoming[:nbytes]))

    def pause_writing(self) -> None:
        if not self.other.is_closing():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.is_closing():
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.other.close()  # after what is on its way


class _Relay(_Half):
    """The gRPC server's side of such a connection, which brings the caller's with it.

    Args:
        caller: its connection, which is not read at present.
        begun: what was read of it.
    """

    def __init__(self, listener: Listener, caller: Any, begun: bytes) -> None:
        super().__init__()
        self._listener = listener
        self._transport: Any = None
        self.other = caller
        self._begun = begun

    def connection_made(self, transport: Any) -> None:
        caller = self.other
        self._transport = transport
        self._listener.passed_on.add(self)
        if caller.is_closing():
            transport.close()
            return
        half = _Half()
        half.other = transport
        for one in (caller, transport):
            one.set_write_buffer_limits(_HIGH_WATER)
        caller.set_protocol(half)
        transport.write(self._begun)
        caller.resume_reading()

    def abort(self) -> None:
        """Close both sides."""
        self.other.abort()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.left(self)
        super().connection_lost(exc)
