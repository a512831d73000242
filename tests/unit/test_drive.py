"""`replication.drive`: all peers of a replica, over a deterministic network of toy replicas in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from crdtkv.core.causality import EMPTY_VV, VersionVector, make_origin
from crdtkv.core.control import MemberState, close_delta, member_delta
from crdtkv.core.replica import Applied
from crdtkv.errors import ConfigError, CorruptionError, StorageError
from crdtkv.replication import LAN, LOOPBACK, PRESETS, WAN, Backoff, Code, Drive, EventKind, State, preset
from crdtkv.replication.drive import SHORT_BYTES_MAX
from crdtkv.replication.messages import (
    Ack,
    AskRelay,
    Bye,
    CannotRelay,
    EndRelay,
    Frames,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Reports,
    Subscribe,
    encode,
)
from tests.toy_replica import Network, ToyReplica
from tests.unit.test_session import hello_of


def mesh(*regions: str, **options: float) -> Network:
    net = Network([ToyReplica(region) for region in regions or ("us", "eu", "ap")])
    for name, value in options.items():
        setattr(net, name, value)
    net.mesh()
    net.run_until(net.is_live, 2_000)
    return net


# -- the healthy mesh -------------------------------------------------------------------------------------------


def test_every_commit_reaches_every_region_within_one_way_delay_and_a_turn() -> None:
    net = mesh()
    net.write("us")
    assert net.run_until(net.is_equal) == net.delay_ms


def test_a_mesh_under_load_converges_and_relays_nothing() -> None:
    net = mesh(delay_ms=3.0, apply_ms=2.0)
    rng = random.Random(1)
    for _ in range(400):
        net.write(rng.choice(["us", "eu", "ap"]), rng.randint(1, 3))
        net.run(rng.random())
    net.run_until(net.is_equal, 200)
    assert not any(isinstance(m, AskRelay) or (isinstance(m, Frames) and m.relayed) for _, _, _, m in net.sent)
    assert all(not event.alarm for events in net.events.values() for event in events)


def test_the_peers_of_a_node_share_its_pace() -> None:
    net = mesh("us", "eu", "ap", "sa")

    def sharers() -> set[int]:
        return {peer.session.own_out.flow.sharers for peer in net.drives["us"]._peers.values()}

    assert sharers() == {3}
    net.drives["us"].disconnect(next(link for link, pair in net.links.items() if set(pair) == {"us", "sa"}), net.now)
    assert sharers() == {2}


@pytest.mark.parametrize("delay_ms", [0.2, 3.0, 40.0])
def test_short_cuts_of_a_hasty_mesh_send_the_same_commits_no_later(delay_ms: float) -> None:
    arrivals: list[float] = []
    for is_hasty in (False, True):
        net = mesh(delay_ms=delay_ms, is_hasty=is_hasty)
        rng = random.Random(1)
        for _ in range(400):
            net.write(rng.choice(["us", "eu", "ap"]), rng.randint(1, 3))
            net.run(rng.random())
        arrivals.append(net.run_until(net.is_equal, 500))
        assert not any(isinstance(m, AskRelay) or (isinstance(m, Frames) and m.relayed) for _, _, _, m in net.sent)
        assert all(not event.alarm for events in net.events.values() for event in events)
    assert arrivals[1] <= arrivals[0]  # the last write is everywhere as soon
    assert bool(net.rested) == (delay_ms > 1)  # on a short link nothing waits for its pace


def us_that_greeted_eu() -> tuple[ToyReplica, ToyReplica, Drive]:
    """Two replicas, and the drive of us with a link "a" on which both said hello."""
    us, eu = ToyReplica("us"), ToyReplica("eu")
    drive = Drive(us, LAN, now_ms=0, wall_ms=lambda: 0.0)
    drive.connect("a", 0, dialed=False)
    drive.receive("a", hello_of(eu), 0)
    drive.accept(drive.ready())
    return us, eu, drive


def test_a_turn_for_a_commit_that_may_not_leave_is_saved_and_one_for_anything_else_is_not() -> None:
    us, eu, drive = us_that_greeted_eu()
    drive.receive("a", HeartbeatReply(0, 0, 0), 320)
    drive.accept(drive.ready())
    pace_ms = 320 / LAN.flushes_per_round_trip
    assert drive.rests_until(320) == LAN.heartbeat_ms  # nothing is to be sent, so nothing that comes later is waited for
    us.write()
    assert drive.rests_until(320) is None, "a link at rest sends at once"
    drive.local_commits(320)
    drive.accept(work := drive.ready())
    assert [type(m) for m in work.messages["a"]] == [Frames]
    us.write()
    assert drive.rests_until(321) == 320 + pace_ms
    assert drive.rests_until(320 + pace_ms) is None
    drive.receive("a", Frames(False, (eu.write().data,)), 321)
    assert drive.rests_until(321) is None, "what came may have to be applied, or answered"
    first = drive.ready_to_apply()
    assert first is not None and [frame.origin for frame in first.apply] == [eu.origin]
    drive.accept(first)
    assert drive.ready_to_apply() is None and drive.rests_until(321) is None, "it is being applied"
    drive.applied(us.apply(first.apply), 321)
    drive.accept(work := drive.ready())
    assert not work.messages and drive.rests_until(321) == 320 + pace_ms  # the ack waits for the frames that will leave then


def test_what_takes_long_to_apply_does_not_hold_up_what_is_to_be_sent() -> None:
    _, eu, drive = us_that_greeted_eu()
    drive.receive("a", Frames(False, (eu.write(size=SHORT_BYTES_MAX).data,)), 1)
    drive.receive("a", Heartbeat(0, 0, eu.vv(), 0), 1)
    assert drive.ready_to_apply() is None
    work = drive.ready()
    assert work.apply and [type(m) for m in work.messages["a"]] == [HeartbeatReply]


def test_causal_order_holds_when_what_a_frame_rests_on_comes_later() -> None:
    net = mesh()
    net.delays[frozenset({"us", "ap"})] = 30.0
    net.write("us")
    net.run_until(lambda: len(net.replicas["eu"].vv()) == 1)
    answer = net.write("eu")
    net.run_until(lambda: bool(net.replicas["ap"].held))
    assert net.replicas["ap"].vv().seq(answer.origin) == 0
    net.run_until(net.is_equal)
    assert EventKind.RELAY_ASKED not in net.kinds("ap")


def test_an_idle_mesh_says_heartbeats_and_nothing_else() -> None:
    net = mesh()
    net.write("us")
    net.run(100)
    net.run(2 * net.settings.heartbeat_ms)  # the first is followed by an ack that tells what is fsynced of third origins
    net.sent.clear()
    net.run(10 * net.settings.heartbeat_ms)
    assert {type(m) for _, _, _, m in net.sent} == {Heartbeat, HeartbeatReply}
    assert net.beats_sent("us", "eu") == 10


def test_what_arrives_while_a_group_is_applied_makes_the_next_group() -> None:
    net = mesh(apply_ms=5.0)
    groups: list[int] = []
    apply = net.replicas["eu"].apply

    def counted(frames: object) -> Applied:
        groups.append(len(frames))  # type: ignore[arg-type]
        return apply(frames)  # type: ignore[arg-type]

    net.replicas["eu"].apply = counted  # type: ignore[method-assign,assignment]
    net.write("us")
    net.run(2)
    for _ in range(10):
        net.write("ap")
        net.write("us")
    net.run_until(net.is_equal, 100)
    assert sum(groups) == 21 and groups[0] == 1 and len(groups) <= 5


def test_who_sends_a_backlog_holds_up_by_one_message_what_others_write_now() -> None:
    us, eu, ap = ToyReplica("us"), ToyReplica("eu"), ToyReplica("ap")
    settings = replace(LAN, apply_bytes_max=1_000)
    drive = Drive(us, settings, now_ms=0, wall_ms=lambda: 0.0)
    for link, peer in (("eu", eu), ("ap", ap)):
        drive.connect(link, 0, dialed=False)
        drive.receive(link, hello_of(peer), 0)
    for _ in range(5):
        drive.receive("eu", Frames(False, (eu.write(size=800).data,)), 1)
    drive.accept(work := drive.ready(apply=False))
    assert drive.is_behind and not work.apply and drive.rests_until(1) is None

    applied: list[str] = []
    for turn in range(7):
        if turn < 2:
            drive.receive("ap", Frames(False, (ap.write(size=300).data,)), 1)
        drive.accept(work := drive.ready())
        applied += [frame.origin.partition("@")[0] for frame in work.apply]
        drive.applied(us.apply(work.apply), 1)
    assert applied == ["eu", "ap", "eu", "ap", "eu", "eu", "eu"]
    assert not drive.is_behind and us.vv() == VersionVector({eu.origin: 5, ap.origin: 2})


def us_with_one_message_each_of(*peers: ToyReplica) -> tuple[ToyReplica, Drive]:
    """A replica that takes up one message at a time, and its drive, to which each peer has sent one over a link of its region's name."""
    us = ToyReplica("us")
    drive = Drive(us, replace(LAN, apply_bytes_max=1), now_ms=0, wall_ms=lambda: 0.0)
    for peer in peers:
        link = peer.origin.partition("@")[0]
        drive.connect(link, 0, dialed=False)
        drive.receive(link, hello_of(peer), 0)
        drive.receive(link, Frames(False, (peer.write().data,)), 1)
    return us, drive


