"""Snapshots that a donor holds end by themselves: what they hold back is let go though nobody is connected any more."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

import crdtkv
from crdtkv.errors import RegionUnavailableError
from crdtkv.replication.drive import Drive
from crdtkv.replication.messages import AskSnapshot, Chunk, Message
from crdtkv.replication.session import Session, State
from crdtkv.replication.settings import LOOPBACK
from crdtkv.store import Store

NOTHING_STAGED = AskSnapshot(0, b"")
SETTINGS = dataclasses.replace(LOOPBACK, snapshot_hold_ms=1_000, snapshots_max=1)


@pytest.fixture
def us() -> Iterator[Store]:
    with crdtkv.open(region="us") as store:
        for at in range(100):
            store.put(f"k{at}", at)
        yield store


def _ask(drive: Drive, link: str, region: str, now_ms: float, ask: AskSnapshot = NOTHING_STAGED) -> list[Message]:
    """A live peer asks for a snapshot; what it is told, and the jobs done that this takes."""
    drive.connect(link, now_ms, dialed=False)
    session: Session = drive._peers[link].session
    session.region = region
    drive.transfers.receive(link, session, ask, now_ms)
    told: list[Message] = []
    while jobs := drive.transfers.jobs:
        drive.transfers.accept(len(jobs), 0)
        for job in jobs:
            drive.job_done(job, job.run(), now_ms)
    told += [message for to, message in drive.transfers.messages() if to == link]
    drive.transfers.accept(0, len(drive.transfers.messages()))
    return told


def test_a_snapshot_whose_receiver_is_gone_is_dropped_in_time(us: Store) -> None:
    drive = Drive(us.port, SETTINGS, now_ms=0.0, wall_ms=lambda: 0.0)
    assert [type(m).__name__ for m in _ask(drive, "eu", "eu", 10.0)] == ["Chunk", "Chunk"]
    assert us._machine.pins and drive.transfers.holds == 1
    assert [type(m).__name__ for m in _ask(drive, "ap", "ap", 20.0)] == ["CannotSnapshot"], "one is the limit here"
    drive.disconnect("eu", 100.0)
    drive.disconnect("ap", 100.0)
    wake = drive.ready().wake_at_ms
    assert wake is not None and wake <= 1_100.0, "somebody must look again although nobody is connected"
    drive.tick(1_050.0)
    assert us._machine.pins, "it may still come back"
    drive.tick(1_101.0)
    assert not us._machine.pins and not drive.transfers.holds


def test_a_receiver_that_comes_back_after_any_chunk_is_served_from_there(us: Store) -> None:
    for at in range(200):
        us.put(f"k{at}", "x" * 200)
    settings = dataclasses.replace(SETTINGS, snapshot_chunk_bytes=8_192, snapshot_window=64)
    drive = Drive(us.port, settings, now_ms=0.0, wall_ms=lambda: 0.0)
    sent = [m for m in _ask(drive, "link", "eu", 10.0) if isinstance(m, Chunk)]
    assert len(sent) > 4 and sent[-1].last
    for at, chunk in enumerate(sent[:-1], start=1):
        drive.disconnect("link" if at == 1 else f"link{at - 1}", 10.0 + at)
        again = [m for m in _ask(drive, f"link{at}", "eu", 10.0 + at, AskSnapshot(at, chunk.link)) if isinstance(m, Chunk)]
        assert again == sent[at:], f"after chunk {at}"
    assert drive.transfers.begun == 1, "one snapshot for all of it"
    wrong = [m for m in _ask(drive, "other", "eu", 99.0, AskSnapshot(2, b"\0" * 16)) if isinstance(m, Chunk)]
    assert wrong[0].number == 0 and drive.transfers.begun == 2, "of another snapshot nothing is gone on with"


def test_a_state_from_elsewhere_and_a_snapshot_are_not_staged_together(us: Store) -> None:
    drive = Drive(us.port, SETTINGS, now_ms=0.0, wall_ms=lambda: 0.0)
    transfers = drive.transfers
    drive.connect("eu", 0.0, dialed=False)
    session = drive._peers["eu"].session
    session.state, session.features = State.LIVE, frozenset({"snapshot"})
    transfers.reserve("a backup")
    assert transfers.is_active
    with pytest.raises(RegionUnavailableError, match="on its way here"):
        transfers.reserve("a backup")
    transfers.need([("eu", session)], 1.0)
    assert not transfers.messages() and not transfers.jobs
    transfers.release()
    assert not transfers.is_active
    transfers.need([("eu", session)], 2.0)
    assert [type(message).__name__ for _, message in transfers.messages()] == ["AskSnapshot"]
