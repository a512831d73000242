"""The wide-area network between the regions of a local cluster, in user space: delays, jitter, rates and cuts.

Each directed pair of regions has one TCP proxy: `us` dials `eu` at the proxy of `us→eu`, which dials the node of `eu`. Of each
connection, the bytes from `us` to `eu` obey the link `us→eu` and the answers obey `eu→us`; so a link sees all bytes that travel in its
direction, whoever dialled. No root, no netem: it works wherever Python does.

Theory of operation. A `_Flow` carries one direction of one connection: a queue of `(due, bytes)`. A piece is due at the time it would have
left the link (its rate is shared by all connections) plus delay plus jitter, never before the piece ahead of it: TCP keeps order, and so
does this. One timer per flow waits for the head of the queue. Ends of streams travel in the queue too, so a close is as late as the data
before it. A connection costs a round trip before its first byte, as a handshake does.

The queue is bounded (`BUFFER_BYTES_MAX`), and what the receiver does not read stays in it; past the bound the sender is no longer read
from, its kernel buffers fill, and it feels the receiver's pace.

Three ways to fail, each of what a real network does:

* `cut`: both directions; open connections are reset and new ones are reset at once, as by a router that answers "unreachable";
* `hold`, one direction or both: nothing arrives and nobody is told. What was sent waits where a real TCP would keep it for retransmission,
  and goes on after the heal if both ends are still there. New connections reach nobody while either direction is held, since their
  handshake could not be completed. One direction held is a one-way cut; both are a half-open cut, or, for a short time, a stall;
* `shape`: other delay, jitter or rate from now on.

A hop costs some 0.2 ms, and 0.1 ms late may a timer be on `transport.loop.precise_event_loop` (1 ms more on others): right for delays of
5 ms and more, not for measuring the floor.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, cast

BUFFER_BYTES_MAX: Final = 8 << 20
"""Bytes of one direction of one connection on their way. It bounds the throughput too: 8 MiB in 117 ms is 70 MB/s."""
_PIECE_S: Final = 0.005
"""On a link with a rate, the longest stretch of time one piece of data occupies; larger reads are split, so that they trickle."""
_PIECE_BYTES_MIN: Final = 1460
_WRITE_BYTES: Final = 64 << 10
_DIAL_TIMEOUT_S: Final = 10.0
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends a reset."""


class Link:
    """One direction between two regions, and what is wrong with it. Shared by all connections that send that way."""

    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self.delay_ms = 0.0
        self.jitter_ms = 0.0
        self.bytes_per_s: float | None = None
        self.held = False
        self.cut = False
        self.bytes_delivered = 0
        self.connections: set[_Connection] = set()
        """Those that have a direction on this link: dialled either way."""
        self._free_at = 0.0
        """When the last byte accepted so far has left, on a link with a rate."""

    def leaves_at(self, now: float, size: int) -> float:
        """Take `size` bytes onto the link and return when the last of them has left it."""
        if self.bytes_per_s is None:
            return now
        self._free_at = max(now, self._free_at) + size / self.bytes_per_s
        return self._free_at

    def pieces(self, data: bytes) -> Iterable[bytes]:
        """`data` in pieces short enough to trickle at the link's rate."""
        if self.bytes_per_s is None:
            return (data,)
        size = max(_PIECE_BYTES_MIN, int(self.bytes_per_s * _PIECE_S))
        return (data[i : i + size] for i in range(0, len(data), size))


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """What one direction does now. `bytes_waiting` are on their way or held."""

    source: str
    target: str
    state: Literal["open", "held", "cut"]
    delay_ms: float
    jitter_ms: float
    bytes_per_s: float | None
    connections: int
    bytes_delivered: int
    bytes_waiting: int