def test_a_link_that_ended_as_its_message_was_taken_up_took_that_of_another_link_with_it() -> None:
    """After a heal both sides dial, and one of the two links is closed, perhaps with a message waiting. When the first of two messages
    that waited was taken up in the same turn, the other was taken for it and forgotten: never applied, never acknowledged, on a link that
    lived on, so that its sender had sent it, and nothing that came after it could be applied. A cluster stood so for ever."""
    eu, ap = ToyReplica("eu"), ToyReplica("ap")
    us, drive = us_with_one_message_each_of(eu, ap)
    drive.receive("eu", Bye(Code.DUPLICATE, "another link to the same peer is kept"), 1)
    drive.accept(work := drive.ready())
    assert [closed.link for closed in work.closed] == ["eu"] and [frame.origin for frame in work.apply] == [eu.origin]
    drive.applied(us.apply(work.apply), 1)
    drive.accept(work := drive.ready())
    assert [frame.origin for frame in work.apply] == [ap.origin], "what another link brought still waits"
    drive.applied(us.apply(work.apply), 1)
    assert drive.is_settled and us.vv() == VersionVector({eu.origin: 1, ap.origin: 1})


def test_a_link_that_ended_as_its_message_was_tried_alone_took_that_of_another_link_with_it() -> None:
    """The same, of messages that failed as a group and are tried one link after the other."""
    eu, ap = ToyReplica("eu"), ToyReplica("ap")
    us, drive = us_with_one_message_each_of(eu, ap)
    drive._settings = LAN  # both as one group
    drive.accept(drive.ready())
    drive.apply_failed(CorruptionError("one of them is broken"), 1)
    drive.receive("eu", Bye(Code.DUPLICATE, "another link to the same peer is kept"), 1)
    drive.accept(work := drive.ready())
    assert [frame.origin for frame in work.apply] == [eu.origin]
    drive.applied(us.apply(work.apply), 1)
    drive.accept(work := drive.ready())
    assert [frame.origin for frame in work.apply] == [ap.origin], "what another link brought still waits"


