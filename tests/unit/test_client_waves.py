"""Waves of requests go in halves where that lets client and node work at once, and whole everywhere else."""

from __future__ import annotations

import asyncio

import pytest

import crdtkv.aio
from crdtkv.client.waves import KEPT_MIN, SPLIT_MIN, WHOLE_WAVES_MIN, Waves
from tests.fake_node import FakeNode

ASKING_S = 4e-6  # a request


class Stream:
    """A client's stream by a clock of its own; each answer comes after so many times what asking took."""

    def __init__(self) -> None:
        self.waves = Waves()
        self.now = 0.0

    def ask(self, requests: int) -> None:
        self.now += requests * ASKING_S
        self.waves.sent(requests, self.now)

    def answer(self, requests: int, times: float, *, are_all: bool = True) -> bool:
        return self.waves.answered(requests, times * requests * ASKING_S, self.now, are_all=are_all)

    def wave(self, times: float, requests: int = 64) -> bool:
        """A wave goes whole, and is answered. Whether the next is to be split."""
        self.ask(requests)
        self.answer(requests, times)
        return self.waves.split_at > 0

    def halves(self, times: float, turns: int) -> bool:
        """A wave is split, and its halves are answered in turn, so often. Whether the last answer lets what is asked next follow."""
        self.waves.split()
        return self.go_on(times, turns)

    def go_on(self, times: float, turns: int) -> bool:
        """`halves`, of a wave that is split."""
        may_follow = True
        for _ in range(turns):
            self.ask(32)
            may_follow = self.answer(32, times, are_all=False)
        return may_follow


def test_a_wave_is_split_where_the_answer_takes_about_as_long_as_the_asking() -> None:
    stream = Stream()
    stream.wave(1e9)  # of the first one nobody knows what asking for it took
    assert stream.wave(1.5) and stream.waves.split_at == 32
    assert stream.halves(2.5, 1000)
    stream.answer(32, 2.5)  # the other half had nothing to ask for
    assert stream.waves.split_at == 0, "half a wave is not split again"
    assert stream.wave(1.5)


@pytest.mark.parametrize(("times", "requests"), [(3.0, 64), (1000.0, 64), (1.0, SPLIT_MIN - 1)])
def test_slow_answers_and_small_waves_go_whole(times: float, requests: int) -> None:
    stream = Stream()
    assert not any(stream.wave(times, requests) for _ in range(1000))


def test_halves_that_wait_for_long_become_one_wave_again() -> None:
    """The node began to fsync, say."""
    stream = Stream()
    stream.wave(1.0)
    assert stream.wave(1.0) and stream.halves(2.0, 100)
    stream.ask(32)
    assert stream.answer(32, 20.0, are_all=False), "once is chance"
    assert not stream.go_on(8.0, 20)
    stream.answer(32, 8.0)
    # What is asked after that answer is the first of those that go whole.
    assert [stream.wave(1.0) for _ in range(WHOLE_WAVES_MIN)] == [False] * (WHOLE_WAVES_MIN - 1) + [True]


def test_halves_that_do_not_stay_apart_are_tried_more_and_more_rarely() -> None:
    stream = Stream()
    stream.wave(1.0)
    waited = []
    for _ in range(12):
        whole = 0
        while not stream.wave(1.0):
            whole += 1
        waited.append(whole)
        stream.halves(2.0, KEPT_MIN - 1)
        stream.answer(64, 2.0)
    assert waited[:4] == [0, 15, 31, 63] and waited[-2:] == [1023, 1023]
    while not stream.wave(1.0):
        pass
    stream.halves(2.0, KEPT_MIN)
    stream.answer(64, 2.0)
    assert stream.waves.split_at, "they stayed apart: all is forgiven"


def test_messages_that_nobody_split_follow_each_other_as_ever() -> None:
    stream = Stream()
    stream.ask(10)
    assert stream.answer(10, 1e6, are_all=False)


def test_both_halves_of_a_wave_are_answered() -> None:
    node = FakeNode()

    async def run() -> None:
        async with crdtkv.aio.connect(node.address) as client:
            await client.put("first", 0)
            session = client._session()
            session._waves.split_at = 10
            before = session.messages
            commits = await asyncio.gather(*(client.put(f"k{number}", number) for number in range(25)))
            assert session.messages - before == 2
            assert [0 if commit is None else commit.seq for commit in commits] == list(range(2, 27))
            assert await asyncio.gather(*(client.get(f"k{number}") for number in range(25))) == list(range(25))

    try:
        asyncio.run(run())
    finally:
        node.stop()
