"""A bug that strikes in the middle of a turn of replication: the links begin anew, and what was on its way comes again.

Before, whatever the turn had decided and not yet done counted as done. A message that was lost that way left two regions different for
ever once nobody wrote any more, with live links, heartbeats, and no word in the status.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

import crdtkv
from crdtkv.core.frame import Frame
from crdtkv.node.replicating import FAILED_TEXT, Replicator
from crdtkv.replication import LOOPBACK, PRESETS, Drive, Event, EventKind
from crdtkv.replication.drive import Work
from crdtkv.replication.messages import Frames
from crdtkv.replication.session import Session
from crdtkv.store.port import StorePort
from tests.waiting import DEADLINE_S, until


@contextmanager
def two_nodes(*, alike: bool = False) -> Iterator[tuple[crdtkv.Store, crdtkv.Store, crdtkv.Node, crdtkv.Node]]:
    """us and eu, connected; `alike`: eu has what us wrote before."""
    with ExitStack() as stack:
        us, eu = (stack.enter_context(crdtkv.open(region=region)) for region in ("us", "eu"))
        if alike:
            us.put("k", 1)
            eu.merge(us.delta_since())
        node = stack.enter_context(crdtkv.Node(us, replication="loopback"))
        yield us, eu, node, stack.enter_context(crdtkv.Node(eu, peers={"us": node.address}, replication="loopback"))


def warnings_of(node: crdtkv.Node) -> tuple[str, ...]:
    """What a client is told by the node's status."""
    with crdtkv.connect(node.address) as client:
        return tuple(client.status().warnings)


class Bug:
    """Makes a method raise once, when armed, `before` it has done its work or after."""

    def __init__(
        self, patch: pytest.MonkeyPatch, kind: type, name: str, *, before: bool, when: Callable[..., bool] = lambda *_: True
    ) -> None:
        self.armed = False
        self.struck = threading.Event()
        method = getattr(kind, name)

        def flawed(this: Any, *args: Any, **named: Any) -> Any:
            strikes = self.armed and when(this, *args)
            if strikes:
                self.armed = False
            result = None if strikes and before else method(this, *args, **named)
            if strikes:
                self.struck.set()
                raise ZeroDivisionError("a bug")
            return result

        patch.setattr(kind, name, flawed)


def has_frames(work: Work, link: Any) -> bool:
    return any(isinstance(message, Frames) for message in work.messages[link])


def brings_frames(_: Session, message: Any, *__: Any) -> bool:
    return isinstance(message, Frames)


STRIKES: dict[str, dict[str, Any]] = {
    "a message that was read is not taken in": {"kind": Session, "name": "receive", "before": True, "when": brings_frames},
    "a message that is due is not sent": {"kind": Work, "name": "encoded", "before": True, "when": has_frames},
    "what is to be applied is not": {"kind": Replicator, "name": "_report", "before": True},
    "what was applied is not noted": {"kind": Drive, "name": "applied", "before": True},
    "half of what was applied is noted": {"kind": Session, "name": "settle", "before": False},
}


@pytest.mark.parametrize("strike", STRIKES)
def test_a_bug_in_the_middle_of_a_turn_costs_the_links_and_nothing_else(strike: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = Bug(monkeypatch, **STRIKES[strike])
    with two_nodes() as (us, eu, node, other):
        us.put("before", 1)
        until(lambda: eu.get("before") == 1, "they replicate")
        if STRIKES[strike]["name"] == "_report":
            say_something_when_frames_come(monkeypatch)
        bug.armed = True
        us.put("during", 2)
        assert bug.struck.wait(DEADLINE_S)
        until(lambda: eu.vv() == us.vv(), "what was on its way has come")
        eu.put("after", 3)
        until(lambda: us.get("after") == 3, "and the other way")
        assert eu.digest() == us.digest()
        assert FAILED_TEXT in (*warnings_of(node), *warnings_of(other))


def say_something_when_frames_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an event in the same work as frames that are to be applied."""
    take = Session.take_frames

    def take_and_tell(session: Session) -> list[tuple[bool, list[Frame]]]:
        session._events.append(Event(EventKind.STALLED, session.origin, "something is told"))
        return take(session)

    monkeypatch.setattr(Session, "take_frames", take_and_tell)


def test_what_is_told_of_a_fork_names_two_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's line took the peer's origin and the commit's by one name: the turn failed, and no status warned of the fork."""
    find = StorePort.frame_hash
    monkeypatch.setattr(StorePort, "frame_hash", lambda port, *dot: b"another" if port.origin.startswith("eu@") else find(port, *dot))
    with two_nodes(alike=True) as (us, _, _, other):
        until(lambda: any(text.startswith("fork: ") for text in warnings_of(other)), "the status warns of the fork")
        assert any(f"{us.origin}:1" in text for text in warnings_of(other))
        assert FAILED_TEXT not in warnings_of(other)


HOUR_MS = 3_600_000


@pytest.mark.parametrize(("stalled_ms", "starved_ms", "told"), [(50, HOUR_MS, "waiting: "), (HOUR_MS, 500, "starved: ")])
def test_a_message_that_is_forgotten_in_silence_is_told_of_and_then_comes_again(
    stalled_ms: int, starved_ms: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that raises nothing: a message came, and whoever was to apply it never hears of it."""
    monkeypatch.setitem(PRESETS, "loopback", replace(LOOPBACK, stalled_ms=stalled_ms, starved_ms=starved_ms))
    forgetful, forgot = threading.Event(), threading.Event()
    take = Session.take_frames

    def forget_once(session: Session) -> list[tuple[bool, list[Frame]]]:
        found = take(session)
        if not forgetful.is_set() or forgot.is_set():
            return found
        forgot.set()
        return []

    monkeypatch.setattr(Session, "take_frames", forget_once)
    with two_nodes() as (us, eu, _, other):
        us.put("before", 1)
        until(lambda: eu.get("before") == 1, "they replicate")
        forgetful.set()
        us.put("during", 2)
        assert forgot.wait(DEADLINE_S)
        until(lambda: any(text.startswith(f"{told}{us.origin}:2 came from {us.origin}") for text in warnings_of(other)), "it is told")
        if starved_ms < HOUR_MS:
            until(lambda: eu.vv() == us.vv(), "it has come over another link")