def test_a_slow_peer_costs_the_others_nothing() -> None:
    net = mesh()
    net.drop = lambda _source, target, m: target == "ap" and isinstance(m, Frames)
    for _ in range(100):
        frame = net.write("us")
        assert net.run_until(lambda dot=(frame.origin, frame.last_seq): net.replicas["eu"].vv().covers(dot)) <= 4 * net.delay_ms  # type: ignore[misc]


# -- links come and go ------------------------------------------------------------------------------------------


def test_of_two_links_dialled_at_once_both_sides_keep_the_same() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    one, two = net.connect("us", "eu"), net.connect("eu", "us")
    net.write("us")
    net.run_until(net.is_equal)
    net.run(100)
    assert list(net.links) == [two] and one != two  # eu is the lesser origin
    assert net.drives["us"].is_connected("eu") and not net.drives["us"].is_connected("ap")
    assert sorted(m.code for _, _, _, m in net.sent if isinstance(m, Bye)) == [Code.DUPLICATE] * 2


def test_a_newer_link_of_the_same_dialler_replaces_the_older() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    net.connect("us", "eu")
    net.run(50)
    newer = net.connect("us", "eu")
    net.run(50)
    assert list(net.links) == [newer]
    net.write("eu")
    net.run_until(net.is_equal)


def test_a_link_that_swallows_everything_is_noticed_and_lag_is_unknown_then() -> None:
    net = mesh("us", "eu")
    net.drop = lambda source, _target, _message: source == "eu"
    net.write("us")
    net.run(net.settings.dead_after_ms / 2)
    behind = net.peer("us", "eu").behind_ms
    assert behind is not None and behind > net.settings.dead_after_ms / 3
    net.run_until(lambda: not net.drives["us"].is_connected("eu"), net.settings.dead_after_ms)
    row = net.peer("us", "eu")
    assert row.state is State.CLOSED
    assert (row.applied_seq, row.behind_commits, row.behind_bytes, row.behind_ms, row.round_trip_ms) == (None,) * 5


def test_what_was_lost_with_a_link_is_sent_on_the_next() -> None:
    net = mesh("us", "eu", apply_ms=3.0)
    rng = random.Random(2)
    for n in range(60):
        net.write(rng.choice(["us", "eu"]), 2)
        net.run(rng.random() * 3)
        if n % 7 == 0:
            net.cut("us", "eu")
            net.run(rng.random() * 5)
            net.connect(*rng.sample(["us", "eu"], 2))
    net.run_until(net.is_equal)
    assert net.drives["us"].is_settled


def test_an_apply_may_end_after_its_link_is_gone() -> None:
    net = mesh("us", "eu", apply_ms=20.0)
    net.write("us")
    net.run(5)
    net.cut("us", "eu")
    net.run(50)
    assert net.is_equal() and net.drives["eu"].is_settled


def test_shutdown_says_goodbye_to_all() -> None:
    net = mesh()
    net.drives["us"].shutdown(net.now)
    net.turn("us")
    net.run(10)
    assert {e.details["code"] for name in ("eu", "ap") for e in net.events[name] if e.kind is EventKind.CLOSED} == {"shutdown"}
    assert not net.drives["eu"].is_connected("us") and net.drives["eu"].is_connected("ap")


def test_garbage_closes_the_link_and_late_messages_are_ignored() -> None:
    drive = Drive(ToyReplica("us"), LAN, now_ms=0, wall_ms=lambda: 0.0)
    drive.connect("a", 0, dialed=False)
    drive.receive("a", encode(hello_of(ToyReplica("eu"))), 1)
    drive.receive("a", b"\xc1", 2)
    work = drive.ready()
    drive.accept(work)
    assert [(c.link, c.code, c.permanent) for c in work.closed] == [("a", "corrupt", False)]
    assert isinstance(work.messages["a"][0], Bye)
    drive.receive("a", encode(Heartbeat(0, 0, EMPTY_VV, 0)), 3)
    drive.disconnect("a", 4)
    assert drive.ready().messages == {} and drive.ready().closed == ()


