"""Finding and filling holes in the commit log of a directory that nobody has open.

A segment whose middle is damaged still holds what is before and behind the damage. What is missing is known exactly: per origin, the seqs
between the frames that are there, and up to the vector at which the next segment begins. Frames are the same bytes everywhere, each naming
its predecessor by hash; so frames from elsewhere fill a hole as if nothing had been, or they do not fit and are refused.

Nothing is guessed and nothing overwritten: a segment is written anew beside the old one, fsynced, and put in its place; the damaged one
stays as `….log.damaged`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import CorruptionError, StorageError
from crdtkv.storage.engine import HOW_TO_REPLACE
from crdtkv.storage.files import OsFiles, write_all
from crdtkv.storage.segments import (
    SUFFIX,
    Damage,
    encode_header,
    encode_records,
    read_header,
    record_after,
    scan_records,
    segment_name,
    synced_beyond,
)

DAMAGED_SUFFIX: Final = ".damaged"


@dataclass(slots=True)
class Hole:
    """Where frames are missing: before the `index`-th frame of its segment. `offset`: in the file."""

    index: int
    offset: int


@dataclass(slots=True)
class Segment:
    """One file of the log, read through.

    Attributes:
        first: the position of its first frame. before: the vector there.
        frames: those that are readable, in order. holes: where some are missing.
        following: the first position of the next segment, and the vector there; None for the last one.
        is_headless: its header is damaged, and nothing before it tells the vector there: `before` is empty and means nothing.
    """

    path: Path
    first: int
    before: VersionVector
    begun_ms: int
    frames: list[Frame] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    following: tuple[int, VersionVector] | None = None
    is_headless: bool = False

    @property
    def missing(self) -> int | None:
        """How many frames are missing; None where nothing tells."""
        return None if self.following is None else self.following[0] - self.first - len(self.frames)


def examine(directory: Path) -> list[Segment]:
    """Read a log's segments; those that are damaged have holes. A torn end of the last one is no damage. O(log).

    Raises:
        StorageError: the directory cannot be read. IncompatibleFormatError: a later version wrote it.
    """
    found: list[Segment] = []
    files = OsFiles()
    try:
        names = sorted(name for name in files.list(directory) if name.endswith(SUFFIX))
        for name in names:
            found.append(_read(directory / name, found[-1] if found else None, is_last=name == names[-1]))
    except OSError as e:
        raise StorageError(f"cannot read the commit log in {directory}: {e.strerror or e}", path=str(directory)) from e
    for segment, following in pairwise(found):
        segment.following = following.first, following.before
        if segment.missing and not segment.holes:  # cut short, or a file between them is gone
            segment.holes.append(Hole(len(segment.frames), segment.path.stat().st_size))
    return found


def _read(path: Path, previous: Segment | None, *, is_last: bool) -> Segment:
    file = OsFiles().open(path)
    try:
        size = file.size()
        try:
            header = read_header(file, path)
            segment, offset = Segment(path, header.first, header.before, header.begun_ms), header.records_at
        except CorruptionError:
            if not path.stem.isdigit():
                raise CorruptionError(
                    f"{path} is damaged at offset 0, and its name does not tell at which position it begins; {HOW_TO_REPLACE}",
                    path=str(path),
                    offset=0,
                ) from None
            segment = Segment(path, int(path.stem), EMPTY_VV, 0, holes=[Hole(0, 0)])
            if previous is None or previous.holes:
                segment.is_headless = True
            else:
                segment.before = _after(previous.before, previous.frames)
            offset = record_after(file, 0, size) or size
        while offset < size:
            damage: Damage | None = None
            for item in scan_records(file, offset, size):
                if isinstance(item, Damage):
                    damage = item
                else:
                    segment.frames.append(Frame.decode(item[1]))
            if damage is None:
                break
            if is_last and synced_beyond(file, damage.offset, size) <= damage.offset:
                break  # a torn end
            segment.holes.append(Hole(len(segment.frames), damage.offset))
            offset = record_after(file, damage.offset + 1, size) or size
    finally:
        file.close()
    return segment


def _after(before: VersionVector, frames: Iterable[Frame]) -> VersionVector:
    seqs = dict(before.items())
    for frame in frames:
        seqs[frame.origin] = max(frame.last_seq, seqs.get(frame.origin, 0))
    return VersionVector(seqs)


def reach(segment: Segment, known: VersionVector) -> VersionVector:
    """Up to where a segment goes, holes filled: to the vector at which the next begins, or to what its frames and `known` tell."""
    if segment.following is not None:
        return segment.following[1]
    reached = _after(segment.before, segment.frames).join(known)
    for frame in segment.frames:
        reached = reached.join(frame.context)
    return reached


def wanted(segment: Segment, known: VersionVector) -> dict[Origin, list[int]]:
    """Per origin the first seqs after which something is missing up to `reach`, in order: what must be asked for."""
    reached, have = reach(segment, known), _ranges(segment)
    missing: dict[Origin, list[int]] = {}
    for origin, end in reached.items():
        at = segment.before.seq(origin)
        for first, last in have.get(origin, []):
            if first > at + 1:
                missing.setdefault(origin, []).append(at)
            at = max(at, last)
        if at < end:
            missing.setdefault(origin, []).append(at)
    return missing


def _ranges(segment: Segment) -> dict[Origin, list[tuple[int, int]]]:
    have: dict[Origin, list[tuple[int, int]]] = {}
    for frame in segment.frames:
        have.setdefault(frame.origin, []).append((frame.first_seq, frame.last_seq))
    return have


def fill(segment: Segment, offered: Sequence[Frame], known: VersionVector, engine: tuple[int, VersionVector] | None) -> list[Frame]:
    """A segment's frames with its holes filled from frames in some replica's log order; checked, not written.

    Args:
        known: what is known to have been applied here after the segment, if it is the last.
        engine: the position and vector at which the state engine stands: what it covers must stay before that position.
    Raises:
        CorruptionError: the offered frames do not fill the holes, or are of another history; says what is missing.
    """
    reached = reach(segment, known)
    lack = {origin: set(starts) for origin, starts in wanted(segment, known).items()}
    inside = [f for f in offered if f.origin in lack and segment.before.seq(f.origin) < f.first_seq and f.last_seq <= reached.seq(f.origin)]
    present = {(f.origin, f.first_seq) for f in segment.frames}
    pool = [f for f in inside if (f.origin, f.first_seq) not in present]
    filled: list[Frame] = []
    at = dict(segment.before.items())
    hashes: dict[Origin, bytes] = {}

    def take(frame: Frame) -> None:
        if frame.first_seq != at.get(frame.origin, 0) + 1:
            raise CorruptionError(
                f"{segment.path}: {frame.origin}:{at.get(frame.origin, 0) + 1} to {frame.first_seq - 1} are missing, here and elsewhere"
            )
        if frame.origin in hashes and frame.previous != hashes[frame.origin]:
            raise CorruptionError(f"fork: {frame.origin}:{frame.first_seq} does not follow what is before it in {segment.path}")
        at[frame.origin], hashes[frame.origin] = frame.last_seq, frame.hash
        filled.append(frame)

    def is_covered(frame: Frame) -> bool:
        return engine is None or engine[1].covers((frame.origin, frame.last_seq))

    def fill_here(following: Frame | None) -> None:
        """What is ready goes here; but not before frames that the engine has, if the engine has not got it."""
        nonlocal pool
        rest = []
        for frame in pool:
            ready = frame.first_seq == at.get(frame.origin, 0) + 1 and all(at.get(o, 0) >= n for o, n in frame.context.items())
            if ready and (is_covered(frame) or following is None or not is_covered(following)):
                take(frame)
            else:
                rest.append(frame)
        pool = rest

    holes = {hole.index for hole in segment.holes}
    if engine is not None:  # of what may come in any order, first what the engine has
        pool = [f for f in pool if is_covered(f)] + [f for f in pool if not is_covered(f)]
    for index, frame in enumerate(segment.frames):
        if index in holes:
            fill_here(frame)
        take(frame)
    if len(segment.frames) in holes or pool:
        fill_here(None)
    short = {o: n for o, n in reached.items() if at.get(o, 0) < n}
    if short or (segment.missing is not None and len(filled) != segment.following[0] - segment.first):  # type: ignore[index]  # not None then
        raise CorruptionError(
            f"{segment.path}: {VersionVector(short)} is not reached with what was found elsewhere", path=str(segment.path)
        )
    return filled


def rewrite(segment: Segment, frames: Sequence[Frame], *, first: int | None = None, before: VersionVector | None = None) -> Path:
    """Put a segment with these frames in the place of a damaged one, which stays beside it; where it stays.

    Args:
        first, before: another beginning, if what was before it is given up.
    """
    files = OsFiles()
    directory = segment.path.parent
    start, vv = segment.first if first is None else first, segment.before if before is None else before
    path = directory / segment_name(start)
    temporary = path.with_name(path.name + ".tmp")
    kept = segment.path.with_name(segment.path.name + DAMAGED_SUFFIX)
    try:
        file = files.create(temporary)
        try:
            header = encode_header(start, vv, segment.begun_ms)
            write_all(file, header)
            at = len(header)
            for frame in frames:  # all of it is fsynced before it gets its name: so each record may say that what is before it is
                record = encode_records([frame.data], min(at, 0xFFFFFFFF))
                write_all(file, record)
                at += len(record)
            file.sync()
        finally:
            file.close()
        kept.unlink(missing_ok=True)
        os.link(segment.path, kept)
        files.rename(temporary, path)
        if path != segment.path:
            files.remove(segment.path)
        files.sync_directory(directory)
    except OSError as e:
        raise StorageError(f"cannot write {path}: {e.strerror or e}", path=str(path)) from e
    return kept


def give_up_before(segments: Sequence[Segment], engine: tuple[int, VersionVector]) -> tuple[int, list[Path]]:
    """Drop a log's beginning up to its last hole, which the state engine has all of; where it begins then, and the dropped files.

    The log then begins behind the hole: its floor rises, so a peer that lacks what was there must get it elsewhere. Where no frame was lost
    with the header of its first segment, it begins where it did.

    Raises:
        CorruptionError: the engine has not got all of it, so what is missing is needed.
    """
    last = max(n for n, segment in enumerate(segments) if segment.holes)
    segment = segments[last]
    position, vv = engine
    behind = segment.frames[segment.holes[-1].index :]
    ahead = sum(1 for s in segments[last + 1 :] for f in s.frames if vv.covers((f.origin, f.last_seq)))
    covered = sum(1 for f in behind if vv.covers((f.origin, f.last_seq)))
    first = position - ahead - covered
    seqs = dict(vv.items())
    for frame in [f for s in segments[last + 1 :] for f in s.frames][::-1] + behind[::-1]:
        if frame.first_seq - 1 < seqs.get(frame.origin, 0):
            seqs[frame.origin] = frame.first_seq - 1
    before = VersionVector({o: n for o, n in seqs.items() if n > 0})
    exact = segment.following is None or first == segment.following[0] - len(behind)
    rest = [*behind, *(f for s in segments[last + 1 :] for f in s.frames)]
    if not exact or not before <= vv or first < segment.first or not _continues(before, rest):
        raise CorruptionError(
            f"{segment.path}: the state engine stands at log position {position}, before the damage ends, so what is missing is needed: "
            + (HOW_TO_REPLACE if any(s.is_headless for s in segments) else "name a peer that has them with --from"),
            path=str(segment.path),
        )
    kept = [rewrite(segment, behind, first=first, before=before)]
    for old in segments[:last]:
        aside = old.path.with_name(old.path.name + DAMAGED_SUFFIX)
        try:
            os.replace(old.path, aside)
        except OSError as e:
            raise StorageError(f"cannot move {old.path} aside: {e.strerror or e}", path=str(old.path)) from e
        kept.append(aside)
    OsFiles().sync_directory(segment.path.parent)
    return first, kept


def _continues(before: VersionVector, frames: Iterable[Frame]) -> bool:
    """Whether frames follow each other from a vector on."""
    at = dict(before.items())
    for frame in frames:
        if frame.first_seq != at.get(frame.origin, 0) + 1:
            return False
        at[frame.origin] = frame.last_seq
    return True


def hole_texts(segments: Iterable[Segment]) -> Iterator[str]:
    """Where a log is damaged, for people."""
    for segment in segments:
        for hole in segment.holes:
            missing = "" if segment.missing is None else f", {segment.missing} frames missing in the file"
            yield f"{segment.path} at offset {hole.offset}{missing}"