class _Flow:
    """One direction of one connection: bytes in order, each due at its time, bounded."""

    def __init__(self, link: Link, rng: random.Random, on_end: Callable[[], None]) -> None:
        self.link = link
        self.waiting = 0
        """Bytes in the queue."""
        self.ended = False
        """The end of the stream was delivered, or cannot be any more: nothing follows."""
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._rng = rng
        self._on_end = on_end
        self._queue: deque[tuple[float, bytes | None]] = deque()  # None: the sender's end of stream
        self._last_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """Set only while the head of the queue is not due, and then for it."""
        self._source: asyncio.Transport | None = None
        self._sink: asyncio.Transport | None = None
        self._source_paused = False
        self._sink_full = False
        self._ending = False

    def read_from(self, source: asyncio.Transport) -> None:
        """Whom to stop reading when the queue is full."""
        self._source = source

    def write_to(self, sink: asyncio.Transport) -> None:
        """Where to deliver, from now on. What waited for the handshake leaves only now, so all of it is late by as much."""
        late = self._loop.time() - self._began
        self._queue = deque((due + late, data) for due, data in self._queue)
        self._last_due += late
        self._sink = sink
        self.pump()

    def feed(self, data: bytes) -> None:
        """Take bytes from the sender."""
        now = self._loop.time()
        link = self.link
        for piece in link.pieces(data):
            jitter_ms = self._rng.uniform(0.0, link.jitter_ms) if link.jitter_ms else 0.0
            self._append(link.leaves_at(now, len(piece)) + (link.delay_ms + jitter_ms) / 1e3, piece)
        if self.waiting >= BUFFER_BYTES_MAX and self._source is not None and not self._source_paused:
            self._source_paused = True
            self._source.pause_reading()
        if self._timer is None:
            self.pump()

    def feed_end(self) -> None:
        """The sender will send no more."""
        if not self._ending:
            self._ending = True
            self._append(self._loop.time() + self.link.delay_ms / 1e3, None)
            self.pump()

    def sink_full(self, full: bool) -> None:
        """The receiver's socket takes no more for now, or takes again."""
        self._sink_full = full
        self.pump()

    def stop(self) -> None:
        """Forget what is queued: nobody is there to receive it."""
        self._queue.clear()
        self.waiting = 0
        self._sink = None
        self._end()

    def pump(self) -> None:
        """Deliver what is due, then wait for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and self._sink is not None and not self.link.held and not self._sink_full:
            due, data = self._queue[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.pump)
                break
            if data is not None:
                self._sink.write(self._take_due())
                continue
            self._queue.popleft()
            if not self._sink.is_closing():
                with contextlib.suppress(OSError):  # reset by its peer, and the loop has not told us yet
                    self._sink.write_eof()
            self._end()
        if self._source_paused and self.waiting <= BUFFER_BYTES_MAX // 2 and self._source is not None:
            self._source_paused = False
            if not self._source.is_closing():
                self._source.resume_reading()

    def _take_due(self) -> bytes:
        """Bytes at the head of the queue that are due, up to some limit: each write is a call of the kernel."""
        pieces: list[bytes] = []
        size, now = 0, self._loop.time()
        while self._queue and size < _WRITE_BYTES:
            due, data = self._queue[0]
            if data is None or due > now:
                break
            self._queue.popleft()
            pieces.append(data)
            size += len(data)
        self.waiting -= size
        self.link.bytes_delivered += size
        return b"".join(pieces)

    def _append(self, due: float, data: bytes | None) -> None:
        if self.ended:
            return
        self._last_due = max(self._last_due, due)
        self._queue.append((self._last_due, data))
        if data is not None:
            self.waiting += len(data)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.ended:
            self.ended = True
            self._on_end()


class _End(asyncio.Protocol):
    """One socket of a connection: feeds one flow, drains the other."""

    def __init__(self, connection: _Connection, outgoing: _Flow, incoming: _Flow) -> None:
        self.transport: asyncio.Transport | None = None
        self._connection = connection
        self._outgoing = outgoing
        self._incoming = incoming

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._outgoing.read_from(self.transport)
        self._incoming.write_to(self.transport)
        self._connection.made(self)

    def data_received(self, data: bytes) -> None:
        self._outgoing.feed(data)

    def eof_received(self) -> bool:
        self._outgoing.feed_end()
        self._connection.leaving(self)
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._outgoing.feed_end()
        self._incoming.stop()
        self._connection.leaving(self)

    def pause_writing(self) -> None:
        self._incoming.sink_full(True)

    def resume_writing(self) -> None:
        self._incoming.sink_full(False)

    def reset(self) -> None:
        """Close at once; the other side sees a reset."""
        if self.transport is not None:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class _Connection:
    """A dialled connection: the near end (the dialler's), the far end (the target's), and a flow each way.

    Invariant: it is in the `connections` of both its links from the near end's start until both flows have ended or it was reset.
    """

    def __init__(self, wan: Wan, out: Link, back: Link, target: tuple[str, int]) -> None:
        self._wan = wan
        self._links = (out, back)
        self._target = target
        self.flows = (_Flow(out, wan.rng, self._flow_ended), _Flow(back, wan.rng, self._flow_ended))
        self.near = _End(self, self.flows[0], self.flows[1])
        self._far = _End(self, self.flows[1], self.flows[0])
        self._opened = asyncio.Event()
        self._dialling: asyncio.Task[None] | None = None

    def made(self, end: _End) -> None:
        """An end has its socket. The near one was accepted by the kernel at once; the handshake with the far one takes its time."""
        if end is self._far:
            self._dialling = None
            return
        if any(link.cut for link in self._links):
            end.reset()
            return
        for link in self._links:
            link.connections.add(self)
        self._dialling = asyncio.get_running_loop().create_task(self._dial())
        self._wan.dialling.add(self._dialling)
        self._dialling.add_done_callback(self._wan.dialling.discard)

    def leaving(self, end: _End) -> None:
        """An end sends no more, or is gone. A dialler that gives up while the handshake cannot be done is never heard of by the target."""
        if end is self.near and self._dialling is not None and (end.transport is None or any(link.held for link in self._links)):
            self.reset()

    def healed(self) -> None:
        """A link is open again: go on."""
        self._opened.set()
        for flow in self.flows:
            flow.pump()

    def reset(self) -> None:
        """Both ends see a reset, and what was on its way is lost."""
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        self.near.reset()
        self._far.reset()
        for flow in self.flows:
            flow.stop()

    async def _dial(self) -> None:
        out, back = self._links
        try:
            await asyncio.sleep((out.delay_ms + back.delay_ms) / 1e3)
            while out.held or back.held:
                self._opened.clear()
                await self._opened.wait()
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: self._far, *self._target)
        except OSError:  # nobody listens there, or (a TimeoutError) nobody answers: so hears the dialler
            self._dialling = None
            self.reset()

    def _flow_ended(self) -> None:
        if not all(flow.ended for flow in self.flows):
            return
        for end in (self.near, self._far):
            if end.transport is not None:
                end.transport.close()
        for link in self._links:
            link.connections.discard(self)


class Wan:
    """All links between some regions, and the proxies on them. Use from one event loop.

    Args:
        regions: their names.
        seed: of the jitter.
    """

    def __init__(self, regions: Iterable[str], *, seed: int | None = None) -> None:
        self.rng = random.Random(seed)
        self.dialling: set[asyncio.Task[None]] = set()
        self._regions = list(regions)
        self._links = {(a, b): Link(a, b) for a in self._regions for b in self._regions if a != b}
        self._servers: dict[tuple[str, str], asyncio.Server] = {}

    def add(self, region: str) -> None:
        """Links between one region more and all others."""
        for other in self._regions:
            self._links[region, other], self._links[other, region] = Link(region, other), Link(other, region)
        self._regions.append(region)

    def remove(self, region: str) -> None:
        """A region is gone, and every link and proxy with it."""
        self._regions.remove(region)
        for pair in [pair for pair in self._links if region in pair]:
            if (server := self._servers.pop(pair, None)) is not None:
                server.close()
            self._each(self._links.pop(pair), _Connection.reset)

    async def open(self, source: str, target: str, address: tuple[str, int], *, host: str = "127.0.0.1") -> tuple[str, int]:
        """Listen for `source`, which wants to reach `target` at `address`; returns where to dial instead."""
        out, back = self._links[source, target], self._links[target, source]
        server = await asyncio.get_running_loop().create_server(lambda: _Connection(self, out, back, address).near, host, 0)
        self._servers[source, target] = server
        name = server.sockets[0].getsockname()
        return name[0], name[1]

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        for server in self._servers.values():
            server.close()
        for link in self._links.values():
            self._each(link, _Connection.reset)
        for task in tuple(self.dialling):
            task.cancel()
        await asyncio.gather(*self.dialling, return_exceptions=True)
        self._servers.clear()

    def shape(
        self,
        source: str,
        target: str,
        *,
        delay_ms: float | None = None,
        jitter_ms: float | None = None,
        bytes_per_s: float | None = None,
    ) -> None:
        """Set what is given of one direction, from the next byte on; `bytes_per_s=0` is no limit."""
        link = self._links[source, target]
        if delay_ms is not None:
            link.delay_ms = delay_ms
        if jitter_ms is not None:
            link.jitter_ms = jitter_ms
        if bytes_per_s is not None:
            link.bytes_per_s = bytes_per_s or None

    def cut(self, a: str, b: str) -> None:
        """Reset what is open between two regions and refuse what is new."""
        for link in (self._links[a, b], self._links[b, a]):
            link.cut = True
            self._each(link, _Connection.reset)

    def hold(self, source: str, target: str) -> None:
        """From now on no byte from `source` arrives at `target`, and nobody is told."""
        self._links[source, target].held = True

    def heal(self, a: str, b: str) -> None:
        """Undo `cut` and `hold` between two regions, both ways; delays stay."""
        both = (self._links[a, b], self._links[b, a])
        for link in both:
            link.cut = link.held = False
        for link in both:
            self._each(link, _Connection.healed)

    def is_open(self, a: str, b: str) -> bool:
        """Whether bytes pass both ways."""
        return not any(link.cut or link.held for link in (self._links[a, b], self._links[b, a]))

    def statistics(self) -> tuple[LinkStatistics, ...]:
        """One row per direction, in the regions' order."""
        return tuple(
            LinkStatistics(
                source=link.source,
                target=link.target,
                state="cut" if link.cut else "held" if link.held else "open",
                delay_ms=link.delay_ms,
                jitter_ms=link.jitter_ms,
                bytes_per_s=link.bytes_per_s,
                connections=len(link.connections),
                bytes_delivered=link.bytes_delivered,
                bytes_waiting=sum(flow.waiting for c in link.connections for flow in c.flows if flow.link is link),
            )
            for link in self._links.values()
        )

    @staticmethod
    def _each(link: Link, act: Callable[[_Connection], None]) -> None:
        for connection in tuple(link.connections):
            act(connection)
