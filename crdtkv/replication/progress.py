"""What is on its way: the own frames that may leave, and the two streams of frames of one link, seen from each end.

Three ideas, kept apart:

- *Window*: how many messages of frames are on their way. It is clocked by the receiver having dealt with a message
  (applied its frames or held them) and scaled to the round trip, so that a far peer is not stalled, and for one that
  falls behind what is written gathers into few large messages. It bounds delay, not memory.
- *Pace*: on a far link, how soon one message follows another: a small part of the round trip, so that what is written gathers
  and adds little to a delay that is there anyway. Who pays is the CPU of both sides: a message costs the same whatever it holds.
- *Acks* are gathered for the same reason: one per message would double the number of messages. The receiver tells at once what many
  messages or bytes it dealt with, and the rest a few ms later (`AckTimer`), with frames of its own if there are any. The
  smallest window holds twice as many messages as one ack tells of, so a sender never waits for an ack that waits for more.
- *Credit*: how many bytes of frames the receiver will take, as a total since the hello. It is granted anew as frames
  become part of the state, so it bounds what one peer can make another hold. Own and relayed frames have separate
  credit: with one for both, held own frames could use up what the relayed frames that they wait for need.
- *Order*: each stream is in the order of the sender's log. The first frame of that log that the receiver has not applied
  rests only on frames before it, which are applied; it is the first one not applied of its stream, so everything before
  it in its stream has given its credit back, and it can be sent. Hence no wait of the one stream blocks the other.

`OwnTail` reads what is released of the log once, for all peers; a peer that is further behind reads the log itself.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from crdtkv.core.causality import VersionVector
from crdtkv.core.frame import FRAME_BYTES_MAX, Frame
from crdtkv.errors import TokenExpiredError
from crdtkv.replication.port import ReplicaPort
from crdtkv.replication.settings import ReplicationSettings

if TYPE_CHECKING:
    from crdtkv.storage.log import LogReader

MARKS_MAX: Final = 4_096
"""Points in time kept to tell how far behind a peer is; beyond it every other one is forgotten."""
READ_BYTES: Final = 1 << 20
"""One read of the log, at most."""
READ_BYTES_MIN: Final = 64 << 10
"""And at least: what is read and not picked is read again for the next message."""
TIMER_MS: Final = 0.5
"""What is due within so long is due: event loops count whole ms, so a timer may end early, and another one for the rest costs a turn."""


def pick(
    log: LogReader,
    cursor: int,
    until: int,
    wanted: Callable[[Frame], bool],
    *,
    bytes_max: int,
    frames_max: int,
    credit: int,
    read_bytes_max: int,
) -> tuple[list[Frame], int]:
    """The next wanted frames in log order from `cursor` on, and the position after what was looked at.

    At most `bytes_max`, unless a single frame is longer; never more than `credit`.

    Raises:
        TokenExpiredError: the log no longer reaches back to `cursor`.
    """
    picked: list[Frame] = []
    size = looked_at = 0
    bytes_max = min(bytes_max, credit)
    while cursor < until and looked_at < read_bytes_max:
        if picked and size + picked[-1].size > bytes_max:
            break  # the next one is likely to be as large: it would be read, and read again for the next message
        frames, following = log.read(cursor, bytes_max=min(READ_BYTES, max(bytes_max - size, READ_BYTES_MIN)), until=until)
        if not frames:
            break
        for index, frame in enumerate(frames):
            looked_at += frame.size
            if not wanted(frame):
                continue
            size += frame.size
            if (size > bytes_max and (picked or frame.size > credit)) or len(picked) == frames_max:
                return picked, cursor + index
            picked.append(frame)
        cursor = following
    return picked, cursor


class OwnTail:
    """The newest own frames that may leave, and when which seq was released. One per replica, shared by its peers.

    Invariant: `_frames` are consecutive own frames, the last one ending at `last_seq`; `_ends[i]` is the total size up to
    and with frame i. Amortised cost per own frame: one append each.
    """

    def __init__(self, port: ReplicaPort, settings: ReplicationSettings, now_ms: float) -> None:
        self._port = port
        self._bytes_max = settings.tail_bytes_max
        self._position = port.released()
        self._frames: list[Frame] = []
        self._seqs: list[int] = []
        self._ends: list[int] = []
        self.last_seq = self._released_seq()
        """The last own seq that may leave."""
        self._total = 0
        self._marks: list[tuple[int, float, int]] = [(self.last_seq, now_ms, 0)]

    def _released_seq(self) -> int:
        """The own seq up to which frames may leave, found by looking at what follows in the log."""
        port, position = self._port, self._position
        end = port.log.end()
        while position < end:
            frames, following = port.log.read(position, bytes_max=READ_BYTES, until=end)
            for frame in frames:
                if frame.origin == port.origin:
                    return frame.first_seq - 1
            if not frames:
                break
            position = following
        return port.vv().seq(port.origin)

    @property
    def is_at_end(self) -> bool:
        """Nothing was logged since `refresh` that had not been released by then."""
        return self._position == self._port.log.end()

    def refresh(self, now_ms: float) -> bool:
        """Take in what was released since; whether there was an own frame in it."""
        released = self._port.released()
        if self._position >= released:
            return False
        log, origin, before = self._port.log, self._port.origin, self.last_seq
        if (at_hand := min(released, log.at_hand())) > self._position:
            self._begin_at(at_hand, now_ms)
        while self._position < released:
            try:
                frames, following = log.read(self._position, bytes_max=READ_BYTES, until=released)
            except TokenExpiredError:
                # The log dropped frames before they were looked at here. Peers find that out by its floor.
                self._clear()
                self._position = log.start()
                continue
            if not frames:
                break
            for frame in frames:
                if frame.origin == origin and frame.last_seq > self.last_seq:
                    if frame.first_seq != self.last_seq + 1:
                        self._clear()
                    self._total += frame.size
                    self._frames.append(frame)
                    self._seqs.append(frame.last_seq)
                    self._ends.append(self._total)
                    self.last_seq = frame.last_seq
            self._position = following
        if self.last_seq == before:
            return False
        self._trim()
        self._marks.append((self.last_seq, now_ms, self._total))
        if len(self._marks) > MARKS_MAX:
            del self._marks[1:-1:2]
        return True

    def _begin_at(self, position: int, now_ms: float) -> None:
        """Go on where the log is in memory: nobody was there to send to, and to read all of it from the disk, to keep the last of it,
        would hold up whoever is there now. Peers that lack more read it themselves."""
        self._clear()
        self._position = position
        self.last_seq = self._released_seq()
        self._marks = [(self.last_seq, now_ms, self._total)]

    def _clear(self) -> None:
        self._frames, self._seqs, self._ends = [], [], []

    def _trim(self) -> None:
        """Forget the oldest frames, in chunks, beyond the limit."""
        excess = self._total - self._bytes_max
        if self._ends and self._ends[0] <= excess:
            keep_from = bisect_right(self._ends, excess + self._bytes_max // 4)
            keep_from = min(keep_from, len(self._ends) - 1)
            del self._frames[:keep_from], self._seqs[:keep_from], self._ends[:keep_from]

    def after(self, seq: int, *, bytes_max: int, frames_max: int, credit: int) -> list[Frame] | None:
        """The next own frames after `seq`, limited as by `pick`; None if only the log reaches back so far."""
        if seq >= self.last_seq:
            return []
        if not self._frames or self._frames[0].first_seq > seq + 1:
            return None
        first = bisect_right(self._seqs, seq)
        start = self._ends[first] - self._frames[first].size
        stop = bisect_right(self._ends, start + min(bytes_max, credit), first)
        if stop == first and self._frames[first].size <= credit:
            stop = first + 1
        return self._frames[first : min(stop, first + frames_max)]

    def behind_bytes(self, seq: int) -> int | None:
        """How many bytes of own frames were released after `seq`; None: more than is remembered."""
        if seq >= self.last_seq:
            return 0
        index = bisect_right(self._marks, (seq, float("inf"), 0)) - 1
        return None if index < 0 else self._total - self._marks[index][2]

    def behind_ms(self, seq: int, now_ms: float) -> float:
        """How long ago the oldest own commit after `seq` was released; at least that, if it is older than what is remembered."""
        if seq >= self.last_seq:
            return 0.0
        index = bisect_right(self._marks, (seq, float("inf"), 0))
        return max(0.0, now_ms - self._marks[min(index, len(self._marks) - 1)][1])


class Outgoing:
    """One stream of frames, at its sender: what was sent, what may be.

    Invariant: `acked_messages <= sent_messages`, `sent_bytes <= granted_bytes`; `_sizes` are those of the messages in flight.
    """

    __slots__ = (
        "_flight_max", "_pace_ms", "_scaled_to", "_sizes", "_window", "acked_messages", "flushed_ms", "granted_bytes", "in_flight_bytes",
        "sent_bytes", "sent_messages", "settings", "sharers",
    )  # fmt: skip

    def __init__(self, settings: ReplicationSettings) -> None:
        self.settings = settings
        self.sharers = 1
        """How many peers are sent such a stream."""
        self.granted_bytes = 0
        self.sent_bytes = 0
        self.sent_messages = 0
        self.acked_messages = 0
        self.in_flight_bytes = 0
        self._sizes: deque[int] = deque()
        self.flushed_ms = float("-inf")
        self._scaled_to: tuple[float | None, int] = None, 0
        """The round trip and the sharers that what follows was last worked out for: it is asked for several times in every turn."""
        self._window, self._flight_max, self._pace_ms = 1, 0, 0.0

    @property
    def credit(self) -> int:
        return self.granted_bytes - self.sent_bytes

    @property
    def in_flight(self) -> int:
        return self.sent_messages - self.acked_messages

    def window(self, round_trip_ms: float | None) -> int:
        """How many messages may be on their way. One while the round trip is not yet known."""
        self._scale(round_trip_ms)
        return self._window

    def has_room(self, round_trip_ms: float | None) -> bool:
        """Whether another message may leave: all that is on its way is less than `flight_bytes_max` (or `…_far_max`), and that last one."""
        self._scale(round_trip_ms)
        in_flight = self.sent_messages - self.acked_messages
        return in_flight < self._window and self.granted_bytes > self.sent_bytes and self.in_flight_bytes < self._flight_max

    def flush_due_ms(self, round_trip_ms: float | None) -> float:
        """When the next message may leave, as far as pace goes."""
        self._scale(round_trip_ms)
        return self.flushed_ms + self._pace_ms

    def pace_ms(self, round_trip_ms: float | None) -> float:
        """The least time between two messages that are not full: on a short link they may follow each other at once."""
        self._scale(round_trip_ms)
        return self._pace_ms

    def _scale(self, round_trip_ms: float | None) -> None:
        if self._scaled_to == (round_trip_ms, self.sharers):
            return
        self._scaled_to = round_trip_ms, self.sharers
        settings = self.settings
        if round_trip_ms is None or round_trip_ms < settings.round_trip_short_ms:
            self._pace_ms, self._flight_max = 0.0, settings.flight_bytes_max
            self._window = 1 if round_trip_ms is None else min(settings.window_messages_max, settings.window_messages_min)
            return
        paced_ms = max(round_trip_ms / settings.flushes_per_round_trip, settings.flush_ms * self.sharers)
        self._pace_ms, self._flight_max = min(paced_ms, settings.flush_ms_max), settings.flight_bytes_far_max
        more = math.ceil(round_trip_ms / max(self._pace_ms, 1.0))
        self._window = min(settings.window_messages_max, settings.window_messages_min + more)

    def sent(self, size: int, now_ms: float, *, more: bool) -> None:
        """A message leaves. `more`: it was full, so the next one need not wait for anything to gather."""
        self.sent_bytes += size
        self.sent_messages += 1
        self.in_flight_bytes += size
        self._sizes.append(size)
        self.flushed_ms = float("-inf") if more else now_ms
        assert self.sent_bytes <= self.granted_bytes

    def ack(self, messages: int) -> bool:
        """Take in the receiver's count; whether it is possible."""
        if not self.acked_messages <= messages <= self.sent_messages:
            return False
        for _ in range(messages - self.acked_messages):
            self.in_flight_bytes -= self._sizes.popleft()
        self.acked_messages = messages
        return True

    def grant(self, total: int) -> bool:
        """Take in a grant; whether it is possible: grants never decrease."""
        if total < self.granted_bytes:
            return False
        self.granted_bytes = total
        return True


