"""Watching: changes pushed to whoever asked, bounded, resumable from the log.

Live changes are taken while a commit is applied and carry the value that became visible. A watcher that resumes from
a token first catches up from the log: for each delta since then it gets the value that is visible when the log is
read, so a cache kept from a watch is right at the end either way. A token points between frames; resuming repeats at
most what came with the last frames, never skips.

A snapshot that is installed, or merged, and a repair change records without a commit in the log. Live watchers get those changes too,
marked; from a token of before nobody can resume, and one that was cut in the middle or is still catching up cannot go on: they are told
so (`Machine.unlogged`).

A watcher that does not keep up is cut: its queue holds so many changes, then it ends with an error and the token to
resume by. It never costs more memory, and never slows a writer.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from crdtkv.core.apply import Changes, Touched, TouchedPuts
from crdtkv.core.causality import VersionVector
from crdtkv.core.codec import TYPE_NAMES, SlotType, encode_value, number_to_wire, slot_of
from crdtkv.core.frame import CONTROL_KINDS, DeltaKind, Frame
from crdtkv.core.token import Token, decode_token
from crdtkv.errors import OverloadedError, StoreClosedError, TokenExpiredError
from crdtkv.results import Change
from crdtkv.store.machine import Machine
from crdtkv.store.reading import Reader

CATCH_UP_BYTES = 256 << 10
"""How much of the log a watcher that catches up reads at a time, with the store's lock held."""

ADVICE = "read the keys anew with scan(), then watch from now"
UNLOGGED = "a snapshot was installed, or a repair was made, since: what it changed is in no log"

Row = list[Any]
Place = tuple[int, VersionVector]
"""A position of the log, and what was applied when it ended there."""
_KINDS = {
    DeltaKind.REGISTER_PUT: (SlotType.REGISTER, "put"),
    DeltaKind.REGISTER_DELETE: (SlotType.REGISTER, "delete"),
    DeltaKind.SET_ADD: (SlotType.SET, "add"),
    DeltaKind.SET_REMOVE: (SlotType.SET, "remove"),
    DeltaKind.SET_CLEAR: (SlotType.SET, "clear"),
    DeltaKind.COUNTER_ADD: (SlotType.COUNTER, "increment"),
    DeltaKind.COUNTER_RESET: (SlotType.COUNTER, "reset"),
    DeltaKind.MAP_PUT: (SlotType.MAP, "put"),
    DeltaKind.MAP_DELETE: (SlotType.MAP, "delete"),
    DeltaKind.MAP_CLEAR: (SlotType.MAP, "clear"),
}
_GONE = {"put": "delete", "add": "remove"}
_TRUE = encode_value(True)


def touched_by(frame: Frame) -> Iterator[Touched]:
    """What a frame's deltas touch, in order."""
    for seq, hlc, _, deltas in frame.commits():
        for delta in deltas:
            if delta[0] in CONTROL_KINDS:
                continue
            if delta[0] == DeltaKind.EXPIRE:
                yield Touched(delta[1], delta[2], delta[3], "expire", frame.origin, seq, hlc)
                continue
            type_code, kind = _KINDS[delta[0]]
            subkey = b""
            if kind in ("add", "remove") and type_code == SlotType.SET:
                subkey = delta[2]
            elif kind in ("put", "delete") and type_code == SlotType.MAP:
                subkey = encode_value(delta[2])
            yield Touched(delta[1], type_code, subkey, kind, frame.origin, seq, hlc)


