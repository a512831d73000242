"""All rows, in the order of the table. A new row is a line in its module's `ROWS`."""

from __future__ import annotations

from typing import Final

from bench.goals import durable, embedded, kept, replicated, served
from bench.goals.row import Row

ROWS: Final[dict[str, Row]] = {row.name: row for row in (*embedded.ROWS, *durable.ROWS, *served.ROWS, *replicated.ROWS, *kept.ROWS)}
