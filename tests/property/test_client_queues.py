"""What a client's calls wait in: whatever gathers in blocks leaves in the order in which it came, each request once, and is counted."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crdtkv.client import wire
from crdtkv.client.queues import BLOCK_REQUESTS_MIN, MESSAGE_REQUESTS_MAX, InFlight, Waiting
from crdtkv.client.wire import Block, Call

PENDING = object()


class Sink:
    """Where a request's outcome goes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.outcome: Any = PENDING

    def done(self) -> bool:
        return self.outcome is not PENDING

    def set_result(self, result: Any, /) -> None:
        assert not self.done()
        self.outcome = result

    set_exception = set_result


def requests(call: Call) -> list[tuple[str, str, Any, int]]:
    """Op, key, value and number of each request of a call."""
    if not isinstance(call, Block):
        return [(call.op, call.args[0], call.args[1] if call.op == "put" else None, call.sink.number)]
    values = call.args[1] if call.op == "puts" else [None] * call.count
    return [(call.name, key, value, sink.number) for key, value, sink in zip(call.args[0], values, call.sinks, strict=True)]


steps = st.one_of(
    *[st.tuples(st.sampled_from(["put", "put", "put", "get"]), st.integers(1, 300), st.sampled_from([0.0, 0.1, 9.0]))] * 3,
    st.tuples(st.just("delete"), st.just(1), st.just(0.0)),
    st.tuples(st.just("cancel"), st.integers(0, 999), st.just(0.0)),
    st.tuples(st.just("take"), st.integers(1, 400), st.just(0.0)),
    st.tuples(st.just("lost"), st.just(0), st.just(0.0)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=15))
def test_requests_leave_in_order_each_once_however_they_gather(made: list[tuple[str, int, float]]) -> None:
    waiting, flight = Waiting(), InFlight()
    sinks: list[Sink] = []
    expected: list[tuple[str, str, Any, int]] = []  # the naive twin: a list of requests
    sent: list[tuple[str, str, Any, int]] = []
    now = 100.0
    for what, count, later in made:
        match what:
            case "put" | "get":
                now += later
                for _ in range(count):
                    sink = Sink(len(sinks))
                    sinks.append(sink)
                    key, value = f"k{sink.number}", b"v%d" % sink.number
                    block = waiting.gather(f"{what}s", 80, now + 5.0, 1.0)
                    assert 0 <= now + 5.0 - block.deadline <= 1.0
                    if what == "put":
                        block.add_put(key, value, 80, sink)
                    else:
                        block.add_get(key, sink)
                    expected.append((what, key, value if what == "put" else None, sink.number))
            case "delete":
                call = wire.delete("gone")
                call.sink = Sink(len(sinks))
                sinks.append(call.sink)
                waiting.add([call])
                expected.append(("delete", "gone", None, call.sink.number))
            case "cancel" if sinks:
                sinks[count % len(sinks)].outcome = "cancelled"
            case "take":
                calls = waiting.take(count)
                taken = [request for call in calls for request in requests(call)]
                assert len(taken) <= min(count, MESSAGE_REQUESTS_MAX)
                assert all(not isinstance(call, Block) or call.count >= BLOCK_REQUESTS_MIN for call in calls)
                gone = [request for request in expected if sinks[request[3]].done()]
                expected = [request for request in expected if request not in gone]
                assert taken == expected[: len(taken)]
                expected = expected[len(taken) :]
                sent += taken
                for call in calls:
                    flight.add(call)
                assert flight.requests == len(sent)
            case "lost":
                waiting.put_back(flight.clear())
                expected, sent = sent + expected, []
                assert flight.requests == flight.bytes == 0 and not flight
        assert waiting.requests == sum(call.count for call in waiting) >= len([r for r in expected if not sinks[r[3]].done()])
    left = [request for call in waiting.clear() for request in requests(call) if not sinks[request[3]].done()]
    assert left == [request for request in expected if not sinks[request[3]].done()] and not waiting and waiting.requests == 0


@given(st.integers(1, 20), st.lists(st.integers(0, 19)), st.booleans())
def test_a_block_in_parts_answers_each_request_once(count: int, cancelled: list[int], reads: bool) -> None:
    block, sinks = wire.gets() if reads else wire.puts(), [Sink(n) for n in range(count)]
    for sink in sinks:
        block.add_get(f"k{sink.number}", sink) if reads else block.add_put(f"k{sink.number}", b"\x01", 80, sink)
    for at in cancelled:
        sinks[at % count].outcome = "cancelled"
    payload = [b"\x07"] * (count - 1) + [None] if reads else ["us@1-00000001", 5, 70]
    alone = [block.single(at) for at in range(count)]
    block.answer(payload, "token")
    done = [sink.outcome for sink in sinks]
    for at, call in enumerate(alone):
        call.sink = Sink(at)
        call.answer(payload[at] if reads else ["us@1-00000001", 5 + at, 70 + at], "token")
        assert sinks[at].outcome == "cancelled" if at in [c % count for c in cancelled] else done[at] == call.sink.outcome
    assert block.done()
