"""How values become text: raw for strings and bytes, JSON for the rest, tables where a person reads.

JSON has neither bytes nor instants, so these are written as objects with one key: `{"$bytes": base64}`, `{"$time": ISO 8601}`,
`{"$float": "nan"}` for floats that JSON has no form for, and `{"$map": [[key, value], …]}` for a map whose keys are not all strings, or
which looks like one of these. `from_json` reads what `to_json` writes; numbers, texts and lists are themselves.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from crdtkv.errors import InvalidValueError

JSON: Final = "json"
TEXT: Final = "text"

_MARKS: Final = frozenset({"$bytes", "$time", "$float", "$map"})


def counted(count: int, noun: str) -> str:
    """A number with what it counts.

    >>> counted(1, "file"), counted(1200, "commit")
    ('1 file', '1200 commits')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-o text|json` as the parameter `output`."""
    return click.option("-o", "--output", type=click.Choice([TEXT, JSON]), default=TEXT, help="Form of the output.")(command)


def to_json(value: Any) -> Any:
    """A stored value as plain JSON types."""
    match value:
        case bytes():
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        case datetime():
            return {"$time": value.isoformat()}
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case list() | tuple():
            return [to_json(item) for item in value]
        case Mapping():
            plain = all(isinstance(key, str) for key in value) and not (len(value) == 1 and _MARKS & value.keys())
            if plain:
                return {key: to_json(item) for key, item in value.items()}
            return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    return value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (mark := next(iter(value))) in _MARKS:
        content = value[mark]
        try:
            match mark:
                case "$bytes":
                    return base64.b64decode(content, validate=True)
                case "$time":
                    return datetime.fromisoformat(content)
                case "$float":
                    return float(content)
                case _:
                    return {from_json(key): from_json(item) for key, item in content}
        except (TypeError, ValueError, binascii.Error) as e:
            raise InvalidValueError(f"{mark}: {content!r} is not of that form: {e}") from e
    return {key: from_json(item) for key, item in value.items()}


def parse_json(text: str, name: str) -> Any:
    """A value from JSON text.

    Raises:
        InvalidValueError: it is not JSON; says where.
    """
    try:
        return from_json(json.loads(text))
    except json.JSONDecodeError as e:
        raise InvalidValueError(f"{name} is not JSON: {e.msg} at character {e.pos + 1}; put quotes around a text: '\"hello\"'") from e
    except RecursionError as e:
        raise InvalidValueError(f"{name} is nested too deeply") from e


def plain(value: Any) -> Any:
    """A result object (a dataclass of ours, a commit, a version vector, …) as JSON types."""
    from crdtkv.results import Change, Commit

    if isinstance(value, Commit):
        return {"origin": value.origin, "seq": value.seq, "hlc": value.hlc, "token": value.token}
    if isinstance(value, Change):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (bytes, datetime)):
        return to_json(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a dot
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return to_json(value)


def dump(value: Any) -> str:
    """Plain JSON types as one line."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)


def emit(line: str) -> None:
    """Write a line to stdout; what UTF-8 cannot hold is escaped, never an error."""
    sys.stdout.write(line.encode("utf-8", "backslashreplace").decode() + "\n")


def emit_json(value: Any) -> None:
    """Write plain JSON types as one line."""
    emit(dump(value))


def emit_raw(value: Any) -> None:
    """A value as `get` prints it: text and bytes as they are (text with a newline at its end), the rest as JSON."""
    if isinstance(value, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    else:
        emit(as_text(value))


def as_text(value: Any) -> str:
    """A value on a line: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else dump(to_json(value))


def as_cell(value: Any) -> str:
    """A value as JSON: unambiguous where several stand on a line, or a line each."""
    return dump(to_json(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under headings: drawn where a person reads, aligned with spaces in a pipe; what a terminal is too narrow for, cell by cell."""
    texts = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in texts:
            drawn.add_row(*(Text(cell) for cell in row))
        console = Console()
        needed = drawn.__rich_measure__(console, console.options.update(max_width=10_000)).maximum
        if needed <= console.width or len(columns) < 4:
            console.print(drawn)
        else:  # folded to a letter a line nobody reads it: a line for each cell, and an empty one between rows
            heading = max(map(len, columns))
            emit("\n\n".join("\n".join(f"{c:<{heading}}  {cell}" for c, cell in zip(columns, row, strict=True)) for row in texts))
        return
    widths = [max(len(row[i]) for row in [list(columns), *texts]) for i in range(len(columns))]
    for row in [list(columns), *texts]:
        emit("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
