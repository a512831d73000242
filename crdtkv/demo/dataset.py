"""The airports of the world, dealt to the region that owns each continent.

The data is that of the `airportsdata` package (extra `demo`): some 28 thousand airports with name, place, country and time
zone. The owner follows from the first part of the time zone: `America/…` belongs to `us`, `Asia/…` to `ap`. Nothing
here knows of a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OWNERS: Mapping[str, str] = {
    "America": "us",
    "Europe": "eu",
    "Africa": "eu",
    "Atlantic": "eu",
    "Arctic": "eu",
    "Asia": "ap",
    "Australia": "ap",
    "Pacific": "ap",
    "Indian": "ap",
    "Antarctica": "ap",
}
"""First part of a time zone's name → the region that takes its airports."""

HUBS = (
    "KJFK", "EGLL", "RJTT", "LFPG", "CYYZ", "YSSY", "SBGR", "EDDF",
    "WSSS", "KLAX", "EHAM", "VHHH", "MMMX", "LEMD", "NZAA", "KORD",
    "FAOR", "OMDB", "SCEL", "LIRF", "VIDP", "KATL", "HECA", "RJAA",
)  # fmt: skip
"""Airports that everybody knows: the contested ones."""


@dataclass(frozen=True, slots=True)
class Airport:
    """One airport: its code, what is stored of it, and the region it is loaded through."""

    code: str
    owner: str
    country: str
    zone: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dataset:
    """The airports in the order in which they are loaded, and where they came from."""

    name: str
    version: str
    airports: Sequence[Airport]

    def owned_by(self, region: str) -> list[Airport]:
        """The airports that `region` loads."""
        return [a for a in self.airports if a.owner == region]

    def hubs(self) -> list[Airport]:
        """The well-known airports among them."""
        by_code = {a.code: a for a in self.airports}
        return [by_code[code] for code in HUBS if code in by_code]


def owner_of(zone: str) -> str:
    """The region that owns a time zone; what belongs nowhere else goes to `eu`.

    >>> owner_of("Asia/Tokyo"), owner_of("America/New_York"), owner_of("UTC")
    ('ap', 'us', 'eu')
    """
    return OWNERS.get(zone.partition("/")[0], "eu")


def load_airports(limit: int | None = None) -> Dataset:
    """Read the data set; with `limit`, the hubs and an even sample of the others, `limit` in all.

    Raises:
        ModuleNotFoundError: the package `airportsdata` (extra `demo`) is not installed.
    """
    import airportsdata

    rows: dict[str, Mapping[str, Any]] = {**airportsdata.load("ICAO")}
    if limit is not None and limit < len(rows):
        chosen = [code for code in HUBS if code in rows][:limit]
        others = sorted(rows.keys() - set(chosen))
        room = limit - len(chosen)
        chosen += [others[i * len(others) // room] for i in range(room)]
        rows = {code: rows[code] for code in chosen}
    airports = [_airport(code, row) for code, row in sorted(rows.items())]
    return Dataset(name="airportsdata", version=str(getattr(airportsdata, "__version__", "unknown")), airports=airports)


def _airport(code: str, row: Mapping[str, Any]) -> Airport:
    zone = str(row["tz"])
    record = {k: row[k] for k in ("name", "city", "subd", "country", "iata", "elevation", "lat", "lon", "tz")}
    return Airport(code=code, owner=owner_of(zone), country=str(row["country"]), zone=zone, record=record)
