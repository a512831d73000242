"""A network in virtual time: connections that keep order, are slow, stall when cut, and break.

A connection carries whole messages both ways, each direction in order, at its own pace; two connections overtake each
other freely. While a direction is cut, what is sent that way waits in it, as in TCP, until it heals or either end gives
up. A connection that is reset loses what is on its way; both ends notice, or only one (half-open), and the other waits
for its heartbeats in vain. Frames are sent again on the next connection: that is where duplicates come from. A host may be
*slow*: everything from and to it takes longer, and what it does not take in time fills its connections, whose senders are told to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, Protocol

from crdtkv.simulation.dice import Dice


class Host(Protocol):
    """One end, as the network sees it. A host that is down gets nothing."""

    index: int
    is_up: bool

    def connected(self, link: int, peer: int, dialed: bool) -> None: ...
    def received(self, link: int, data: bytes) -> None: ...
    def disconnected(self, link: int) -> None: ...
    def writable(self, link: int, is_writable: bool) -> None: ...
    def dial_failed(self, peer: int) -> None: ...


class Scheduler(Protocol):
    """Who runs things later, in virtual time."""

    now_us: int

    def after(self, delay_ms: float, what: Callable[..., None], *args: object) -> None: ...
    def at(self, at_us: int, what: Callable[..., None], *args: object) -> None: ...
    def idle(self) -> None: ...


IN_FLIGHT_MAX: Final = 4_000
"""Bytes on their way in one direction of a connection; when there are more, its sender is told to wait until half of them arrived."""


class _Way:
    """One direction of a connection."""

    __slots__ = ("busy_until_us", "in_flight", "is_full", "receiver", "sender", "stalled")

    def __init__(self, sender: int, receiver: int) -> None:
        self.sender = sender
        self.receiver = receiver
        self.busy_until_us = 0
        self.in_flight = 0
        self.is_full = False
        self.stalled: list[tuple[bytes | None, bool]] = []  # as `_post` takes them


class _Connection:
    __slots__ = ("dead", "ends", "link", "ways")

    def __init__(self, link: int, dialler: Host, listener: Host) -> None:
        self.link = link
        there, back = dialler.index, listener.index
        self.ends = {there: dialler, back: listener}
        self.ways = {there: _Way(there, back), back: _Way(back, there)}  # by sender
        self.dead: set[int] = set()  # ends that know that it is over


class Network:
    """All connections between some hosts.

    Args:
        delay_ms: one-way delay; each message takes up to `1 + jitter` times that.
    """

    def __init__(self, scheduler: Scheduler, dice: Dice, *, delay_ms: float, jitter: float) -> None:
        self._scheduler = scheduler
        self._dice = dice
        self._delay_ms = delay_ms
        self._jitter = jitter
        self._cut: set[tuple[int, int]] = set()
        self._slow: dict[int, float] = {}
        self._connections: dict[int, _Connection] = {}
        self._links = 0

    # -- faults ---------------------------------------------------------------------------------------------------

    def cut(self, sender: int, receiver: int) -> None:
        """Nothing more gets from one host to another."""
        self._cut.add((sender, receiver))

    def slow(self, host: int, factor: float) -> None:
        """Whatever comes from or goes to a host takes so many times as long from now on."""
        self._slow[host] = factor

    def heal(self, among: Container[int] | None = None) -> None:
        """Undo every cut (between some hosts): what has waited goes on its way. Nobody (of these) is slow any more."""
        self._cut = {way for way in self._cut if among is not None and not (way[0] in among and way[1] in among)}
        self._slow = {host: factor for host, factor in self._slow.items() if among is not None and host not in among}
        for connection in list(self._connections.values()):
            for sender, way in connection.ways.items():
                waiting, way.stalled = way.stalled, []
                for data, is_idle in waiting:
                    way.in_flight -= len(data or b"")
                    self._post(connection, sender, data, is_idle)

    def sever(self, index: int) -> None:
        """Every connection of a host breaks, and both ends notice."""
        for connection in [c for c in self._connections.values() if index in c.ends]:
            for end in sorted(connection.ends):
                self._tell_end(connection, end)
            connection.dead.update(connection.ends)
            self._collect(connection)

    def reset(self, dice: Dice) -> bool:
        """Break one connection; perhaps one end does not notice. False if there is none."""
        if not self._connections:
            return False
        connection = self._connections[dice.pick(sorted(self._connections))]
        quiet = dice.pick(sorted(connection.ends)) if dice.chance(0.3) else None
        for index in sorted(connection.ends):
            if index != quiet:
                self._tell_end(connection, index)
        connection.dead.update(connection.ends)
        if quiet is not None:
            connection.dead.discard(quiet)
        self._collect(connection)
        return True

    def host_died(self, host: Host, *, silently: bool) -> None:
        """Every connection of a host is gone; its peers are told, unless its whole machine is off."""
        for connection in [c for c in self._connections.values() if host.index in c.ends]:
            for index in sorted(connection.ends):
                if index != host.index and index not in connection.dead and not silently:
                    self._tell_end(connection, index)
                    connection.dead.add(index)
            connection.dead.add(host.index)
            self._collect(connection)

    # -- what hosts do --------------------------------------------------------------------------------------------

    def dial(self, dialler: Host, listener: Host) -> None:
        """Open a connection: both ends are told, or the dialler that it failed."""
        self._scheduler.after(2 * self._delay(dialler.index, listener.index), self._dialled, dialler, listener)

    def _dialled(self, dialler: Host, listener: Host) -> None:
        if not dialler.is_up:
            return
        there, back = (dialler.index, listener.index), (listener.index, dialler.index)
        if not listener.is_up or there in self._cut or back in self._cut:
            dialler.dial_failed(listener.index)
            return
        self._links += 1
        connection = self._connections[self._links] = _Connection(self._links, dialler, listener)
        listener.connected(connection.link, dialler.index, False)
        dialler.connected(connection.link, listener.index, True)

    def send(self, host: Host, link: int, data: bytes, *, is_idle: bool = False) -> None:
        """Send a message; it is lost if the connection is. `is_idle`: its arrival is no event."""
        connection = self._connections.get(link)
        if connection is not None and host.index not in connection.dead:
            self._post(connection, host.index, data, is_idle)

    def other_end(self, link: int, index: int) -> int | None:
        """Who is at the other end of a connection; None if it is over."""
        connection = self._connections.get(link)
        return None if connection is None else next(end for end in connection.ends if end != index)

    def close(self, host: Host, link: int) -> None:
        """End a connection from one side; the other is told after everything sent before."""
        connection = self._connections.get(link)
        if connection is not None and host.index not in connection.dead:
            self._post(connection, host.index, None, False)
            connection.dead.add(host.index)
            self._collect(connection)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _delay(self, sender: int, receiver: int) -> float:
        delay_ms = self._delay_ms * (1 + self._jitter * self._dice.random())
        return delay_ms * max(self._slow.get(sender, 1.0), self._slow.get(receiver, 1.0)) if self._slow else delay_ms

    def _post(self, connection: _Connection, sender: int, data: bytes | None, is_idle: bool) -> None:
        """Put a message on its way; None is the end of the stream."""
        way, scheduler = connection.ways[sender], self._scheduler
        if data is not None:
            way.in_flight += len(data)
            if way.in_flight > IN_FLIGHT_MAX and not way.is_full:
                way.is_full = True
                connection.ends[sender].writable(connection.link, False)
        receiver = way.receiver
        if way.stalled or (self._cut and (sender, receiver) in self._cut):
            way.stalled.append((data, is_idle))
            return
        at_us = scheduler.now_us + int(self._delay(sender, receiver) * 1000)
        if at_us < way.busy_until_us:
            at_us = way.busy_until_us
        way.busy_until_us = at_us
        scheduler.at(at_us, self._arrive, connection, way, data, is_idle)

    def _arrive(self, connection: _Connection, way: _Way, data: bytes | None, is_idle: bool) -> None:
        receiver = way.receiver
        host = connection.ends[receiver]
        if data is not None:
            way.in_flight -= len(data)
            if way.is_full and way.in_flight <= IN_FLIGHT_MAX // 2:
                self._has_room(connection, way)
        if receiver in connection.dead or not host.is_up:
            return self._scheduler.idle()
        if data is None:
            connection.dead.add(receiver)
            self._collect(connection)
            host.disconnected(connection.link)
            return None
        if is_idle:
            self._scheduler.idle()
        host.received(connection.link, data)
        return None

    @staticmethod
    def _has_room(connection: _Connection, way: _Way) -> None:
        way.is_full = False
        if way.sender not in connection.dead and connection.ends[way.sender].is_up:
            connection.ends[way.sender].writable(connection.link, True)

    def _tell_end(self, connection: _Connection, index: int) -> None:
        host = connection.ends[index]
        if index not in connection.dead:
            self._scheduler.after(0, self._end, host, connection.link)

    @staticmethod
    def _end(host: Host, link: int) -> None:
        if host.is_up:
            host.disconnected(link)

    def _collect(self, connection: _Connection) -> None:
        if len(connection.dead) == len(connection.ends):
            self._connections.pop(connection.link, None)