class AckTimer:
    """When the next ack is due: soon after something is to be told, at once when that is much."""

    __slots__ = ("_bytes", "_messages", "_settings", "delay_ms", "due_ms")

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings
        self.delay_ms: float = settings.ack_delay_ms
        """How soon. The session makes it longer on a far link."""
        self.due_ms = float("inf")
        self._messages = self._bytes = 0

    @property
    def is_pending(self) -> bool:
        """Whether anything is to be told."""
        return self.due_ms < float("inf")

    def note(self, now_ms: float) -> None:
        """Something is to be told."""
        if (due_ms := now_ms + self.delay_ms) < self.due_ms:
            self.due_ms = due_ms

    def settled(self, size: int, now_ms: float) -> None:
        """A message of so many bytes was dealt with."""
        self.note(now_ms)
        self._messages += 1
        self._bytes += size
        if self._messages >= self._settings.ack_messages or self._bytes >= self._settings.ack_bytes:
            self.due_ms = now_ms

    def sent(self) -> None:
        """All was told."""
        self.due_ms = float("inf")
        self._messages = self._bytes = 0


class Incoming:
    """One stream of frames, at its receiver: what came and is not yet part of the state, what was granted.

    Invariant: `freed_bytes` + the sizes in `waiting` = `received_bytes` <= `granted_bytes`.
    """

    __slots__ = (
        "_grant_step", "freed_bytes", "grant_due", "granted_bytes", "received_bytes", "received_messages", "settled_messages", "waiting",
        "window_bytes",
    )  # fmt: skip

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self._grant_step = max(1, window_bytes // 4)
        self.granted_bytes = window_bytes
        self.grant_due = False
        """A grant is told in quarters: then a sender that has all but that can still send the largest frame."""
        self.received_bytes = 0
        self.received_messages = 0
        self.settled_messages = 0
        self.freed_bytes = 0
        self.waiting: deque[tuple[Frame, float]] = deque()
        """Frames in order of arrival, with the time of arrival; the first is not applied."""

    def take(self, size: int) -> bool:
        """Count a message; whether the sender had the credit for it."""
        self.received_bytes += size
        self.received_messages += 1
        return self.received_bytes <= self.granted_bytes

    def wait_for(self, frames: Iterable[Frame], now_ms: float) -> None:
        """These, of a message taken, are to be applied."""
        self.waiting.extend((frame, now_ms) for frame in frames)

    def advance(self, vv: VersionVector) -> None:
        """Give back the credit of what is applied. Amortised O(1) per frame."""
        waiting, seq = self.waiting, vv.seq
        while waiting:
            frame = waiting[0][0]
            if frame.last_seq > seq(frame.origin):
                break
            self._free(self.freed_bytes + frame.size)
            waiting.popleft()

    def forget(self) -> None:
        """What waits was dropped by the replica, and will be sent anew."""
        self._free(self.received_bytes)
        self.waiting.clear()

    def grant(self, total: int) -> None:
        """So much is granted by now."""
        self.granted_bytes = total
        self._free(self.freed_bytes)

    def _free(self, total: int) -> None:
        self.freed_bytes = total
        self.grant_due = total + self.window_bytes - self.granted_bytes >= self._grant_step

    @property
    def unsettled_messages(self) -> int:
        """How many came that were neither applied nor held yet."""
        return self.received_messages - self.settled_messages

    @property
    def next_grant(self) -> int:
        return self.freed_bytes + self.window_bytes if self.grant_due else self.granted_bytes


assert READ_BYTES <= FRAME_BYTES_MAX