def test_messages_for_a_link_that_takes_none_gather_and_stay_few() -> None:
    us = ToyReplica("us")
    drive = Drive(us, LAN, now_ms=0, wall_ms=lambda: 0.0)
    drive.connect("a", 0, dialed=False)
    drive.receive("a", hello_of(ToyReplica("eu")), 0)
    drive.accept(drive.ready())
    drive.set_writable("a", False, 0)
    for now in range(1, 1_000):
        us.write()
        drive.receive("a", Heartbeat(now, 0, EMPTY_VV, 0), now)
        drive.local_commits(now)
        assert drive.ready().messages == {}
    drive.set_writable("a", True, 1_000)
    messages = drive.ready().messages["a"]
    assert [type(m) for m in messages] == [HeartbeatReply, Heartbeat, Frames]


# -- relay ------------------------------------------------------------------------------------------------------


def test_two_regions_cut_off_from_each_other_converge_through_a_third() -> None:
    net = mesh()
    net.cut("eu", "ap")
    net.write("eu")
    net.write("ap")
    settings = net.settings
    assert net.run_until(net.is_equal) <= settings.heartbeat_ms + settings.relay_delay_ms + 10
    asked = [(a, b) for _, a, b, m in net.sent if isinstance(m, AskRelay)]
    assert sorted(asked) == [("ap", "us"), ("eu", "us")]


def test_while_the_cut_lasts_the_relay_stays_open_and_it_ends_after_the_heal() -> None:
    net = mesh()
    net.cut("eu", "ap")
    for _ in range(40):
        net.write("eu")
        net.write("ap")
        net.run(100)
    net.run_until(net.is_equal, 100)
    assert sum(isinstance(m, AskRelay) for _, _, _, m in net.sent) == 2
    net.connect("eu", "ap")
    for _ in range(40):
        net.write("eu")
        net.write("ap")
        net.run(100)
    assert sum(isinstance(m, EndRelay) for _, _, _, m in net.sent) == 2
    net.sent.clear()
    net.write("eu")
    net.run_until(net.is_equal)
    assert not net.frames_sent("us", "ap", relayed=True)


def test_what_held_frames_rest_on_is_asked_for_after_a_short_delay_and_not_at_once() -> None:
    net = mesh()
    net.drop = lambda source, target, m: (source, target) == ("us", "ap") and isinstance(m, Frames)  # a broken stream
    net.write("us")
    net.run(5)
    net.write("eu")
    net.run_until(lambda: bool(net.replicas["ap"].held))
    began = net.now
    took = net.run_until(net.is_equal)
    (at,) = [at for at, a, b, m in net.sent if isinstance(m, AskRelay) and (a, b) == ("ap", "eu")]
    assert at - began == net.settings.relay_delay_ms
    assert took < net.settings.relay_delay_ms + 10


def test_four_regions_in_a_line_converge() -> None:
    net = Network([ToyReplica(r) for r in ("us", "eu", "ap", "sa")])
    for a, b in (("us", "eu"), ("eu", "ap"), ("ap", "sa")):
        net.connect(a, b)
    rng = random.Random(3)
    for _ in range(60):
        net.write(rng.choice(list(net.replicas)))
        net.run(20)
    net.run_until(net.is_equal, 5_000)


@pytest.mark.parametrize("answer", ["refuses", "is silent"])
def test_one_peer_is_asked_at_a_time_and_another_when_it_does_not_help(answer: str) -> None:
    """`me` is linked to `near` and `far` only; both have what `gone` wrote."""
    net = Network([ToyReplica(r) for r in ("me", "near", "far")])
    gone = ToyReplica("gone")
    for name in ("near", "far"):
        net.replicas[name].apply([gone.write()] if name == "near" else [*gone.frames.values()])
    net.delays[frozenset({"me", "far"})] = 9.0
    if answer == "refuses":
        net.replicas["near"].log.reset_floor(VersionVector({gone.origin: 1}))
    else:
        net.drop = lambda source, _target, m: source == "near" and isinstance(m, Frames)
    net.connect("me", "near")
    net.connect("me", "far")
    net.run_until(net.is_equal, 5_000)
    asked = [(at, b) for at, a, b, m in net.sent if isinstance(m, AskRelay) and a == "me"]
    assert [b for _, b in asked] == ["near", "far"]
    between = asked[1][0] - asked[0][0]
    assert between == (2.0 if answer == "refuses" else net.settings.relay_timeout_ms)
    assert any(isinstance(m, EndRelay) for _, a, b, m in net.sent if (a, b) == ("me", "near")) is (answer == "is silent")


