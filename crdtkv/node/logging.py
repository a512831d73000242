"""Structured logs of a node: one line per event on stderr, key=value or JSON, never a request's keys or values.

An event has a name (`peer_connected`) and fields; the standard `logging` module carries it, so an embedding program
routes it as any other logger. `event` costs one comparison when its level is off. It is for what happens to the
node (peers, shutdown, alarms); nothing on the path of a request logs.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LOGGER: Final = logging.getLogger("crdtkv.node")


def event(level: int, name: str, /, **fields: Any) -> None:
    """Log one event; fields are plain values (text, numbers, None, lists of them)."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, name, extra={"fields": fields})


def configure(level: str, style: str, stream: TextIO | None = None) -> logging.Handler:
    """Send the node's events to `stream` (stderr). For the process of `crdtkv node`; an embedder sets up its own.

    Returns:
        The handler, for `LOGGER.removeHandler`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else LogfmtFormatter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    return handler


def _record(record: logging.LogRecord) -> dict[str, Any]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, Any] = {"ts": at, "level": record.levelname.lower(), "event": record.getMessage()}
    line.update(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        line["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
    return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_record(record), ensure_ascii=False, default=str, separators=(",", ":"))


class LogfmtFormatter(logging.Formatter):
    """`key=value` pairs; a value with spaces, quotes, `=` or control characters is a JSON string."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{k}={_logfmt(v)}" for k, v in _record(record).items())


def _logfmt(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = str(value)
    if text and all(c.isprintable() and c not in ' "=' for c in text):
        return text
    return json.dumps(text, ensure_ascii=False)
