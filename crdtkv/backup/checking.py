"""Checking a backup without restoring it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from crdtkv import interrupts
from crdtkv.backup.manifest import FULL, Manifest, chain, chosen, manifests
from crdtkv.backup.reading import read_chunks, read_frames
from crdtkv.backup.target import Target
from crdtkv.core.causality import Origin
from crdtkv.core.load import Loader
from crdtkv.errors import CorruptionError


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read. `replayed`: the frames were applied too, and gave the digest."""

    manifests: tuple[Manifest, ...]
    records: int
    frames: int
    bytes: int
    replayed: bool


def verify(target: Target, id: str | None = None, *, replay: bool = False) -> Checked:
    """Read a backup (default: the newest) and all that it continues: every checksum, every record, the digest of the full one, and that
    the frames continue each origin's history, hash by hash, up to exactly the vector of the manifest.

    Args:
        replay: also apply the frames, in a scratch directory, and compare the digest that they lead to.
    Raises:
        CorruptionError: something is not as it was written; names the file.
    """
    found = manifests(target)
    line = chain(found, chosen(found, id, target), target)
    records = frames = 0
    last: dict[Origin, tuple[int, bytes]] = {}
    for manifest in line:
        if manifest.kind == FULL:
            records += _check_state(target, manifest)
            last = {origin: (seq, manifest.hashes[origin]) for origin, seq in manifest.vv.items()}
        else:
            frames += _check_frames(target, manifest, last)
    if replay and frames:
        from crdtkv.backup.restoring import restore  # restoring checks too, by loading

        with interrupts.held(), tempfile.TemporaryDirectory(prefix="crdtkv-verify-") as scratch:
            restore(target, Path(scratch) / "data", region="scratch", id=line[-1].id)
    return Checked(tuple(line), records, frames, sum(m.size for m in line), replay)


def _check_state(target: Target, manifest: Manifest) -> int:
    loader = Loader(manifest.vv)
    for flat in read_chunks(target, manifest):
        loader.take(flat)
    if loader.slots != manifest.records or f"{loader.digest:032x}" != manifest.digest:
        raise CorruptionError(
            f"{target}/{manifest.id}: {loader.slots} records of digest {loader.digest:032x}, the manifest says {manifest.records} of "
            f"{manifest.digest}: use another backup"
        )
    return loader.slots


def _check_frames(target: Target, manifest: Manifest, last: dict[Origin, tuple[int, bytes]]) -> int:
    count = 0
    for frame in read_frames(target, manifest):
        frame.rows()
        seq, known = last.get(frame.origin, (0, b""))
        covered = all(last.get(o, (0, b""))[0] >= n for o, n in frame.context.items())
        if frame.first_seq != seq + 1 or frame.previous != known or not covered:
            raise CorruptionError(f"{target}/{manifest.id}: the frame {frame.origin}:{frame.first_seq} does not follow what is before it")
        last[frame.origin] = (frame.last_seq, frame.hash)
        count += 1
    if last != {origin: (seq, manifest.hashes[origin]) for origin, seq in manifest.vv.items()}:
        raise CorruptionError(f"{target}/{manifest.id}: its frames do not lead to the vector and hashes of its manifest")
    return count
