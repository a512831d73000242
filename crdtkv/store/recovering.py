"""What a directory's own replica wrote, read back from its log as operations: for a branch of a fork that was given up.

Commits are named by the dots that another branch has given to other writes, so they cannot be merged; what they did can be done
again, under a new name. Effects are told as calls: a counter's cumulative totals become amounts, an expiry by another's
removal is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crdtkv.core.causality import Origin, VersionVector, check_origin, region_of
from crdtkv.core.codec import decode_value
from crdtkv.core.frame import DeltaKind, Frame
from crdtkv.errors import ConfigError, CorruptionError, StorageError
from crdtkv.storage.lock import DirectoryLock
from crdtkv.storage.log import FileLog

READ_BYTES = 1 << 20


class Operation(NamedTuple):
    """One call. `amount` of an increment is None where the log no longer has the one before it."""

    name: str
    key: str
    value: Any = None
    field: Any = None
    amount: int | None = None
    expires_ms: int | None = None


class OwnCommit(NamedTuple):
    """One commit of the directory's region."""

    origin: Origin
    seq: int
    hlc: int
    operations: tuple[Operation, ...]


def own_commits(directory: Path, since: Mapping[Origin, int]) -> Iterator[OwnCommit]:
    """What the region of a directory wrote there, under any of its ids, beyond `since`, in the order written.

    The directory's store must be closed; nothing in it changes but that a torn end of its log is cut off, as at any opening.

    Raises:
        ConfigError: `since` names what was not written there, before anything is told.
        StoreLockedError: the directory is in use. CorruptionError: its log is damaged.
        StorageError: it is no data directory, or its log no longer reaches back to `since`.
    """
    region, origin = _identity(directory)
    with DirectoryLock(directory):
        log = FileLog(directory / "log")
        try:
            written = {origin: 0} | {o: n for o, n in log.vv().items() if region_of(o) == region}
            _check_written(directory, since, written)
            after = VersionVector(since)
            floor = {o: n for o, n in log.floor().items() if region_of(o) == region and n > after.seq(o)}
            if floor:
                raise StorageError(
                    f"the log in {directory} begins after {VersionVector(floor)}: what was written before cannot be told any more; give "
                    "--since at or after that",
                    path=str(directory),
                )
            totals: dict[tuple[str, str, int], int] = {}
            position = log.start()
            while position < log.end():
                frames, position = log.read(position, bytes_max=READ_BYTES)
                for frame in frames:
                    if region_of(frame.origin) == region:
                        yield from _commits(frame, after, totals)
        finally:
            log.close()


def _check_written(directory: Path, since: Mapping[Origin, int], written: Mapping[Origin, int]) -> None:
    """Refuse a point that is not in the directory: a slip in it would tell too much, or nothing, and be written twice, or lost."""
    for origin, seq in since.items():
        if origin not in written:
            known = ", ".join(f"{o} (up to {n})" for o, n in written.items())
            raise ConfigError(f"--since: {origin} wrote nothing in {directory}; what was written there is of {known}", setting="since")
        if seq > written[origin]:
            raise ConfigError(f"--since: {directory} has {origin} only up to {written[origin]}, not up to {seq}", setting="since")


def _identity(directory: Path) -> tuple[str, Origin]:
    """The region of a data directory, and the id it writes under."""
    path = directory / "replica.json"
    try:
        document = json.loads(path.read_bytes())
        return str(document["region"]), check_origin(document["origin"])
    except FileNotFoundError as e:
        raise StorageError(f"{directory} is not a data directory: it has no {path.name}", path=str(directory)) from e
    except (ValueError, KeyError, TypeError, RecursionError, CorruptionError) as e:
        raise CorruptionError(f"{path} is damaged", path=str(path)) from e


def _commits(frame: Frame, since: VersionVector, totals: dict[tuple[str, str, int], int]) -> Iterator[OwnCommit]:
    for seq, hlc, _, deltas in frame.commits():
        operations = tuple(op for delta in deltas if (op := _operation(frame.origin, seq, delta, totals)) is not None)
        if operations and not since.covers((frame.origin, seq)):
            yield OwnCommit(frame.origin, seq, hlc, operations)


def _operation(origin: Origin, seq: int, delta: list[Any], totals: dict[tuple[str, str, int], int]) -> Operation | None:
    kind, key, *rest = delta
    match kind:
        case DeltaKind.REGISTER_PUT:
            return Operation("put", key, decode_value(rest[0]), expires_ms=rest[1] if len(rest) > 1 else None)
        case DeltaKind.REGISTER_DELETE:
            return Operation("delete", key)
        case DeltaKind.SET_ADD:
            return Operation("add", key, decode_value(rest[0]), expires_ms=rest[1] if len(rest) > 1 else None)
        case DeltaKind.SET_REMOVE:
            return Operation("remove", key, decode_value(rest[0]))
        case DeltaKind.SET_CLEAR:
            return Operation("clear_set", key)
        case DeltaKind.MAP_PUT:
            return Operation("put_field", key, decode_value(rest[1]), rest[0], expires_ms=rest[2] if len(rest) > 2 else None)
        case DeltaKind.MAP_DELETE:
            return Operation("delete_field", key, field=rest[0])
        case DeltaKind.MAP_CLEAR:
            return Operation("clear_map", key)
        case DeltaKind.COUNTER_RESET:
            return Operation("reset", key)
        case DeltaKind.COUNTER_ADD:
            run, total = rest
            before = 0 if run == seq else totals.get((origin, key, run))
            totals[origin, key, run] = total
            return Operation("increment", key, amount=None if before is None else total - before)
        case _:
            return None  # an expiry, which the others remove as well; membership, which is not this region's to repeat