def test_when_all_that_have_it_refuse_a_snapshot_is_needed_and_that_is_said_once() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    gone = ToyReplica("gone")
    net.replicas["us"].apply([gone.write()])
    net.replicas["us"].log.reset_floor(VersionVector({gone.origin: 1}))
    net.connect("us", "eu")
    net.run(20_000)
    assert net.kinds("eu").count(EventKind.NEEDS_SNAPSHOT) == 1
    assert net.drives["eu"].needs_snapshot == {gone.origin}
    refusals = sum(isinstance(m, CannotRelay) for _, _, _, m in net.sent)
    assert 1 < refusals <= 1 + 20_000 / net.settings.relay_retry_ms
    net.replicas["eu"].apply([*gone.frames.values()])  # by whatever way
    net.drives["eu"].local_commits(net.now)
    net.run(10_000)
    assert not net.drives["eu"].needs_snapshot


def test_once_a_snapshot_was_installed_what_came_after_it_is_relayed_and_no_second_one_asked_for() -> None:
    """The need stayed what it was as long as anything was lacking; a second snapshot, of next to nothing, followed the first at once."""
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    gone = ToyReplica("gone")
    first, second = gone.write(), gone.write()
    net.replicas["us"].apply([first, second])
    net.replicas["us"].log.reset_floor(VersionVector({gone.origin: 1}))
    net.connect("us", "eu")
    net.run_until(lambda: net.drives["eu"].needs_snapshot == {gone.origin}, 5_000)
    net.replicas["eu"].apply([first])  # as a snapshot of a moment before the second
    net.drives["eu"].local_commits(net.now)
    net.drop = lambda source, _target, m: isinstance(m, Frames)
    net.run_until(lambda: net.kinds("eu").count(EventKind.RELAY_ASKED) == 2, 5_000)
    assert not net.drives["eu"].needs_snapshot and not net.is_equal()
    net.drop = lambda source, _target, m: False
    net.run_until(net.is_equal, 5_000)
    assert net.kinds("eu").count(EventKind.NEEDS_SNAPSHOT) == 1


def test_what_an_ended_incarnation_wrote_is_relayed_though_its_region_is_connected() -> None:
    net = Network([ToyReplica("us", generation=2), ToyReplica("eu")])
    old = ToyReplica("us")
    net.replicas["us"].apply([old.write(), old.write()])
    net.connect("us", "eu")
    net.run_until(net.is_equal, 1_000)


def test_amnesia_ends_in_a_new_incarnation_that_gets_back_what_was_lost() -> None:
    """us comes back from an old copy, undetected. Its peers know more of it: they say so, and relay it what it had written."""
    net = mesh()
    for _ in range(3):
        net.write("us")
    net.run_until(net.is_equal)
    former, us = net.replicas["us"].origin, ToyReplica("us")
    us.apply([net.replicas["us"].frames[former, 1]])
    net.replicas["us"] = us
    net.restart("us")
    net.connect("us", "eu")
    drive = net.drives["us"]
    net.run_until(lambda: drive.amnesia is not None)
    assert str(drive.amnesia) == f"{net.replicas['eu'].origin} knows {former} up to 3, this replica only up to 1: commits were lost here"
    us.origin = make_origin("us", 2, 8)
    drive.renewed(net.now)
    drive.receive(next(iter(net.links)), Heartbeat(9, 0, net.replicas["eu"].vv(), 0), net.now)
    assert drive.amnesia is None, "once is enough, whatever else comes over the link"
    net.turn("us")
    written = net.write("us")
    net.run_until(lambda: not any("us" in pair for pair in net.links.values()), 100)
    assert net.events["us"][-1].details.get("code") != Code.FORK
    net.reconnect()
    net.run_until(net.is_equal)
    assert us.vv().seq(former) == 3 and net.replicas["ap"].vv().covers((written.origin, 1))


def test_a_link_to_a_former_incarnation_gives_way_to_one_to_the_present() -> None:
    """The old link may be half-open: until it times out it would pass for the way by which the former origin's commits come."""
    net = mesh("us", "eu")
    net.drop = lambda source, _target, _message: source == "us" and net.replicas["us"].origin.startswith("us@1")
    net.replicas["us"].origin = make_origin("us", 2, 8)
    net.drives["us"] = net._drive("us")
    net.connect("us", "eu")
    net.run_until(lambda: net.peer("eu", "us").origin == net.replicas["us"].origin, 100)
    assert Code.REPLACED in [event.details.get("code") for event in net.events["eu"]]


def test_below_the_floor_of_its_origin_a_frame_is_relayed_by_who_still_has_it() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu"), ToyReplica("ap")])
    net.connect("us", "eu")
    for _ in range(5):
        net.write("us")
    net.run_until(lambda: net.replicas["eu"].vv() == net.replicas["us"].vv())
    net.replicas["us"].log.reset_floor(VersionVector({net.replicas["us"].origin: 3}))
    net.restart("us")
    net.connect("us", "eu")
    net.connect("us", "ap")
    net.run(1_000)
    assert EventKind.NEEDS_SNAPSHOT in net.kinds("us") and not net.replicas["ap"].vv()
    net.connect("eu", "ap")
    net.write("us")
    net.run_until(net.is_equal, 2_000)
    net.run(net.settings.heartbeat_ms)
    assert not net.peer("us", "ap").needs_snapshot and not net.peer("ap", "us").below_floor


