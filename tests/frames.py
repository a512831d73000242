"""Frames for tests of storage: valid ones of several origins, each with the context and hash that it must have."""

from __future__ import annotations

from collections.abc import Sequence

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, make_origin
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import NO_HASH, DeltaKind, Frame

US = make_origin("us", 1, 0x11111111)
EU = make_origin("eu", 1, 0x22222222)
AP = make_origin("ap", 1, 0x33333333)


class FrameMaker:
    """Makes the next frame of an origin, as one replica would log it: each has seen all that was made before."""

    def __init__(self) -> None:
        self.vv = EMPTY_VV
        self._hashes: dict[Origin, bytes] = {}

    def make(self, origin: Origin = US, *, commits: int = 1, value_bytes: int = 100) -> Frame:
        first = self.vv.seq(origin) + 1
        value = encode_value(b"x" * value_bytes)
        rows = [[index, None, [DeltaKind.REGISTER_PUT, f"key/{first + index}", value]] for index in range(commits)]
        frame = Frame.build("test", 0, origin, first, 1 << 40, self.vv.without(origin), self._hashes.get(origin, NO_HASH), rows)
        self._hashes[origin] = frame.hash
        self.vv = self.vv.advance(origin, frame.last_seq)
        return frame

    def many(self, count: int, origins: Sequence[Origin] = (US, EU, AP), *, value_bytes: int = 100) -> list[Frame]:
        """`count` frames, the origins in turn, of 1 to 3 commits."""
        return [self.make(origins[i % len(origins)], commits=i % 3 + 1, value_bytes=value_bytes) for i in range(count)]

    def skip(self, origin: Origin, seq: int) -> None:
        """As if the commits of `origin` up to `seq` had come by a snapshot."""
        self.vv = self.vv.advance(origin, seq)
        self._hashes[origin] = b"\0" * 16


def vv_of(frames: Sequence[Frame]) -> VersionVector:
    """The version vector of a log that holds `frames`."""
    vv = EMPTY_VV
    for frame in frames:
        vv = vv.advance(frame.origin, frame.last_seq)
    return vv
