"""Who reads much rests beside others, in proportion to his work, and not when he is alone."""

from __future__ import annotations

import pytest

from crdtkv.store import pacing
from crdtkv.store.pacing import REST_S_MAX, Pacer


class Time:
    """The thread's CPU time as a test sets it, and what was slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spent = 0.0
        self.slept: list[float] = []
        monkeypatch.setattr(pacing.time, "thread_time", lambda: self.spent)
        monkeypatch.setattr(pacing.time, "sleep", self.slept.append)


def test_it_rests_as_its_share_says(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    pacer = Pacer(0.25)
    pacer.rest()  # the first call only begins
    for _ in range(3):
        time.spent += 0.002
        pacer.rest()
    assert time.slept == pytest.approx([0.006] * 3)
    time.spent += 5.0
    pacer.rest()
    assert time.slept[-1] == REST_S_MAX


def test_alone_it_does_not_rest_and_with_a_full_share_never(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    written = 0
    pacer, greedy = Pacer(0.5, lambda: written), Pacer(1.0)
    for others in (0, 0, 7, 7, 8):
        written = others
        time.spent += 0.002
        pacer.rest()
        greedy.rest()
    assert time.slept == pytest.approx([0.002] * 2), "twice somebody wrote since the step before"