def test_no_wait_blocks_another_when_windows_and_credit_are_tiny_and_links_are_broken() -> None:
    """Own frames held for relayed ones held for own ones: whatever the order, what can move does."""
    settings = replace(LOOPBACK, message_frames_max=2, window_messages_max=2, relay_timeout_ms=200)
    for seed in range(8):
        rng = random.Random(seed)
        net = Network([ToyReplica(r) for r in ("us", "eu", "ap", "sa")], settings=settings)
        net.mesh()
        broken = {frozenset(rng.sample(list(net.replicas), 2)) for _ in range(2)}
        net.drop = lambda a, b, m, broken=broken: frozenset({a, b}) in broken and isinstance(m, Frames)  # type: ignore[misc]
        for _ in range(150):
            net.write(rng.choice(list(net.replicas)))
            net.run(rng.random() * 4)
        net.run_until(net.is_equal, 20_000)


@pytest.mark.parametrize("seed", range(4))
def test_links_that_cross_and_break_under_load_lose_no_message_of_another(seed: int) -> None:
    """After each turn, what came over a live link was dealt with, is being applied, or waits: else no heartbeat ever brings it again."""
    settings = replace(LOOPBACK, apply_bytes_max=300, message_bytes_max=400, backoff_max_ms=100)
    net = Network([ToyReplica(region) for region in ("us", "eu", "ap")], settings=settings, delay_ms=2.0)
    net.gather_ms = 3.0
    net.mesh()
    rng = random.Random(seed)
    for _ in range(300):
        net.write(rng.choice(["us", "eu", "ap"]), rng.randint(1, 3))
        a, b = rng.sample(["us", "eu", "ap"], 2)
        if rng.random() < 0.3:
            net.connect(a, b)  # though there is a link: its dial has crossed another
        elif rng.random() < 0.1:
            net.cut(a, b)
            net.later(10 * rng.random(), net.reconnect)
        net.run_until(lambda: any(drive.astray for drive in net.drives.values()), 4 * rng.random(), required=False)
        assert not any(drive.astray for drive in net.drives.values())
    net.reconnect()
    net.run_until(net.is_equal, 2_000)
    assert not any(event.alarm for events in net.events.values() for event in events)


# -- the replica's bound, and its refusals ------------------------------------------------------------------------


def test_frames_that_the_replica_could_not_hold_are_asked_for_again() -> None:
    net = mesh()
    net.replicas["ap"].held_max = 3
    net.delays[frozenset({"us", "ap"})] = 400.0
    net.write("us")
    net.run(5)
    for _ in range(20):
        net.write("eu")
    net.run(5)
    assert len(net.replicas["ap"].held) == 3
    net.run_until(net.is_equal, 3_000)
    assert any(isinstance(m, Subscribe) for _, a, b, m in net.sent if (a, b) == ("ap", "eu"))


def test_subscribing_anew_slows_down_while_nothing_is_applied() -> None:
    net = mesh("us", "eu")
    ghost = ToyReplica("ap")
    net.replicas["us"].apply([ghost.write()])
    net.replicas["us"].log.reset_floor(VersionVector({ghost.origin: 1}))
    net.replicas["eu"].held_max = 0
    net.write("us")
    net.run(30_000)
    times = [at for at, _, _, m in net.sent if isinstance(m, Subscribe)]
    assert 5 < len(times) < 60
    assert times[1] - times[0] < times[-1] - times[-2]


def test_a_fork_found_while_applying_quarantines_its_link_and_no_other() -> None:
    net = mesh()
    branch = ToyReplica("us")
    branch.write(size=5)
    net.replicas["eu"].apply([*branch.frames.values()])
    net.replicas["eu"].frames.clear()  # eu keeps no hash that the handshake could have compared
    real = [net.write("us"), net.write("us")]
    net.write("ap")
    net.run(100)
    assert EventKind.FORK in net.kinds("eu")
    assert net.peer("eu", "us").state is State.QUARANTINED
    assert net.drives["eu"].is_connected("ap")
    assert net.replicas["ap"].vv().seq(real[0].origin) == 2


def test_when_a_group_of_several_links_fails_the_link_to_blame_is_found() -> None:
    drive = Drive(ToyReplica("us"), LAN, now_ms=0, wall_ms=lambda: 0.0)
    good, bad = ToyReplica("eu"), ToyReplica("ap")
    for link, peer in (("good", good), ("bad", bad)):
        drive.connect(link, 0, dialed=False)
        drive.receive(link, hello_of(peer), 0)
        drive.receive(link, Frames(False, (peer.write().data,)), 0)
    drive.accept(work := drive.ready())
    assert [f.origin for f in work.apply] == [good.origin, bad.origin]
    outcomes = []
    drive.apply_failed(CorruptionError("bad rows"), 0)
    for _ in range(2):
        drive.accept(work := drive.ready())
        outcomes.append([f.origin for f in work.apply])
        if work.apply[0].origin == bad.origin:
            drive.apply_failed(CorruptionError("bad rows"), 0)
        else:
            drive.applied(Applied(1, 0, 1), 0)
    assert outcomes == [[good.origin], [bad.origin]]
    assert [(c.link, c.code) for c in drive.ready().closed] == [("bad", "apply")]
    assert drive.is_settled


