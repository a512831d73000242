"""What a message takes of the log."""

from __future__ import annotations

from crdtkv.core.causality import EMPTY_VV, Origin
from crdtkv.core.frame import NO_HASH, Frame
from crdtkv.replication.progress import pick
from crdtkv.storage.memory_log import MemoryLog

US = Origin("us@1-00000001")


class CountingLog(MemoryLog):
    """Counts the frames that were read."""

    frames_read = 0

    def read(self, position: int, *, bytes_max: int, until: int | None = None) -> tuple[list[Frame], int]:
        frames, following = super().read(position, bytes_max=bytes_max, until=until)
        self.frames_read += len(frames)
        return frames, following


def test_frames_of_more_than_half_a_message_were_read_twice() -> None:
    """What did not fit was read for this message and again for the next; the second time, in a log opened with a long backlog, from the
    beginning of its segment: 10 µs a commit instead of 0.4."""
    log, previous, count = CountingLog(), NO_HASH, 20
    for seq in range(1, count + 1):
        frame = Frame.build("c", 0, US, seq, seq, EMPTY_VV, previous, [[0, None, [0, f"k{seq}", b"\xc5\x9c\x40" + bytes(40_000)]]])
        log.append([frame])
        previous = frame.hash
    cursor, sent = 0, 0
    while cursor < log.end():
        picked, cursor = pick(
            log, cursor, log.end(), lambda frame: True, bytes_max=64_000, frames_max=100, credit=1 << 20, read_bytes_max=1 << 22
        )
        assert [frame.first_seq for frame in picked] == [sent + 1]
        sent += 1
    assert log.frames_read == sent == count
