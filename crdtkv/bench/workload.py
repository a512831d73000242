"""What the laboratory writes: one commit after another to keys of its own, of one type. Does no I/O but through the client it is given.

Payloads begin with the write's number, so none equals another and a set grows with each; the rest is noise, which no compression
shortens. Keys recur, so registers and maps are overwritten as in a store in use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crdtkv.client.aio import AsyncClient
    from crdtkv.client.batch import AsyncBatch
    from crdtkv.results import Commit

TYPES: Final = ("register", "set", "counter", "map")
SIZE_MIN: Final = 8
"""A payload holds a number of 8 bytes."""
KEYS: Final = 1000
"""How many keys of a region are written in turn; of a map, how many fields, over `MAPS` keys."""
MAPS: Final = 10
_NOISE: Final = random.Random(1).randbytes(1 << 16)


@dataclass(frozen=True, slots=True)
class Workload:
    """Commits of one region.

    Attributes:
        prefix: of all keys, with its `/`.
        type: one of `TYPES`.
        size: bytes of a register, element or field; a counter has none.
        batch: writes in a commit.
    """

    prefix: str
    type: str
    size: int
    batch: int

    def payload(self, number: int) -> bytes:
        """The bytes of one write; different for each number."""
        start = number * 61 % 4096
        noise = _NOISE[start : start + self.size - SIZE_MIN]
        if len(noise) < self.size - SIZE_MIN:
            noise = (noise + _NOISE * (self.size // len(_NOISE) + 1))[: self.size - SIZE_MIN]
        return number.to_bytes(SIZE_MIN) + noise

    async def commit(self, client: AsyncClient, number: int) -> Commit | None:
        """Write the commit of a number; all its writes at once."""
        if self.batch == 1:
            return await self._write(client, number)
        async with client.batch() as batch:
            for i in range(number * self.batch, (number + 1) * self.batch):
                await self._collect(batch, i)
        return batch.commit

    async def _write(self, client: AsyncClient, number: int) -> Commit | None:
        key = self._key(number)
        match self.type:
            case "register":
                return await client.put(key, self.payload(number))
            case "set":
                return await client.set(key).add(self.payload(number))
            case "counter":
                return await client.counter(key).increment()
            case _:
                return await client.map(key).put(self._field(number), self.payload(number))

    async def _collect(self, batch: AsyncBatch, number: int) -> None:
        key = self._key(number)
        match self.type:
            case "register":
                await batch.put(key, self.payload(number))
            case "set":
                await batch.set(key).add(self.payload(number))
            case "counter":
                await batch.counter(key).increment()
            case _:
                await batch.map(key).put(self._field(number), self.payload(number))

    def _key(self, number: int) -> str:
        return f"{self.prefix}{number % (MAPS if self.type == 'map' else KEYS)}"

    def _field(self, number: int) -> str:
        return str(number // MAPS % (KEYS // MAPS))
