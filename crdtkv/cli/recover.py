"""`crdtkv recover`: the way out of a fork, and of any directory whose own writes cannot be merged any more."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crdtkv.cli.errors import DONE
from crdtkv.cli.output import counted, emit, from_json, to_json
from crdtkv.cli.place import Place, where_options
from crdtkv.cli.usage import Group
from crdtkv.errors import ConfigError, CorruptionError, CrdtkvError, InvalidValueError

if TYPE_CHECKING:
    from crdtkv.client import Client
    from crdtkv.client.batch import Batch
    from crdtkv.core.causality import Origin


@click.group(cls=Group, no_args_is_help=True)
def recover() -> None:
    """Save what a directory wrote that the cluster will not take: one branch of a fork, a removed region.

    `export` tells it as operations, one commit a line, to be read and edited; `reissue` does them again, under a new name.
    """


@recover.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--since", "points", multiple=True, metavar="ORIGIN:SEQ", help="Only what came after this commit; once for each origin.")
@click.option("--out", "file", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="A file; default: stdout.")
def export(directory: Path, points: tuple[str, ...], file: Any) -> int:
    """Write what the region of DIRECTORY wrote there, as JSON, one commit a line. Its node must be stopped; nothing is changed."""
    from crdtkv.store.recovering import own_commits

    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory: name the data directory of a stopped node", setting="directory")
    count = 0
    for commit in own_commits(directory, _since(points)):
        operations = [
            {name: to_json(value) if name in ("value", "field") else value for name, value in op._asdict().items() if value is not None}
            for op in commit.operations
        ]
        for op, told in zip(commit.operations, operations, strict=True):
            if op.name in ("put", "put_field", "add", "remove"):
                told["value"] = to_json(op.value)  # None is a value
            if op.name == "increment":
                told["amount"] = op.amount
        file.write(json.dumps({"origin": commit.origin, "seq": commit.seq, "hlc": commit.hlc, "operations": operations}) + "\n")
        count += 1
    file.write("")  # it opens at the first write: with nothing to tell, a file of that name would keep what it held before
    is_stdout = getattr(file, "name", "-") in ("-", "<stdout>")
    click.echo(f"{counted(count, 'commit')} written{'' if is_stdout else f' to {file.name}'}", err=is_stdout)
    return DONE


@recover.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
@where_options
def reissue(place: Place, file: Any) -> int:
    """Do the operations in FILE again, commit by commit, as new writes of the node that is named.

    They are new: they win or lose against what was written meanwhile like any write made now. Each has a request id of its own, so
    a run that broke off may be repeated within ten minutes: what was done is not done twice, and is told apart from what is new.
    """
    with place.connect() as client:
        commits = list(_read(file, client))  # all of it is checked before anything is done
        before = client.vv()
        new, again, void = 0, 0, 0
        for name, operations in commits:
            batch = _batch(client, operations)
            batch.request_id = hashlib.blake2b(f"reissue {name}".encode(), digest_size=16).digest()
            with batch:
                pass
            if batch.commit is None:
                void += 1
            elif before.covers(batch.commit.dot):  # the node knew the request
                again += 1
            else:
                new += 1
    told = f"{counted(new, 'commit')} re-issued at {place.endpoints[0]}"
    if again:
        told += f"; {again} done before"
    if void:
        told += f"; {void} without effect"
    emit(told)
    return DONE


def _since(points: tuple[str, ...]) -> dict[Origin, int]:
    from crdtkv.core.causality import SEQ_MAX, check_origin

    found: dict[Origin, int] = {}
    for point in points:
        origin, colon, seq = point.rpartition(":")
        if not colon or not seq.isascii() or not seq.isdigit() or len(seq) > len(str(SEQ_MAX)):
            raise ConfigError(f"--since: {point!r} is not ORIGIN:SEQ, for example us@1-9f3c2a1b:80", setting="since")
        try:
            name = check_origin(origin)
        except CorruptionError as e:
            raise ConfigError(f"--since: {e}; it names a replica, for example us@1-9f3c2a1b:80", setting="since") from e
        if name in found:
            raise ConfigError(f"--since: {name} is named twice, up to {found[name]} and up to {seq}", setting="since")
        found[name] = int(seq)
    return found


def _read(file: Any, client: Client) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The commits in a file: the name of each, and what it did."""
    lines: dict[str, int] = {}
    for number, line in enumerate(file, 1):
        where = f"{file.name}, line {number}"
        if not line.strip():
            continue
        try:
            commit = json.loads(line)
            name = f"{commit['origin']}:{int(commit['seq'])}"
            if name in lines:
                raise InvalidValueError(f"commit {name} stands in line {lines[name]} already", field="seq")
            lines[name] = number
            operations = commit["operations"]
            for op in operations:
                if op["name"] not in _CALLS:
                    raise InvalidValueError(f"operation {op['name']!r} is not one of {', '.join(_CALLS)}", field="name")
                if op["name"] == "increment" and op["amount"] is None:
                    raise InvalidValueError(
                        f"the amount added to {op['key']!r} is unknown, since the log lacked the increment before: write it in, "
                        "or drop the operation",
                        field="amount",
                    )
            _batch(client, operations)
        except InvalidValueError as e:
            raise InvalidValueError(f"{where}: {e}", **e.details) from e
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, CrdtkvError) as e:
            raise InvalidValueError(f"{where}: not a commit as `crdtkv recover export` writes it: {_wrong(e)}", field="file") from e
        yield name, operations


def _wrong(error: Exception) -> str:
    """What is wrong with a line."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _ttl(op: dict[str, Any]) -> float | None:
    """Seconds left of an expiry; 0 or less: it has passed."""
    expires_ms = op.get("expires_ms")
    if not isinstance(expires_ms, int | float | None):
        raise InvalidValueError(f"expires_ms: must be milliseconds since 1970, got {expires_ms!r}", field="expires_ms")
    return None if expires_ms is None else expires_ms / 1000 - time.time()


def _batch(client: Client, operations: list[dict[str, Any]]) -> Batch:
    """The operations of one commit, nothing of them sent; without those whose expiry has passed."""
    batch = client.batch()
    for op in operations:
        ttl = _ttl(op)
        if ttl is None or ttl > 0:
            _CALLS[op["name"]](batch, op, ttl)
    return batch


_CALLS: dict[str, Any] = {
    "put": lambda b, op, ttl: b.put(op["key"], from_json(op["value"]), ttl=ttl),
    "delete": lambda b, op, ttl: b.delete(op["key"]),
    "add": lambda b, op, ttl: b.set(op["key"]).add(from_json(op["value"]), ttl=ttl),
    "remove": lambda b, op, ttl: b.set(op["key"]).discard(from_json(op["value"])),
    "clear_set": lambda b, op, ttl: b.set(op["key"]).clear(),
    "put_field": lambda b, op, ttl: b.map(op["key"]).put(from_json(op["field"]), from_json(op["value"]), ttl=ttl),
    "delete_field": lambda b, op, ttl: b.map(op["key"]).delete(from_json(op["field"])),
    "clear_map": lambda b, op, ttl: b.map(op["key"]).clear(),
    "increment": lambda b, op, ttl: b.counter(op["key"]).increment(op["amount"]),
    "reset": lambda b, op, ttl: b.counter(op["key"]).reset(),
}