def test_a_fork_that_was_held_is_blamed_on_who_sent_it_and_not_on_who_made_it_ready() -> None:
    # The innocent link was quarantined, and the forked one waited for ever without an alarm.
    drive = Drive(ToyReplica("us"), LAN, now_ms=0, wall_ms=lambda: 0.0)
    good, bad = ToyReplica("eu"), ToyReplica("ap")
    for link, peer in (("good", good), ("bad", bad)):
        drive.connect(link, 0, dialed=False)
        drive.receive(link, hello_of(peer), 0)
    drive.receive("bad", Frames(False, (bad.write().data,)), 0)
    drive.accept(drive.ready())
    drive.applied(Applied(0, 1, 0), 0)
    drive.receive("good", Frames(False, (good.write().data,)), 0)
    drive.accept(drive.ready())
    drive.apply_failed(CorruptionError("fork: another history", fork=True, origin=bad.origin, seq=1), 0)
    drive.accept(work := drive.ready())
    assert [(c.link, c.code) for c in work.closed] == [("bad", "fork")]
    assert EventKind.FORK in [event.kind for event in work.events]
    assert [frame.origin for frame in work.apply] == [good.origin]  # given again: what followed the broken one was not applied
    drive.applied(Applied(1, 0, 1), 0)
    assert drive.is_settled and drive.is_connected("eu")


def test_broken_rows_that_were_held_are_blamed_on_who_sent_them_and_not_on_who_made_them_ready() -> None:
    # The innocent link was closed, and the sender of the broken rows stayed.
    drive = Drive(ToyReplica("us"), LAN, now_ms=0, wall_ms=lambda: 0.0)
    good, bad = ToyReplica("eu"), ToyReplica("ap")
    for link, peer in (("good", good), ("bad", bad)):
        drive.connect(link, 0, dialed=False)
        drive.receive(link, hello_of(peer), 0)
    broken = bad.write()
    drive.receive("bad", Frames(False, (broken.data,)), 0)
    drive.accept(drive.ready())
    drive.applied(Applied(0, 1, 0), 0)
    drive.receive("good", Frames(False, (good.write().data,)), 0)
    drive.accept(drive.ready())
    drive.apply_failed(CorruptionError("frame: a value is not bytes", origin=bad.origin, seq=broken.first_seq), 0)
    drive.accept(work := drive.ready())
    assert [(c.link, c.code) for c in work.closed] == [("bad", "apply")]
    assert [frame.origin for frame in work.apply] == [good.origin]
    drive.applied(Applied(1, 0, 1), 0)
    assert drive.is_settled and drive.is_connected("eu")


def test_when_the_disk_fails_the_links_are_closed_and_nothing_is_blamed_on_content() -> None:
    drive = Drive(ToyReplica("us"), LAN, now_ms=0, wall_ms=lambda: 0.0)
    peer = ToyReplica("eu")
    drive.connect("a", 0, dialed=False)
    drive.receive("a", hello_of(peer), 0)
    drive.receive("a", Frames(False, (peer.write().data,)), 0)
    drive.accept(drive.ready())
    drive.apply_failed(StorageError("disk full"), 0)
    (closed,) = drive.ready().closed
    assert closed.code == Code.APPLY and not closed.permanent


def test_divergence_is_found_by_both_sides_when_idle() -> None:
    net = mesh("us", "eu")
    net.write("us")
    net.run_until(net.is_equal)
    net.replicas["eu"].tampered = "one entry"
    net.run(3 * net.settings.heartbeat_ms)
    assert net.kinds("us").count(EventKind.DIVERGENCE) == 1
    assert net.kinds("eu").count(EventKind.DIVERGENCE) == 1


def test_a_hostile_peer_with_frames_that_never_become_ready_harms_only_itself() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    net.connect("us", "eu")
    ghost, evil = ToyReplica("zz"), ToyReplica("evil")
    evil.apply([ghost.write()])
    drive = net.drives["us"]
    drive.connect("evil", 0, dialed=False)
    drive.receive("evil", hello_of(evil, vv=VersionVector({ghost.origin: 1})), 0)
    for n in range(40):
        drive.receive("evil", Frames(False, (evil.write(size=1 << 20).data,)), n / 100)
        net.turn("us")
    net.write("eu")
    net.run_until(lambda: net.replicas["us"].vv().seq(net.replicas["eu"].origin) == 1, 50)
    assert any(e.details.get("code") == Code.OVERDRAWN for e in net.events["us"])
    assert sum(f.size for f in net.replicas["us"].held) <= net.settings.own_credit_bytes


# -- lag, clocks, settings, backoff -------------------------------------------------------------------------------


def test_statistics_name_every_region_with_clock_offsets() -> None:
    net = Network([ToyReplica(r) for r in ("us", "eu", "ap")])
    net.wall_offsets["eu"] += 250.0
    net.delay_ms = 10.0
    net.mesh()
    net.run(2_000)
    rows = net.drives["us"].statistics(net.now)
    assert [row.region for row in rows] == ["ap", "eu"]
    assert [row.clock_offset_ms for row in rows] == [0.0, 250.0]
    assert [row.round_trip_ms for row in rows] == [20.0, 20.0]


