"""A link that owes something that nothing accounts for begins anew; who is slow, full or far behind is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from crdtkv.core.causality import VersionVector
from crdtkv.core.frame import Frame
from crdtkv.replication import LAN, LOOPBACK, Drive, EventKind
from crdtkv.replication.drive import Link, Work
from crdtkv.replication.messages import Ack, Bye, Frames, Heartbeat, HeartbeatReply
from crdtkv.replication.settings import ReplicationSettings
from tests.toy_replica import Network, ToyReplica
from tests.unit.test_session import hello_of


def forget_what_came(net: Network) -> None:
    """What eu has received, and not yet taken up, is gone."""
    net.apply_ms = 5.0
    net.write("us")
    net.run_until(lambda: net.drives["eu"]._applying is not None)
    net.write("us")
    net.run_until(lambda: bool(net.drives["eu"]._queue))
    net.drives["eu"]._queue.clear()


def take_it_for_sent(net: Network) -> None:
    """What us has written is sent to nobody."""
    net.replicas["us"].write()
    net.drives["us"].local_commits(net.now)
    for peer in net.drives["us"]._peers.values():
        peer.session.own_out.seq = net.drives["us"]._tail.last_seq


@pytest.mark.parametrize("go_wrong", [forget_what_came, take_it_for_sent])
def test_what_went_astray_by_a_bug_comes_over_a_new_link(go_wrong: Callable[[Network], None]) -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    net.mesh()
    net.run_until(net.is_live, 2_000)
    go_wrong(net)
    net.run(net.settings.stalled_ms + 1_000)
    waits = net.drives["eu"].waits_for(net.now)
    assert len(waits) == 1 and net.replicas["us"].origin in waits[0], "it is told before anything is done about it"
    assert EventKind.STARVED not in net.kinds("eu")
    net.run_until(lambda: EventKind.STARVED in net.kinds("eu"), net.settings.starved_ms)
    told = next(event for event in net.events["eu"] if event.kind is EventKind.STARVED)
    assert told.alarm and told.text.startswith(waits[0].rpartition(" for ")[0])
    assert any(isinstance(message, Bye) and message.code == "starved" for _, _, _, message in net.sent)
    net.run_until(lambda: not net.links)
    net.reconnect()
    net.run_until(net.is_equal)
    net.run(3 * net.settings.starved_ms)
    assert net.kinds("eu").count(EventKind.STARVED) == 1 and not net.drives["eu"].waits_for(net.now)


class Side:
    """us with a link to eu, which says a heartbeat and an ack as often as it should, and answers at once."""

    def __init__(self, settings: ReplicationSettings = LAN) -> None:
        self.us, self.eu = ToyReplica("us"), ToyReplica("eu")
        self.drive = Drive(self.us, settings, now_ms=0, wall_ms=lambda: 0.0)
        self.drive.connect("eu", 0, dialed=False)
        self.drive.receive("eu", hello_of(self.eu), 0)
        self.kinds: list[EventKind] = []
        self.closed: list[Link] = []

    def live_on(self, durable: VersionVector, apply: Callable[[tuple[Frame, ...], float], None]) -> None:
        """For many times as long as a link may starve. `durable`: what eu has fsynced, by its acks."""
        for beat in range(10 * LAN.starved_ms // LAN.heartbeat_ms):
            now = float(beat * LAN.heartbeat_ms)
            self.drive.receive("eu", Heartbeat(beat, 0, self.eu.vv(), 0), now)
            self.drive.receive("eu", Ack(self.eu.vv(), durable, 0, 0), now)
            work = self.turn(now)
            for message in work.messages.get("eu", ()):
                if isinstance(message, Heartbeat):
                    self.drive.receive("eu", HeartbeatReply(message.number, 0, 0), now)
            if work.apply:
                apply(work.apply, now)

    def turn(self, now: float) -> Work:
        self.drive.tick(now)
        work = self.drive.ready()
        self.drive.accept(work)
        self.kinds += [event.kind for event in work.events]
        self.closed += [closed.link for closed in work.closed]
        return work


def refuse(_frames: tuple[Frame, ...], _now: float) -> None:
    raise AssertionError("there is nothing to apply")


def test_a_peer_whose_disk_does_not_fsync_starves_nobody() -> None:
    """It has written, and may not send it yet."""
    side = Side()
    side.eu.write()
    side.live_on(VersionVector(), refuse)
    assert not side.closed and EventKind.STARVED not in side.kinds


@pytest.mark.parametrize("is_first_known", [False, True])
def test_what_the_disk_has_no_room_for_starves_nobody(is_first_known: bool) -> None:
    """Also where the first message that waits brings nothing new by now: an alarm said that the next one was not applied (simulation,
    scenario `clears`, seed 1001084)."""
    side = Side()
    frames = [side.eu.write(), side.eu.write()]
    for frame in frames:
        side.drive.receive("eu", Frames(False, (frame.data,)), 0)
    if is_first_known:
        side.us.apply(frames[:1])
    side.live_on(side.eu.vv(), lambda _frames, now: side.drive.apply_deferred(now))
    assert not side.closed and EventKind.STARVED not in side.kinds


def test_what_waits_for_another_region_starves_nobody_and_is_told() -> None:
    side = Side()
    ap = ToyReplica("ap")
    side.eu.apply([ap.write()])
    side.drive.receive("eu", Frames(False, (side.eu.write().data,)), 0)
    side.live_on(side.eu.vv(), lambda frames, now: side.drive.applied(side.us.apply(frames), now))
    assert not side.closed and EventKind.STARVED not in side.kinds
    (waits,) = side.drive.waits_for(10.0 * LAN.starved_ms)
    assert waits.startswith(f"commits of {ap.origin} after 0 are missing here, and nobody has brought them for ")


def test_who_is_farther_than_anybody_may_starve_is_not_to_blame() -> None:
    """While the round trip is not known one message is on its way, and the next one comes a round trip later: what it brings was told of
    as fsynced long before (simulation, scenario `removals`, seed 4500525: a region that was forty times as slow)."""
    net = Network([ToyReplica("us"), ToyReplica("eu")], settings=replace(LOOPBACK, starved_ms=1_000))
    net.delays[frozenset({"us", "eu"})] = 900.0
    net.mesh()
    for _ in range(10):
        net.write("us")
        net.run(300)
    net.run_until(net.is_equal, 10_000)
    assert EventKind.STARVED not in net.kinds("eu")


@pytest.mark.parametrize("comes_at_ms", [6_000, None])
def test_a_link_that_became_slow_is_not_to_blame(comes_at_ms: int | None) -> None:
    """All that came for three seconds had been sent before: that the peer had fsynced something, and nothing after it. So an alarm said
    that this does not come (simulation, scenario `removals`, seed 7035157). Only what is answered, one has had the time to send."""
    side, late_ms = Side(replace(LAN, starved_ms=1_000, heartbeats_missed_max=20)), 3_000
    frame = side.eu.write()
    side.drive.receive("eu", Ack(side.eu.vv(), side.eu.vv(), 0, 0), 0)
    answers: list[tuple[float, int]] = []
    for now in range(0, 10_000, 100):
        if now == comes_at_ms:
            side.drive.receive("eu", Frames(False, (frame.data,)), now)
        while answers and answers[0][0] <= now:
            side.drive.receive("eu", HeartbeatReply(answers.pop(0)[1], 0, 0), now)
        work = side.turn(now)
        answers += [(now + late_ms, sent.number) for sent in work.messages.get("eu", ()) if isinstance(sent, Heartbeat)]
        if work.apply:
            side.drive.applied(side.us.apply(work.apply), now)
        if EventKind.STARVED in side.kinds:
            break
    assert (EventKind.STARVED in side.kinds, now >= 7_000) == (comes_at_ms is None, True)
