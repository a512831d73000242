"""Reading and writing: put, get, del; sets, counters, maps; scan and watch.

Commands that write say nothing when they succeed, except `incr`, which prints the new value; `-o json` prints the commit. Removing what is
not there ends with status 1.
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import click

from crdtkv.cli.errors import DONE, FAILED
from crdtkv.cli.output import JSON, as_cell, as_text, emit, emit_json, emit_raw, output_option, parse_json, plain, to_json
from crdtkv.cli.place import Place, where_options
from crdtkv.cli.usage import Integer, Number
from crdtkv.errors import KeyNotFoundError, missing_field

if TYPE_CHECKING:
    from crdtkv.client import Client
    from crdtkv.results import Change, Commit

_MISSING: Final = object()
TYPES: Final = ("register", "set", "counter", "map")

ttl_option = click.option("--ttl", type=Number(min=0, min_open=True), metavar="SECONDS", help="Let it expire.")
json_values_option = click.option("--json", "json_values", multiple=True, metavar="VALUE", help="An element as JSON; may be repeated.")


def _one_value(value: str | None, json_value: str | None, as_bytes: bool) -> Any:
    """What a command was given to store: an argument, `--json`, or stdin."""
    if (value is None) == (json_value is None):
        raise click.UsageError("give either VALUE, --json VALUE, or - to read stdin", click.get_current_context())
    if json_value is not None:
        if as_bytes:
            raise click.UsageError('--bytes goes with VALUE or -; in JSON write {"$bytes": base64}', click.get_current_context())
        return parse_json(sys.stdin.read() if json_value == "-" else json_value, "--json")
    assert value is not None
    data = sys.stdin.buffer.read() if value == "-" else value.encode("utf-8", "surrogateescape")
    if as_bytes:
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _elements(texts: tuple[str, ...], json_values: tuple[str, ...]) -> list[Any]:
    elements = [*texts, *(parse_json(text, "--json") for text in json_values)]
    if not elements:
        raise click.UsageError("give at least one element", click.get_current_context())
    return elements


def _commit(commit: Commit | None) -> Any:
    return None if commit is None else plain(commit)


def _wrote(output: str, key: str, commit: Commit | None, **more: Any) -> int:
    if output == JSON:
        emit_json({"key": key, "changed": commit is not None, **more, "commit": _commit(commit)})
    return DONE


def _removed(output: str, key: str, commit: Commit | None, absent: str) -> int:
    if output == JSON:
        emit_json({"key": key, "changed": commit is not None, "commit": _commit(commit)})
        return DONE if commit is not None else FAILED
    if commit is None:
        raise KeyNotFoundError(absent, key=key)
    return DONE


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--json", "json_value", metavar="VALUE", help="The value as JSON; - reads it from stdin.")
@click.option("--bytes", "as_bytes", is_flag=True, help="Store VALUE or stdin as bytes, even if it is text.")
@ttl_option
@click.option("--durability", type=click.Choice(["memory", "async", "sync"]), help="How safe before the answer; default: the node's.")
@output_option
@where_options
def put(
    place: Place,
    key: str,
    value: str | None,
    json_value: str | None,
    as_bytes: bool,
    ttl: float | None,
    durability: str | None,
    output: str,
) -> int:
    """Store a value at KEY: the text VALUE, any value as JSON, or stdin if VALUE is "-".

    What is UTF-8 is stored as a text, anything else as bytes.
    """
    stored = _one_value(value, json_value, as_bytes)
    with place.connect() as client:
        return _wrote(output, key, client.put(key, stored, ttl=ttl, durability=durability))


@click.command()
@click.argument("key")
@output_option
@where_options
def get(place: Place, key: str, output: str) -> int:
    """Print what is stored at KEY, of whatever type.

    Texts and bytes are printed as they are, anything else as JSON. Status 1 if nothing is there.
    """
    with place.connect() as client:
        kind, value = _read(client, key)
    if output == JSON:
        emit_json({"key": key, "found": kind is not None, "type": kind, "value": None if kind is None else to_json(value)})
        return DONE if kind is not None else FAILED
    if kind is None:
        raise KeyNotFoundError(f"nothing is stored at {key!r}", key=key)
    emit_raw(value)
    return DONE


def _read(client: Client, key: str) -> tuple[str | None, Any]:
    """The type and value at a key; of two types, written concurrently, the first in the order of `TYPES`. (None, None) if absent."""
    types = client.types(key)
    kind = next((kind for kind in TYPES if kind in types), None)
    match kind:
        case "register":
            value = client.get(key, _MISSING)
            return (None, None) if value is _MISSING else (kind, value)  # it may have gone since
        case "set":
            return kind, client.set(key).members()
        case "counter":
            return kind, client.counter(key).get()
        case "map":
            return kind, dict(client.map(key).items())
    return None, None


@click.command("del")
@click.argument("key")
@output_option
@where_options
def delete(place: Place, key: str, output: str) -> int:
    """Delete KEY, of whatever type. Status 1 if nothing is there."""
    with place.connect() as client:
        return _removed(output, key, client.delete(key), f"nothing is stored at {key!r}")


@click.command()
@click.argument("key")
@click.argument("elements", nargs=-1, metavar="[ELEMENT]...")
@json_values_option
@ttl_option
@output_option
@where_options
def sadd(place: Place, key: str, elements: tuple[str, ...], json_values: tuple[str, ...], ttl: float | None, output: str) -> int:
    """Add elements to the set at KEY, in one commit."""
    added = _elements(elements, json_values)
    with place.connect() as client:
        return _wrote(output, key, client.set(key).add(*added, ttl=ttl))


@click.command()
@click.argument("key")
@click.argument("elements", nargs=-1, metavar="[ELEMENT]...")
@json_values_option
@output_option
@where_options
def srem(place: Place, key: str, elements: tuple[str, ...], json_values: tuple[str, ...], output: str) -> int:
    """Remove elements from the set at KEY, in one commit. Status 1 if none of them was there."""
    removed = _elements(elements, json_values)
    with place.connect() as client:
        return _removed(output, key, client.set(key).discard(*removed), f"the set {key!r} holds none of them")


@click.command()
@click.argument("key")
@output_option
@where_options
def smembers(place: Place, key: str, output: str) -> int:
    """Print the elements of the set at KEY, one a line; nothing if there is no set."""
    with place.connect() as client:
        members = client.set(key).members()
    if output == JSON:
        emit_json({"key": key, "found": bool(members), "type": "set" if members else None, "value": to_json(members)})
    else:
        for member in members:
            emit(as_text(member))
    return DONE


@click.command(context_settings={"ignore_unknown_options": True})  # so that N may be -5
@click.argument("key")
@click.argument("n", type=Integer(), default=1)
@output_option
@where_options
def incr(place: Place, key: str, n: int, output: str) -> int:
    """Add N (1 unless given; may be negative) to the counter at KEY, and print its value in this region."""
    with place.connect() as client:
        counter = client.counter(key)
        commit = counter.increment(n)
        value = counter.get()
    if output != JSON:
        emit(str(value))
    return _wrote(output, key, commit, value=value)


@click.command()
@click.argument("key")
@click.argument("field")
@click.argument("value", required=False)
@click.option("--json", "json_value", metavar="VALUE", help="The value as JSON; - reads it from stdin.")
@click.option("--bytes", "as_bytes", is_flag=True, help="Store VALUE or stdin as bytes, even if it is text.")
@ttl_option
@output_option
@where_options
def hset(
    place: Place, key: str, field: str, value: str | None, json_value: str | None, as_bytes: bool, ttl: float | None, output: str
) -> int:
    """Store a value in FIELD of the map at KEY; VALUE as for put."""
    stored = _one_value(value, json_value, as_bytes)
    with place.connect() as client:
        return _wrote(output, key, client.map(key).put(field, stored, ttl=ttl), field=field)


@click.command()
@click.argument("key")
@click.argument("field")
@output_option
@where_options
def hget(place: Place, key: str, field: str, output: str) -> int:
    """Print FIELD of the map at KEY. Status 1 if it is not there."""
    with place.connect() as client:
        value = client.map(key).get(field, _MISSING)
    found = value is not _MISSING
    if output == JSON:
        emit_json({"key": key, "field": field, "found": found, "value": to_json(value) if found else None})
        return DONE if found else FAILED
    if not found:
        raise missing_field(key, field)
    emit_raw(value)
    return DONE


@click.command()
@click.argument("key")
@output_option
@where_options
def hgetall(place: Place, key: str, output: str) -> int:
    """Print the fields of the map at KEY, one a line: the field, a tab, the value as JSON."""
    with place.connect() as client:
        items = client.map(key).items()
    if output == JSON:
        value = {field: to_json(item) for field, item in items}
        emit_json({"key": key, "found": bool(items), "type": "map" if items else None, "value": value})
    else:
        for field, item in items:
            emit(f"{_word(field)}\t{as_cell(item)}")
    return DONE


@click.command()
@click.argument("prefix", default="")
@click.option("--start", metavar="KEY", help="From this key on.")
@click.option("--end", metavar="KEY", help="Up to this key, without it.")
@click.option("--limit", type=Integer(min=0), help="At most so many.")
@click.option("--reverse", is_flag=True, help="Greatest key first.")
@click.option("--type", "types", multiple=True, type=click.Choice(TYPES), help="Only this type; may be repeated.")
@output_option
@where_options
def scan(
    place: Place, prefix: str, start: str | None, end: str | None, limit: int | None, reverse: bool, types: tuple[str, ...], output: str
) -> int:
    """Print the keys that begin with PREFIX, one a line: the key, a tab, the value as JSON. One consistent snapshot.

    With -o json, one object a line.
    """
    with (
        place.connect() as client,
        closing(client.scan(prefix, start=start, end=end, limit=limit, reverse=reverse, types=types or None)) as rows,
    ):
        for key, value in rows:
            if output == JSON:
                emit_json({"key": key, "value": to_json(value)})
            else:
                emit(f"{_word(key)}\t{as_cell(value)}")
    return DONE


@click.command()
@click.argument("prefix", default="")
@click.option("--since", metavar="TOKEN", help="From after this token on, as an earlier watch printed it with -o json.")
@click.option("--idle", "idle_s", type=Number(min=0, min_open=True), metavar="SECONDS", help="End when nothing changed for so long.")
@output_option
@where_options
def watch(place: Place, prefix: str, since: str | None, idle_s: float | None, output: str) -> int:
    """Print each change of a key that begins with PREFIX, as it comes, until Ctrl-C.

    With -o json, one object a line; its "token" resumes after it.
    """
    with place.connect() as client, closing(client.watch(prefix, since=since, timeout=idle_s)) as changes:
        for change in changes:
            if output == JSON:
                emit_json({**plain(change), "subkey": to_json(change.subkey), "value": to_json(change.value)})
            else:
                emit(_describe(change))
            sys.stdout.flush()
    return DONE


def _describe(change: Change) -> str:
    from crdtkv.core.clock import time_text

    where = _word(change.key) if change.subkey is None else f"{_word(change.key)}[{as_cell(change.subkey)}]"
    value = "" if change.value is None and change.kind != "put" else f" = {as_cell(change.value)}"
    if change.type == "set":
        value = ""
    commit = change.commit
    how = "  (snapshot or repair)" if change.unlogged else ""
    return f"{time_text(commit.hlc)}  {commit.origin}:{commit.seq}  {change.type} {change.kind}  {where}{value}{how}"


def _word(text: str) -> str:
    """A key or field as it is, or as JSON if it holds what would break the line."""
    return text if text.isprintable() else as_cell(text)
