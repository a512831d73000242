"""What clients do: transactions over few hot keys, and what they mean by them.

`Intent` says a transaction's net effect in the words of the specification. It is kept beside the production's own
`Transaction`, from the same calls, so a batch whose commit differs from what its client saw is found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from crdtkv.core.codec import TYPE_NAMES, encode_value
from crdtkv.core.frame import Delta
from crdtkv.errors import WrongTypeError
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.specification import Clear, Increment, Operation, Remove, Reset, Slot, Write
from crdtkv.store.transaction import Transaction

WEIGHTS: Final = {
    "put": 5.0,
    "add": 4.0,
    "remove": 2.0,
    "hput": 3.0,
    "hdel": 1.0,
    "increment": 4.0,
    "reset": 1.0,
    "clear": 1.0,
    "delete": 1.0,
}
ELEMENTS: Final = tuple(encode_value(element) for element in (1, 1.0, "1", True))
FIELDS: Final = ("f", "g", "h")
MANY: Final = 40
"""Elements that one call adds, where sets grow big."""
LIFETIMES_MS: Final = (40, 300, 1_500)


class Intent:
    """The net effect of a transaction's calls, as its client understands it."""

    def __init__(self) -> None:
        self._slots: dict[Slot, Write | Remove] = {}
        self._cleared: dict[tuple[str, str], None] = {}
        self._reset: dict[str, None] = {}
        self._amounts: dict[str, int] = {}

    def write(self, slot: Slot, value: bytes, expiry: int | None) -> None:
        self._slots[slot] = Write(slot, value, expiry)

    def remove(self, slot: Slot) -> None:
        self._slots[slot] = Remove(slot)

    def clear(self, key: str, kind: str) -> None:
        self._slots = {slot: op for slot, op in self._slots.items() if slot[:2] != (key, kind)}
        self._cleared[key, kind] = None

    def increment(self, key: str, amount: int) -> None:
        self._amounts[key] = self._amounts.get(key, 0) + amount

    def reset(self, key: str) -> None:
        self._reset[key] = None
        self._amounts.pop(key, None)

    def delete(self, key: str, kind: str) -> None:
        """Remove what is visible of one type."""
        if kind == "register":
            self.remove((key, kind, b""))
        elif kind == "counter":
            self.reset(key)
        else:
            self.clear(key, kind)

    def operations(self) -> tuple[Operation, ...]:
        return (
            *(Clear(*where) for where in self._cleared),
            *(Reset(key) for key in self._reset),
            *self._slots.values(),
            *(Increment(key, amount) for key, amount in self._amounts.items() if amount),
        )


class Workload:
    """Makes up transactions. Values are unique, so that what is read can be traced to its writer."""

    def __init__(self, dice: Dice, keys: int, weights: Mapping[str, float], ttl: float = 0.25, elements: int = 4) -> None:
        self._dice = dice
        self._keys = keys
        self._weights = list((weights or WEIGHTS).items())
        self._ttl = ttl
        self._elements = ELEMENTS if elements <= len(ELEMENTS) else tuple(encode_value(number) for number in range(elements))
        self._count = 0

    def fill(self, transaction: Transaction, now_ms: int) -> tuple[list[Delta], tuple[Operation, ...]]:
        """Make one to four calls; the deltas that the store would commit, and what was meant."""
        intent = Intent()
        for _ in range(self._dice.pick((1, 1, 1, 2, 4))):
            with contextlib.suppress(WrongTypeError):  # refused before it changed anything
                self._call(transaction, intent, now_ms)
        return transaction.deltas(), intent.operations()

    def _call(self, transaction: Transaction, intent: Intent, now_ms: int) -> None:
        dice = self._dice
        what = dice.weighted(self._weights)
        expiry = now_ms + dice.pick(LIFETIMES_MS) if dice.chance(self._ttl) else None
        match what:
            case "put":
                key, value = self._key("register"), self._value()
                transaction.put(key, value, expiry)
                intent.write((key, "register", b""), value, expiry)
            case "add":
                key, element = self._key("set"), dice.pick(self._elements)
                transaction.add(key, element, expiry)
                intent.write((key, "set", element), b"", expiry)
            case "fill":
                key = self._key("set")
                for _ in range(MANY):
                    element = dice.pick(self._elements)
                    transaction.add(key, element, None)
                    intent.write((key, "set", element), b"", None)
            case "remove":
                key, element = self._key("set"), dice.pick(self._elements)
                if transaction.discard(key, element):
                    intent.remove((key, "set", element))
            case "hput":
                key, field, value = self._key("map"), dice.pick(FIELDS), self._value()
                transaction.put_field(key, field, value, expiry)
                intent.write((key, "map", encode_value(field)), value, expiry)
            case "hdel":
                key, field = self._key("map"), dice.pick(FIELDS)
                if transaction.delete_field(key, field):
                    intent.remove((key, "map", encode_value(field)))
            case "increment":
                key, amount = self._key("counter"), dice.pick((-4, -1, 1, 2, 7))
                if transaction.increment(key, amount):
                    intent.increment(key, amount)
            case "reset":
                key = self._key("counter")
                if transaction.reset(key):
                    intent.reset(key)
            case "clear":
                kind = dice.pick(("set", "map"))
                key = self._key(kind)
                if transaction.clear_set(key) if kind == "set" else transaction.clear_map(key):
                    intent.clear(key, kind)
            case _:
                key = self._key(dice.pick(("register", "set", "map", "counter")))
                visible = transaction.visible_types(key)
                transaction.delete(key)
                for type_code in visible:
                    intent.delete(key, TYPE_NAMES[type_code])

    def _key(self, kind: str) -> str:
        """A hot key of one type, or now and then one that every type is written to."""
        return "any" if self._dice.chance(0.15) else f"{kind}/{self._dice.below(self._keys)}"

    def _value(self) -> bytes:
        self._count += 1
        return encode_value(self._count)
