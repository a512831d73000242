"""The peer-stream protocol: what a replication session needs of a network, and the in-process network beside it.

A stream carries whole messages both ways, in order, each at most once, until either side closes it or it breaks; then
both sides start anew with a hello, so a stream promises nothing beyond its own life. It knows nothing of what the bytes
mean. `send` returns when the network has taken the message: one message under way at a time is the back-pressure, and
what gathers meanwhile travels next.

`InProcessNetwork` joins nodes of one event loop by name: for tests, and for several replicas in one program. Closing one
end is seen by the other after it has read what was sent; `cut` breaks streams the way a lost connection does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from crdtkv.errors import RegionUnavailableError

IN_PROCESS_BYTES_MAX: Final = 4 << 20
"""Bytes on their way in one direction of an in-process stream before `send` waits: as a socket's buffers would."""


class PeerStream(Protocol):
    """One end of an open stream."""

    @property
    def address(self) -> str:
        """The other end, for people."""

    @property
    def dialled(self) -> bool:
        """This end opened the stream."""

    async def send(self, data: bytes) -> None:
        """Hand over one message. One caller at a time.

        Raises:
            RegionUnavailableError: the stream is closed or broken; whether the message arrived is not known.
        """

    async def receive(self) -> bytes | None:
        """The next message; None once the other end has closed. One caller at a time.

        Raises:
            RegionUnavailableError: the stream broke.
        """

    def send_now(self, data: bytes) -> bool:
        """Hand over one message if that takes no waiting, while nobody waits in `send`; False: it is to be sent by that."""

    def take(self) -> bytes | None:
        """The next message, if one has come and need not be waited for; what is not taken comes by `receive`."""

    def on_arrival(self, look: Callable[[], None]) -> None:
        """Have `look` called, in the event loop, whenever there may be something to `take`; a stream that never has any calls nobody."""

    def close(self) -> None:
        """End the stream from this side; idempotent, at once.

        A `receive` called after it returns None. One that is waiting may go on waiting: its owner cancels it.
        """


Accept = Callable[[PeerStream], Awaitable[None]]
"""Serves one accepted stream; the stream ends when it returns."""


class Transport(Protocol):
    """Opens streams to other nodes."""

    async def dial(self, address: str, *, timeout_s: float) -> PeerStream:
        """Open a stream; raises `RegionUnavailableError` naming the address and why."""

    async def close(self) -> None:
        """Give up everything that `dial` holds."""


class _Pipe:
    """One direction: a bounded queue of messages."""

    __slots__ = ("_bytes", "_changed", "_queue", "broken", "closed")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self.closed = False
        self.broken = False

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def put(self, data: bytes) -> None:
        # A message larger than the whole bound still passes when nothing is before it.
        while self._queue and self._bytes + len(data) > IN_PROCESS_BYTES_MAX and not self.closed:
            await self._changed.wait()
        if self.closed:
            raise RegionUnavailableError("the stream is closed")
        self._queue.append(data)
        self._bytes += len(data)
        self._notify()

    async def get(self) -> bytes | None:
        while not self._queue:
            if self.broken:
                raise RegionUnavailableError("the connection was lost")
            if self.closed:
                return None
            await self._changed.wait()
        data = self._queue.popleft()
        self._bytes -= len(data)
        self._notify()
        return data

    def close(self, *, broken: bool = False) -> None:
        self.closed = True
        if broken:
            self.broken = True
            self._queue.clear()
            self._bytes = 0
        self._notify()


class InProcessStream:
    """One end of a stream between two nodes of one event loop."""

    def __init__(self, address: str, outgoing: _Pipe, incoming: _Pipe, *, dialled: bool) -> None:
        self.address = address
        self.dialled = dialled
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, data: bytes) -> None:
        await self._outgoing.put(data)

    async def receive(self) -> bytes | None:
        return await self._incoming.get()

    def send_now(self, data: bytes) -> bool:
        return False

    def take(self) -> bytes | None:
        return None

    def on_arrival(self, look: Callable[[], None]) -> None:
        return None

    def close(self) -> None:
        self._outgoing.close()
        self._incoming.close()

    def cut(self) -> None:
        """Lose the connection: both ends fail, what was on its way is lost."""
        self._outgoing.close(broken=True)
        self._incoming.close(broken=True)


class InProcessNetwork:
    """Nodes by address. `dial` needs a listener there; a partitioned pair of addresses cannot dial and is cut."""

    def __init__(self) -> None:
        self._listeners: dict[str, Accept] = {}
        self._streams: dict[InProcessStream, frozenset[str]] = {}
        self._partitioned: set[frozenset[str]] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def transport(self, address: str) -> InProcessTransport:
        """The network as the node at `address` sees it."""
        return InProcessTransport(self, address)

    def listen(self, address: str, accept: Accept) -> None:
        """Serve streams dialled to `address` with `accept`."""
        self._listeners[address] = accept

    def unlisten(self, address: str) -> None:
        """Take no more streams at `address`; those that are open stay."""
        self._listeners.pop(address, None)

    def partition(self, a: str, b: str) -> None:
        """Cut all streams between two addresses and refuse new ones, until `heal`."""
        pair = frozenset((a, b))
        self._partitioned.add(pair)
        for stream, ends in list(self._streams.items()):
            if ends == pair:
                stream.cut()

    def heal(self, a: str, b: str) -> None:
        """Let two addresses reach each other again."""
        self._partitioned.discard(frozenset((a, b)))

    def connect(self, caller: str, address: str) -> InProcessStream:
        """Open a stream from `caller` to `address`; `accept` of the listener runs as a task of its own."""
        accept = self._listeners.get(address)
        pair = frozenset((caller, address))
        if accept is None or pair in self._partitioned:
            raise RegionUnavailableError(f"{address}: {'no node listens there' if accept is None else 'unreachable'}", address=address)
        there, back = _Pipe(), _Pipe()
        ours = InProcessStream(address, there, back, dialled=True)
        theirs = InProcessStream(caller, back, there, dialled=False)
        self._streams[ours] = pair
        task = asyncio.get_running_loop().create_task(self._serve(accept, ours, theirs))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return ours

    async def _serve(self, accept: Accept, ours: InProcessStream, theirs: InProcessStream) -> None:
        try:
            with contextlib.suppress(RegionUnavailableError):  # the stream broke: both ends have seen it
                await accept(theirs)
        finally:
            theirs.close()
            self._streams.pop(ours, None)


class InProcessTransport:
    """Dials on behalf of one address of an `InProcessNetwork`."""

    def __init__(self, network: InProcessNetwork, address: str) -> None:
        self._network = network
        self._address = address

    async def dial(self, address: str, *, timeout_s: float) -> PeerStream:
        return self._network.connect(self._address, address)

    async def close(self) -> None:
        return None
