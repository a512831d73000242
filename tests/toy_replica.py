"""A toy replica behind `ReplicaPort`, and a deterministic network of such replicas around the real drive loop.

`ToyReplica` knows commits, not values: a version vector, a log, held frames. `Network` runs one `Drive` per replica in
virtual time: messages as bytes over links with delay, that can be cut, held back, or opened twice.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from crdtkv.core.causality import Origin, VersionVector, make_origin
from crdtkv.core.codec import encode_value
from crdtkv.core.control import Control, Steering
from crdtkv.core.frame import NO_HASH, Frame
from crdtkv.core.state import DictBase, State
from crdtkv.errors import CorruptionError
from crdtkv.replication import LOOPBACK, Applied, Drive, Event, EventKind, PeerStatistics, ReplicationSettings
from crdtkv.replication.messages import Frames, Heartbeat, Message
from crdtkv.storage.log import MemoryLog


class ToyReplica:
    """Applies frames by the rule (next of its origin, context covered), holds the others up to `held_max`."""

    def __init__(self, region: str, *, cluster: str = "test", generation: int = 1, log_bytes_max: int = 64 << 20) -> None:
        self.origin: Origin = make_origin(region, generation, 7)
        self.cluster = cluster
        self.shard = 0
        self.control = Control(State(DictBase(), lambda slot, record: True))
        self.log = MemoryLog(log_bytes_max)
        self.frames: dict[tuple[Origin, int], Frame] = {}
        self.held: list[Frame] = []
        self.held_max = 1 << 30
        self.unreleased = 0
        """How many frames at the log's end may not leave yet."""
        self.tampered = ""
        self._vv = VersionVector()
        self._hashes: dict[Origin, tuple[int, bytes]] = {}

    def write(self, commits: int = 1, *, size: int = 10) -> Frame:
        """One frame of local commits."""
        seq, previous = self._hashes.get(self.origin, (0, NO_HASH))
        rows = [[0, None, [0, f"k{seq + i}", encode_value(b"x" * size)]] for i in range(commits)]
        frame = Frame.build(self.cluster, self.shard, self.origin, seq + 1, 1, self._vv.without(self.origin), previous, rows)
        self._append(frame)
        return frame

    def _append(self, frame: Frame) -> None:
        self.log.append([frame])
        self.frames[frame.origin, frame.last_seq] = frame
        self._hashes[frame.origin] = (frame.last_seq, frame.hash)
        self._vv = self._vv.advance(frame.origin, frame.last_seq)

    snapshots: Any = None

    def steer(self, steering: Steering) -> None:
        """Nothing ends here."""

    def vv(self) -> VersionVector:
        return self._vv

    def durable_vv(self) -> VersionVector:
        return self._vv

    def released(self) -> int:
        return self.log.end() - self.unreleased

    def hlc(self) -> int:
        return 1

    def digest(self) -> tuple[VersionVector, str] | None:
        everything = b"".join(self._hashes[o][1] for o in sorted(self._hashes))
        return self._vv, hashlib.blake2b(everything + self.tampered.encode(), digest_size=16).hexdigest()

    def frame_hash(self, origin: Origin, seq: int) -> bytes | None:
        frame = self.frames.get((origin, seq))
        return None if frame is None else frame.hash

    def kept_hashes(self) -> dict[Origin, tuple[int, bytes]]:
        return dict(self._hashes)

    def apply(self, frames: Sequence[Frame]) -> Applied:
        before, dropped = self.log.end(), 0
        for frame in frames:
            if frame.last_seq <= self._vv.seq(frame.origin):
                continue
            self.held.append(frame)
            while (ready := next(filter(self._is_ready, self.held), None)) is not None:
                self.held.remove(ready)
                if ready.previous != self._hashes.get(ready.origin, (0, NO_HASH))[1]:
                    raise CorruptionError("another predecessor", fork=True)
                self._append(ready)
            self.held = [f for f in self.held if f.last_seq > self._vv.seq(f.origin)]
            if len(self.held) > self.held_max:
                self.held.pop()
                dropped += 1
        return Applied(self.log.end() - before, len(self.held), self.log.end(), dropped)

    def _is_ready(self, frame: Frame) -> bool:
        return frame.first_seq == self._vv.seq(frame.origin) + 1 and frame.context <= self._vv