def test_a_link_that_comes_back_knows_how_far_it_is() -> None:
    """After a cut both sides are busy from the start, so that no heartbeat of the new link tells how short it is."""
    net = mesh("us", "eu")
    net.run(2_000)
    net.cut("us", "eu")
    net.write("us", 3)
    net.delay_ms = 400.0
    net.connect("us", "eu")
    net.run_until(net.is_live)
    session = next(peer.session for peer in net.drives["us"]._peers.values())
    assert (session.round_trip_ms, session.distance_ms) == (800.0, 2.0)


def test_lag_grows_while_the_peer_does_not_apply() -> None:
    net = mesh("us", "eu")
    net.drop = lambda source, _target, m: source == "us" and isinstance(m, Frames)
    net.write("us", 3)
    net.run(300)
    row = net.peer("us", "eu")
    assert (row.behind_commits, row.behind_ms) == (3, 300.0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    assert preset(name).validate() is PRESETS[name]


@pytest.mark.parametrize(
    "change",
    [
        {"heartbeat_ms": 0},
        {"relay_delay_ms": 1.5},
        {"own_credit_bytes": 1 << 20},
        {"relay_credit_bytes": 1 << 20},
        {"message_bytes_max": 1 << 25},
        {"message_frames_max": 10**5},
        {"backoff_max_ms": 1},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(LAN, **change).validate()


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="loopback, lan, wan"):
        preset("moon")


def test_backoff_doubles_to_its_limit_with_jitter_and_starts_again_after_success() -> None:
    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    least, most = Backoff(WAN, Fixed(0.0)), Backoff(WAN, Fixed(1.0))
    assert [most.next_ms() for _ in range(9)] == [200, 400, 800, 1_600, 3_000, 3_000, 3_000, 3_000, 3_000]
    assert [least.next_ms() for _ in range(3)] == [100, 200, 400]
    most.reset()
    assert most.next_ms() == 200
    assert most.next_ms(permanent=True) == 15_000


def test_a_refused_hello_is_permanent_and_is_told_as_one_event() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu", cluster="other")])
    net.connect("us", "eu")
    net.run(100)
    assert net.kinds("us") == net.kinds("eu") == [EventKind.CLOSED]
    assert not net.links
    assert {type(m) for _, _, _, m in net.sent} == {Hello, Bye}


def test_one_run_gives_one_trace() -> None:
    def trace() -> list[object]:
        net = mesh()
        rng = random.Random(9)
        for _ in range(50):
            net.write(rng.choice(["us", "eu", "ap"]))
            if rng.random() < 0.1:
                net.cut("us", "eu")
            if rng.random() < 0.1:
                net.connect("us", "eu")
            net.run(rng.random() * 30)
        return [*net.sent]

    first = trace()
    assert first == trace() and any(isinstance(m, Ack) for *_, m in first)  # type: ignore[misc]


def test_who_returns_as_an_incarnation_that_ended_goes_on_as_another() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    eu = net.replicas["eu"].origin
    us = net.replicas["us"]
    us.control.apply(close_delta(eu, 1), us.origin, 1, 1, b"")
    net.connect("us", "eu")
    net.run(500)
    assert net.drives["eu"].amnesia is not None and "has ended" in net.drives["eu"].amnesia
    assert net.drives["us"].amnesia is None


def test_who_is_frozen_for_a_reason_not_heard_of_yet_is_refused_for_now() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    net.replicas["us"].control.freeze(net.replicas["eu"].origin, 0)
    net.connect("us", "eu")
    net.run(500)
    assert net.drives["eu"].amnesia is None and not net.drives["us"].is_connected("eu")


def test_a_removed_region_is_refused_and_told_how_to_come_back() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu")])
    us = net.replicas["us"]
    us.control.apply(member_delta("eu", MemberState.REMOVED, "", 1), us.origin, 1, 1, b"")
    net.connect("us", "eu")
    net.run(500)
    told = next(event for event in net.events["eu"] if event.kind is EventKind.REMOVED)
    assert told.alarm and "crdtkv recover export" in told.text and "empty directory" in told.text
    assert not net.drives["us"].is_connected("eu") and net.drives["eu"].amnesia is None


def test_a_closing_says_for_whom_it_waits() -> None:
    net = Network([ToyReplica("us"), ToyReplica("eu"), ToyReplica("ap")])
    us = net.replicas["us"]
    frame = net.replicas["eu"].write()
    us.apply([frame])
    us.control.freeze(frame.origin, 1)
    drive = net.drives["us"]
    drive.membership.receive(Reports({net.replicas["ap"].origin: {frame.origin: (1, True)}}))
    drive.tick(1_000)
    standing = next(s for s in drive.membership.standings(us.vv()) if s.region == "eu")
    assert standing.waits_for == ("eu",) and standing.reports["us"] == {frame.origin: 1}, "eu itself has not told"