class Watches:
    """The watchers of one store, and the changes on their way to them. Used with the store's lock held."""

    def __init__(self, machine: Machine, reader: Reader) -> None:
        self._machine = machine
        self._reader = reader
        self._subscriptions: list[Subscription] = []
        self._touched: Changes = []
        self.active = False
        self.cut = 0
        """Watchers that were too slow, since the start."""
        self._here: Place = machine.log.end(), machine.vv()

    @property
    def count(self) -> int:
        return len(self._subscriptions)

    @contextlib.contextmanager
    def gathering(self, *, unlogged: bool = False) -> Iterator[Changes]:
        """The visible changes made meanwhile, for one caller; watchers get them as well.

        Args:
            unlogged: no commit in the log makes them: they are marked.
        """
        gathered: Changes = []
        self._machine.replica.watch_changes(gathered, keys_only=not self.active)
        try:
            yield gathered
        finally:
            self._touched.extend(gathered)
            self._machine.replica.watch_changes(self._touched if self.active else None)
            if self.active:
                self.publish(self._machine.log.end(), unlogged=unlogged)
            else:
                self._touched.clear()

    def publish(self, position: int, *, unlogged: bool = False) -> None:
        """Hand what was touched since the last call to the watchers; the log ends at `position` now."""
        touched, before = self._touched, self._here
        self._here = position, self._machine.vv()
        if touched:
            rows = [(row, before) for t in touched for row in self._rows(t, unlogged)]
            rows[-1] = (rows[-1][0], self._here)
            touched.clear()
            for subscription in self._subscriptions:
                subscription._push(rows)

    def _rows(self, touched: Touched | TouchedPuts, unlogged: bool) -> list[Row]:
        """`row` of each."""
        if isinstance(touched, Touched):
            return [self.row(touched, unlogged)]
        if unlogged:
            return [self.row(t, unlogged) for t in touched.each()]
        columns = zip(touched.keys, touched.values, touched.seqs, touched.hlcs, strict=True)
        return [[key, "register", None, "put", value, touched.origin, seq, hlc, ""] for key, value, seq, hlc in columns]

    def row(self, touched: Touched, unlogged: bool = False) -> Row:
        """One change with the value that became visible, or is visible now; the token is set when it is taken."""
        if touched.value is not None and not unlogged:
            return [touched.key, "register", None, "put", touched.value, touched.origin, touched.seq, touched.hlc, ""]
        key = touched.key.encode()
        kind, subkey, value = touched.kind, None, None
        if touched.type_code == SlotType.COUNTER:
            amount = self._reader.counter(key)
            value = encode_value(number_to_wire(amount or 0))
        elif touched.kind != "clear":
            entry = self._reader.entry(slot_of(key, touched.type_code, touched.subkey))
            subkey = touched.subkey or None
            if entry is None:
                kind = _GONE.get(kind, kind)
            elif touched.type_code == SlotType.SET:
                kind, value = "add", _TRUE
            else:
                kind, value = "put", entry.value
        row = [touched.key, TYPE_NAMES[touched.type_code], subkey, kind, value, touched.origin, touched.seq, touched.hlc, ""]
        if unlogged:
            row.insert(-1, True)
        return row

    def token(self, position: int, vv: VersionVector | None = None) -> str:
        """The token of a place in this log; `vv`: what was applied there, if not what is now."""
        return self.to_encode(position, vv).encode()

    def to_encode(self, position: int, vv: VersionVector | None = None) -> Token:
        """The same, for whoever encodes it later."""
        machine = self._machine
        return Token(machine.shard, machine.origin, position, machine.control.show(machine.vv() if vv is None else vv))

    def subscribe(
        self, lock: threading.RLock, prefix: str, since: str | None, limit: int, notify: Callable[[], None] | None
    ) -> Subscription:
        place = None if since is None else self._place(since)
        position = None if place is None else place.position
        subscription = Subscription(self, lock, prefix, position, limit, notify, 0 if place is None else place.seq)
        if position is None:
            self._join(subscription)
            subscription.last_token = self.token(*self._here)
        else:
            subscription.last_token = since
        return subscription

    def _place(self, since: str) -> Token:
        token = decode_token(since)
        log = self._machine.log
        start, end = log.start(), log.end()
        self._machine.control.check_session(token.vv)
        advice = ADVICE
        if token.owner != self._machine.origin or token.shard != self._machine.shard:
            raise TokenExpiredError(
                f"the token is of the log of {token.owner}, this is {self._machine.origin}: {advice}", owner=token.owner
            )
        if token.position < start:
            raise TokenExpiredError(
                f"the token is of log position {token.position}, the log begins at {start} by now: {advice}", floor=start
            )
        unlogged = self._machine.unlogged
        if unlogged is not None and token.position <= unlogged[0]:
            had = unlogged[1] is not None and unlogged[1] <= self._machine.control.complete(token.vv)
            if token.position < unlogged[0] or not had:
                raise TokenExpiredError(f"{UNLOGGED}: {advice}", position=token.position, unlogged=unlogged[0])
        if token.position > end:
            raise TokenExpiredError(f"the token is of log position {token.position}, but the log ends at {end}: {advice}", end=end)
        return token

    def _join(self, subscription: Subscription) -> None:
        self._subscriptions = [*self._subscriptions, subscription]
        if not self.active:
            self.active = True
            self._here = self._machine.log.end(), self._machine.vv()
            self._machine.replica.watch_changes(self._touched)

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions = [s for s in self._subscriptions if s is not subscription]
        if self.active and not self._subscriptions:
            self.active = False
            self._touched.clear()
            self._machine.replica.watch_changes(None)

    def catch_up(self, subscription: Subscription, position: int) -> tuple[list[tuple[Row, Place]], int | None]:
        """Changes of the next frames from a position, and the position after them; None once it is live."""
        log = self._machine.log
        end = log.end()
        if position < log.start():
            raise TokenExpiredError(f"the log was cut while this watcher caught up: {ADVICE}")
        if (unlogged := self._machine.unlogged) is not None and unlogged != subscription.unlogged:
            raise TokenExpiredError(f"{UNLOGGED}: {ADVICE}", position=position, unlogged=unlogged[0])
        rows: list[tuple[Row, Place]] = []
        vv = self._machine.vv()
        if position < end:
            frames, position = log.read(position, bytes_max=CATCH_UP_BYTES, until=end)
            place = position - len(frames), vv
            for frame in frames:
                seen = subscription.seen_seq if frame.origin == self._machine.origin else 0
                mine = self._logged(frame, seen, subscription.prefix)
                rows += [(row, place) for row in mine[:-1]]
                place = place[0] + 1, vv
                rows += [(row, place) for row in mine[-1:]]
        if position >= end:
            self._join(subscription)
            return rows, None
        return rows, position

    def _logged(self, frame: Frame, seen: int, prefix: str) -> list[Row]:
        """What a frame of the log touched after `seen`, with what is visible by now.

        Registers that were put, by far the most common, are looked up together: a watcher that catches up takes what it follows along with
        it if a change costs more than it does live, and one that was cut for being slow is then cut again.
        """
        frame.trust()
        puts = frame.puts()
        if puts is None:
            return [self.row(t) for t in touched_by(frame) if t.seq > seen and t.key.startswith(prefix)]
        mine = [put for put in zip(puts.slots, puts.keys, puts.seqs, puts.hlcs, strict=True) if put[2] > seen and put[1].startswith(prefix)]
        values, origin = self._reader.values([slot for slot, _, _, _ in mine]), frame.origin
        return [
            [key, "register", None, "delete" if value is None else "put", value, origin, seq, hlc, ""]
            for (_, key, seq, hlc), value in zip(mine, values, strict=True)
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription._end()
        self._subscriptions = []
        self.active = False


class Subscription:
    """One watcher's feed. `drain` gives the rows of changes (see `Change.to_row`) that have gathered; thread-safe.

    Attributes:
        seen_seq: this replica's own commits up to here were seen before it began.
        unlogged: `Machine.unlogged` when it began.
        overflowed: it was too slow: what `drain` still gives is the last, `last_token` says where to resume.
    """

    def __init__(
        self,
        watches: Watches,
        lock: threading.RLock,
        prefix: str,
        position: int | None,
        limit: int,
        notify: Callable[[], None] | None,
        seen_seq: int,
    ) -> None:
        self._watches = watches
        self.seen_seq = seen_seq
        self._lock = lock
        self.prefix = prefix
        self._position = position
        self._limit = limit
        self._notify = notify
        self.unlogged = watches._machine.unlogged
        self._queue: deque[tuple[Row, Place]] = deque()
        self._news = threading.Condition()
        self._is_awaited = False
        """Somebody waits, or has waited, in `changes`."""
        self._closed = False
        self.overflowed = False
        self.last_token: str | None = None

    def on_change(self, notify: Callable[[], None]) -> None:
        """Call back, on any thread, whenever there is more to drain."""
        self._notify = notify
        if self._queue or self._position is not None:
            notify()

    @property
    def is_live(self) -> bool:
        """It has caught up with the log: `drain` takes what was pushed, and reads nothing."""
        return self._position is None

    def _push(self, rows: list[tuple[Row, Place]]) -> None:
        prefix = self.prefix
        mine = [pair for pair in rows if pair[0][0].startswith(prefix)] if prefix else rows
        if not mine or self.overflowed:
            return
        if len(self._queue) + len(mine) > self._limit:
            self.overflowed = True
            self._watches.cut += 1
        else:
            # A copy each: the token is written into the row.
            self._queue.extend((list(row), place) for row, place in mine)
        self._wake()

    def _end(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._notify is not None:
            self._notify()
        if self._is_awaited:
            with self._news:
                self._news.notify_all()

    def drain(self, limit: int | None = None) -> list[Row]:
        """What has gathered, at most `limit` rows; [] if nothing has."""
        while self._position is not None and not self._queue:
            with self._lock:
                found, self._position = self._watches.catch_up(self, self._position)
                # What became live while the lock was held comes after what was caught up.
                self._queue.extendleft(reversed(found))
        if self._position is not None and self._notify is not None:
            self._notify()  # there is more to catch up with
        queue = self._queue
        rows: list[Row] = []
        last: Place | None = None
        token = ""
        while queue and (limit is None or len(rows) < limit):
            row, place = queue.popleft()
            if place is not last:
                token, last = self._watches.token(*place), place
            row[-1] = token
            rows.append(row)
        if rows:
            self.last_token = rows[-1][-1]
        return rows

    def changes(self, timeout: float | None) -> Iterator[Change]:
        """The blocking form: ends after `timeout` seconds of silence, when the store closes, or with an error."""
        try:
            while True:
                rows = self.drain()
                for row in rows:
                    yield Change.from_row(row)
                if rows:
                    continue
                if self.overflowed:
                    raise OverloadedError(
                        f"more than {self._limit:,} changes waited for this watcher: resume with watch(since=error.details['token'])",
                        limit=self._limit,
                        token=self.last_token,
                    )
                if self._closed:
                    raise StoreClosedError("the store was closed")
                self._is_awaited = True  # before it is looked at whether anything came
                with self._news:
                    if self._idle() and not self._news.wait(timeout):
                        return
        finally:
            self.close()

    def _idle(self) -> bool:
        return not (self._queue or self._closed or self.overflowed)

    def close(self) -> None:
        """End it. Idempotent."""
        with self._lock:
            self._watches._leave(self)