class Network:
    """Drives in virtual time. Regions are named by their replicas; every pair is linked by `connect`."""

    def __init__(self, replicas: Sequence[ToyReplica], *, settings: ReplicationSettings = LOOPBACK, delay_ms: float = 1.0) -> None:
        self.now = 0.0
        self.settings = settings
        self.replicas = {r.origin.partition("@")[0]: r for r in replicas}
        self.delays: dict[frozenset[str], float] = {}
        self.delay_ms = delay_ms
        self.apply_ms = 0.0
        self.gather_ms = 0.0
        """How long what comes waits for a turn, as for one that is under way."""
        self._gathering: set[str] = set()
        self.is_hasty = False
        """Take the short cuts that a node takes: apply first, and no turn for commits that may not leave yet."""
        self.rested: list[tuple[str, float, float]] = []
        """By `is_hasty`: who had no turn for a commit, when, and until when."""
        self.wall_offsets: dict[str, float] = dict.fromkeys(self.replicas, 1_000_000.0)
        self.drives = {name: self._drive(name) for name in self.replicas}
        self.events: dict[str, list[Event]] = {name: [] for name in self.replicas}
        self.sent: list[tuple[float, str, str, Message]] = []
        """Everything sent: time, from, to, message."""
        self.drop: Callable[[str, str, Message], bool] = lambda _source, _target, _message: False
        """Loses messages on a link that stays open: only for what a half-open link or a broken peer does."""
        self.links: dict[int, tuple[str, str]] = {}
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._wakes: dict[str, float] = {}

    def _drive(self, name: str) -> Drive:
        wall = self.wall_offsets
        return Drive(self.replicas[name], self.settings, now_ms=self.now, wall_ms=lambda: self.now + wall[name])

    def reconnect(self) -> None:
        """Dial every peer that no link leads to, as nodes do."""
        linked = {frozenset(pair) for pair in self.links.values()}
        for a, b in itertools.combinations(self.replicas, 2):
            if frozenset((a, b)) not in linked:
                self.connect(a, b)

    def connect(self, a: str, b: str) -> int:
        """A new link, dialled by `a`."""
        link = next(self._numbers)
        self.links[link] = (a, b)
        self.drives[a].connect(link, self.now, dialed=True)
        self.drives[b].connect(link, self.now, dialed=False)
        self.turn(a)
        self.turn(b)
        return link

    def mesh(self) -> None:
        for a, b in itertools.combinations(self.replicas, 2):
            self.connect(a, b)

    def cut(self, a: str, b: str) -> None:
        """All links between two regions break; what is under way is lost."""
        for link in [n for n, pair in self.links.items() if set(pair) == {a, b}]:
            del self.links[link]
            for name in (a, b):
                self.drives[name].disconnect(link, self.now)
                self.turn(name)

    def restart(self, name: str) -> None:
        """A region's process ends and begins anew; its replica is what it was, its links are gone."""
        for pair in {frozenset(pair) for pair in self.links.values() if name in pair}:
            self.cut(*pair)
        self.drives[name] = self._drive(name)

    def write(self, name: str, commits: int = 1, *, size: int = 10) -> Frame:
        frame = self.replicas[name].write(commits, size=size)
        if self.is_hasty and (until := self.drives[name].rests_until(self.now)) is not None:
            self.rested.append((name, self.now, until))
            self._wake_at(name, until)
            return frame
        self.drives[name].local_commits(self.now)
        self.turn(name)
        return frame

    def later(self, after_ms: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + after_ms, next(self._numbers), action))

    def turn(self, name: str) -> None:
        """One turn of a region's loop: do what is ready."""
        drive = self.drives[name]
        if self.is_hasty and (first := drive.ready_to_apply()) is not None:
            assert not first.messages and not first.closed and first.apply == drive.ready().apply
            drive.accept(first)
            return self._apply(name, first.apply)
        if self.is_hasty:
            drive.local_commits(self.now)  # what was written while the drive rested leaves with whatever turn comes next
        work = drive.ready()
        assert drive.ready() == work, "asking twice changed something"
        drive.accept(work)
        self.events[name] += work.events
        for link, out in work.messages.items():
            for message, data in zip(out, work.encoded(link), strict=True):
                self._send(name, link, message, data)
        for closed in work.closed:
            self.later(self.delay_ms * 2, lambda link=closed.link: self._close(link))
        if work.apply:
            self.later(self.apply_ms, lambda: self._apply(name, work.apply))
        if work.wake_at_ms is not None:
            self._wake_at(name, work.wake_at_ms)
        return None

    def _wake_at(self, name: str, at: float) -> None:
        at = self._wakes[name] = max(at, self.now)
        self.later(at - self.now, lambda: self._wake(name, at))

    def _send(self, name: str, link: object, message: Message, data: bytes) -> None:
        pair = self.links.get(link)  # type: ignore[call-overload]
        if pair is None:
            return
        target = pair[1] if pair[0] == name else pair[0]
        self.sent.append((self.now, name, target, message))
        if not self.drop(name, target, message):
            self.later(self.delays.get(frozenset(pair), self.delay_ms), lambda: self._deliver(link, target, data))

    def _deliver(self, link: object, target: str, data: bytes) -> None:
        if link in self.links:
            self.drives[target].receive(link, data, self.now)
            if not self.gather_ms:
                self.turn(target)
            elif target not in self._gathering:
                self._gathering.add(target)
                self.later(self.gather_ms, lambda: self._end_gathering(target))

    def _end_gathering(self, name: str) -> None:
        self._gathering.remove(name)
        self.turn(name)

    def _close(self, link: object) -> None:
        for name in self.links.pop(link, ()):  # type: ignore[call-overload]
            self.drives[name].disconnect(link, self.now)
            self.turn(name)

    def _apply(self, name: str, frames: Sequence[Frame]) -> None:
        try:
            result = self.replicas[name].apply(frames)
        except CorruptionError as e:
            self.drives[name].apply_failed(e, self.now)
        else:
            self.drives[name].applied(result, self.now)
        self.turn(name)

    def _wake(self, name: str, at: float) -> None:
        if self._wakes.get(name) == at:
            del self._wakes[name]
            self.drives[name].tick(self.now)
            self.turn(name)

    def run(self, for_ms: float) -> None:
        self.run_until(lambda: False, for_ms, required=False)

    def run_until(self, condition: Callable[[], bool], within_ms: float = 10_000, *, required: bool = True) -> float:
        """Run until the condition holds; how long that took. It is an error if it does not within that virtual time."""
        began, deadline, steps = self.now, self.now + within_ms, 0
        while not condition():
            if not self._queue or self._queue[0][0] > deadline:
                self.now = deadline
                assert not required, f"not within {within_ms} ms: {[str(r.vv()) for r in self.replicas.values()]}"
                break
            self.now, _, action = heapq.heappop(self._queue)
            action()
            steps += 1
            assert steps < 200_000, "the loop spins"
        return self.now - began

    def is_equal(self) -> bool:
        """Whether all replicas have applied the same commits."""
        return len({r.vv() for r in self.replicas.values()}) == 1

    def is_live(self) -> bool:
        """Whether every region has a live link to every other, with its round trip known."""
        wanted = len(self.replicas) - 1
        return all(sum(row.round_trip_ms is not None for row in d.statistics(self.now)) == wanted for d in self.drives.values())

    def peer(self, at: str, of: str) -> PeerStatistics:
        """What `at` knows of its peer `of`."""
        return next(row for row in self.drives[at].statistics(self.now) if row.region == of)

    def kinds(self, at: str) -> list[EventKind]:
        return [event.kind for event in self.events[at]]

    def frames_sent(self, source: str, target: str, *, relayed: bool = False) -> list[tuple[float, Frames]]:
        found = ((at, m) for at, a, b, m in self.sent if (a, b) == (source, target) and isinstance(m, Frames))
        return [(at, m) for at, m in found if m.relayed is relayed]

    def beats_sent(self, source: str, target: str) -> int:
        return sum((a, b) == (source, target) and isinstance(m, Heartbeat) for _, a, b, m in self.sent)
