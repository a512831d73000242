"""What a session holds of its calls: those that wait to be sent, and those sent and not answered, with their requests and bytes counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from crdtkv.client import wire
from crdtkv.client.wire import Block, Call

MESSAGE_REQUESTS_MAX: Final = 256
"""A message is closed when it holds so many requests. A full one does not wait for an answer: the node works on the first
part of a long pipeline while the rest is still being encoded."""
MESSAGE_TARGET_BYTES: Final = 1 << 20
"""A message is closed when it holds this much; a single larger request still travels, alone."""
BLOCK_REQUESTS_MIN: Final = 4
"""Fewer requests go in rows of their own: a look at a block as a whole pays for itself only then."""


class Waiting:
    """Calls in the order in which they are to be sent. Puts, and gets, that follow each other gather in blocks."""

    __slots__ = ("_block", "_calls", "requests")

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._block: Block | None = None  # the last of them, if more may gather in it
        self.requests = 0
        """How many there are."""

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def add(self, calls: Iterable[Call]) -> None:
        """Have calls wait behind all others."""
        self._block = None
        for call in calls:
            self._calls.append(call)
            self.requests += call.count

    def put_back(self, calls: list[Call]) -> None:
        """Have calls wait before all others."""
        self._calls.extendleft(reversed(calls))
        self.requests += sum([call.count for call in calls])

    def gather(self, op: str, weight: int, deadline: float, tolerance: float) -> Block:
        """The block to which the caller adds a request now, at the end of the queue. One that is new is empty.

        Args:
            op: "puts" or "gets".
            weight: of the request.
            deadline: of the request.
            tolerance: so much may that of the block be nearer.
        """
        self.requests += 1
        block = self._block
        if block is not None and 0 <= deadline - block.deadline <= tolerance and block.takes(op, weight):
            return block
        self._block = block = wire.puts() if op == "puts" else wire.gets()
        block.deadline = deadline
        self._calls.append(block)
        return block

    def take(self, requests_max: int) -> list[Call]:
        """All that waits, as far as one message holds it. What nobody waits for any more is dropped."""
        calls: list[Call] = []
        room = min(requests_max, MESSAGE_REQUESTS_MAX)
        bytes_left = MESSAGE_TARGET_BYTES
        while self._calls and room > 0:
            call = self._pop()
            if isinstance(call, Block):
                call.drop_done()
                if call.count > room:
                    rest, call = call, call.split(room)
                    self.put_back([rest])
            elif call.done():
                continue
            if calls and call.weight > bytes_left:
                self.put_back([call])
                break
            room -= call.count
            bytes_left -= call.weight
            if isinstance(call, Block) and call.count < BLOCK_REQUESTS_MIN:
                calls += [call.single(at) for at in range(call.count)]
            else:
                calls.append(call)
        return calls

    def _pop(self) -> Call:
        call = self._calls.popleft()
        if call is self._block:
            self._block = None
        self.requests -= call.count
        return call

    def clear(self) -> list[Call]:
        """Let all of them go; what they were."""
        calls, self._calls = list(self._calls), deque()
        self._block = None
        self.requests = 0
        return calls


class InFlight:
    """Calls that were sent and not answered, by the id of their row, in the order in which they were sent."""

    __slots__ = ("_calls", "_next_id", "bytes", "requests")

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._next_id = 1
        self.requests = 0
        self.bytes = 0
        """How many requests, and about how many bytes, there are."""

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    @property
    def ids(self) -> list[int]:
        """The ids of their rows."""
        return list(self._calls)

    def add(self, call: Call) -> int:
        """Note that a call is sent; its id."""
        id = self._next_id
        self._next_id = id + 1
        self._calls[id] = call
        self.requests += call.count
        self.bytes += call.weight
        return id

    def get(self, id: int) -> Call | None:
        """The call of a row, if it is still waited for."""
        return self._calls.get(id)

    def pop(self, id: int) -> Call | None:
        """The call of a row, waited for no longer: its place is free."""
        call = self._calls.pop(id, None)
        if call is not None:
            self.requests -= call.count
            self.bytes -= call.weight
        return call

    def clear(self) -> list[Call]:
        """Let all of them go; what they were."""
        calls, self._calls = list(self._calls.values()), {}
        self.requests = self.bytes = 0
        return calls
