"""`replication.session`: one peer, told things and asked what to do. The peer is the test: well behaved, odd or hostile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import pytest

from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector
from crdtkv.core.frame import FRAME_BYTES_MAX, Frame
from crdtkv.errors import CorruptionError
from crdtkv.replication import LAN, Code, Event, EventKind, Relay, ReplicationSettings, Session, State
from crdtkv.replication.hello import ACK_WITH_FRAMES
from crdtkv.replication.messages import (
    Ack,
    AskRelay,
    Bye,
    CannotRelay,
    Credit,
    EndRelay,
    Frames,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    Reports,
    Subscribe,
    Unknown,
)
from crdtkv.replication.progress import Outgoing, OwnTail
from crdtkv.replication.session import ROUND_TRIPS
from tests.toy_replica import ToyReplica

MIB = 1 << 20
M = TypeVar("M")
WALL_MS = 1_000_000.0


class Side:
    """A session of `replica`, its clock, and what a test asks of it."""

    def __init__(self, replica: ToyReplica, settings: ReplicationSettings = LAN, *, wall_offset_ms: float = 0.0) -> None:
        self.replica = replica
        self.now = 0.0
        self.wall_offset_ms = wall_offset_ms
        self.events: list[Event] = []
        self.tail = OwnTail(replica, settings, 0.0)
        self.session = Session(
            replica, settings, self.tail, now_ms=0.0, wall_ms=lambda: WALL_MS + wall_offset_ms + self.now, events=self.events
        )

    def receive(self, *messages: Message) -> None:
        for message in messages:
            self.session.receive(message, self.now)

    def send(self) -> list[Message]:
        """What is ready now, accepted."""
        ready = self.session.ready()
        assert self.session.ready() == ready, "asking twice changed something"
        self.session.accept(ready)
        return list(ready.messages)

    def write(self, commits: int = 1, *, size: int = 10) -> Frame:
        frame = self.replica.write(commits, size=size)
        self.refresh()
        return frame

    def refresh(self) -> None:
        self.tail.refresh(self.now)
        self.session.advance(self.replica.vv(), self.replica.durable_vv(), self.now)

    def apply(self) -> None:
        """Apply what arrived, as the drive does."""
        for relayed, frames in self.session.take_frames():
            self.replica.apply(frames)
            self.session.settle(relayed, frames)
        self.refresh()

    def pass_time(self, ms: float) -> None:
        self.now += ms
        self.session.tick(self.now)

    @property
    def state(self) -> State:
        return self.session.state

    def bye(self) -> Bye:
        """The goodbye of a session that has just ended, which is all that it says."""
        messages = self.send()
        assert len(messages) == 1 and isinstance(messages[0], Bye)
        assert self.send() == []
        return messages[0]


def hello_of(replica: ToyReplica, **changes: object) -> Hello:
    hello = Hello(
        version_min=1,
        version_max=1,
        features=(),
        cluster=replica.cluster,
        shard=replica.shard,
        region=replica.origin.partition("@")[0],
        origin=replica.origin,
        members=(),
        vv=replica.vv(),
        kept=replica.kept_hashes(),
        wall_ms=int(WALL_MS),
        hlc=1,
        own_credit=32 * MIB,
        relay_credit=32 * MIB,
    )
    return msgspec.structs.replace(hello, **changes)


def live(replica: ToyReplica, peer: ToyReplica, settings: ReplicationSettings = LAN, **changes: object) -> Side:
    """A side that has exchanged hellos and its first heartbeat with a peer."""
    side = Side(replica, settings)
    side.receive(hello_of(peer, **changes))
    side.send()
    assert side.state is State.LIVE
    return side


def frames_in(messages: list[Message], *, relayed: bool = False) -> list[Frame]:
    return [Frame.decode(data) for m in messages if isinstance(m, Frames) and m.relayed is relayed for data in m.frames]


def only(kind: type[M], messages: list[Message]) -> M:
    found = [m for m in messages if isinstance(m, kind)]
    assert len(found) == 1, messages
    return found[0]


@pytest.fixture
def us() -> ToyReplica:
    return ToyReplica("us")


@pytest.fixture
def eu() -> ToyReplica:
    return ToyReplica("eu")


@pytest.fixture
def ap() -> ToyReplica:
    return ToyReplica("ap")


def acked(side: Side, peer: ToyReplica, own: int, relay: int = 0) -> Ack:
    return Ack(peer.vv(), peer.durable_vv(), own, relay)


# -- hello ------------------------------------------------------------------------------------------------------


def test_the_first_thing_said_is_hello_and_nothing_else_before_the_peers(us: ToyReplica, eu: ToyReplica) -> None:
    us.write()
    side = Side(us)
    hello = only(Hello, side.send())
    assert (hello.origin, hello.vv, hello.kept) == (us.origin, us.vv(), us.kept_hashes())
    assert side.send() == []
    side.receive(hello_of(eu))
    assert side.state is State.LIVE
    assert [type(m) for m in side.send()] == [Heartbeat, Frames]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster": "other"}, Code.CLUSTER),
        ({"shard": 1}, Code.CLUSTER),
        ({"version_min": 2, "version_max": 9}, Code.VERSION),
        ({"region": "us", "origin": Origin("us@1-00000007")}, Code.SELF),
        ({"region": "ap"}, Code.PROTOCOL),
    ],
)
def test_a_peer_that_does_not_belong_here_is_refused_by_name(
    us: ToyReplica, eu: ToyReplica, changes: dict[str, object], code: Code
) -> None:
    side = Side(us)
    side.receive(hello_of(eu, **changes))
    assert side.state is State.CLOSED
    assert [type(m) for m in side.send()] == [Bye]
    assert side.session.close_code == code


def test_a_new_incarnation_of_the_own_region_is_a_peer(us: ToyReplica) -> None:
    assert live(us, ToyReplica("us", generation=2)).state is State.LIVE


def test_a_peer_that_knows_more_of_me_than_i_do_raises_amnesia(us: ToyReplica, eu: ToyReplica) -> None:
    side = Side(us)
    side.receive(hello_of(eu, vv=VersionVector({us.origin: 1})))
    assert side.state is State.CLOSED and side.bye().code == Code.AMNESIA and side.session.found_amnesia
    assert [e.kind for e in side.events if e.alarm] == [EventKind.AMNESIA]
    assert side.events[0].details == {"theirs": 1, "ours": 0}


def test_amnesia_shows_in_any_later_message_too(us: ToyReplica, eu: ToyReplica) -> None:
    ahead = VersionVector({us.origin: 5})
    donor = ToyReplica("us")
    for _ in range(5):
        donor.write()
    eu.apply([*donor.frames.values()])
    rests_on_lost = eu.write()
    for message in (
        Heartbeat(0, 0, ahead, 0),
        Ack(ahead, ahead, 0, 0),
        Subscribe(ahead),
        AskRelay(ahead),
        Frames(False, (rests_on_lost.data,)),
    ):
        side = live(us, ToyReplica("eu"))
        side.receive(message)
        assert side.state is State.CLOSED and side.session.found_amnesia, message
        assert EventKind.AMNESIA in [e.kind for e in side.events]


def test_who_hears_that_it_had_told_of_more_than_it_has_lost_its_disk(us: ToyReplica, eu: ToyReplica) -> None:
    """Its own commits are all there. But others wait for it to hand on what it reported of an origin that ends, and it waits for them."""
    ended = Origin("ap@1-00000007")
    side = live(us, eu)
    side.receive(Reports({eu.origin: {ended: (3, True)}, us.origin: {us.origin: (0, False)}}))
    assert side.state is State.LIVE
    side.receive(Reports({us.origin: {ended: (3, True)}}))
    assert side.state is State.CLOSED and side.session.found_amnesia
    assert [(e.kind, e.details) for e in side.events if e.alarm] == [(EventKind.AMNESIA, {"theirs": 3, "ours": 0})]


def test_two_contents_for_one_dot_quarantine_the_link(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    branch = ToyReplica("ap")
    us.apply([ap.write(size=3)])
    eu.apply([branch.write(size=4)])
    side = Side(us)
    side.receive(hello_of(eu))
    assert side.state is State.QUARANTINED and side.bye().code == Code.FORK
    (alarm,) = [e for e in side.events if e.alarm]
    assert alarm.kind is EventKind.FORK and alarm.details["origin"] == ap.origin and alarm.details["seq"] == 1


def test_a_frame_that_ends_elsewhere_is_other_content_as_well(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    branch = ToyReplica("ap")
    us.apply([ap.write(3)])
    eu.apply([branch.write(2)])
    side = Side(us)
    side.receive(hello_of(eu))
    assert side.state is State.QUARANTINED


def test_equal_histories_of_different_length_are_no_fork(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    frames = [ap.write() for _ in range(3)]
    us.apply(frames)
    eu.apply(frames[:2])
    assert live(us, eu).state is State.LIVE
    assert live(eu, us).state is State.LIVE


def test_no_hello_in_time(us: ToyReplica) -> None:
    side = Side(us)
    side.pass_time(LAN.hello_timeout_ms - 1)
    assert side.state is State.OPENING
    side.pass_time(1)
    assert side.state is State.CLOSED and side.session.close_code == Code.TIMEOUT


def test_order_of_the_first_messages(us: ToyReplica, eu: ToyReplica) -> None:
    side = Side(us)
    side.receive(Credit(1, 1))
    assert side.session.close_code == Code.PROTOCOL
    side = live(us, eu)
    side.receive(hello_of(eu))
    assert side.bye().reason == "a second hello"


def test_unknown_kinds_are_ignored_if_optional_else_refused_by_name(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.receive(Unknown("?gossip", optional=True))
    assert side.state is State.LIVE
    side.receive(Unknown("snapshot_v9", optional=False))
    bye = side.bye()
    assert bye.code == Code.VERSION and "'snapshot_v9'" in bye.reason


def test_after_the_end_nothing_is_taken_in_and_nothing_said(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.receive(Bye("shutdown", "see you"))
    assert side.state is State.CLOSED and side.session.said_bye_by_peer
    frame = eu.write()
    side.receive(Frames(False, (frame.data,)))
    side.pass_time(10_000)
    assert side.session.take_frames() == [] and side.send() == []
    assert [e.kind for e in side.events] == [EventKind.LIVE, EventKind.CLOSED]


# -- own frames -------------------------------------------------------------------------------------------------


def test_own_frames_are_sent_in_order_and_only_what_the_peer_lacks(us: ToyReplica, eu: ToyReplica) -> None:
    frames = [us.write(2) for _ in range(5)]
    eu.apply(frames[:2])
    side = Side(us)
    side.receive(hello_of(eu))
    assert frames_in(side.send()) == frames[2:]


def test_frames_of_others_are_not_sent_unasked(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    us.apply([ap.write()])
    mine = us.write()
    side = Side(us)
    side.receive(hello_of(eu))
    assert frames_in(side.send()) == [mine]


def test_nothing_leaves_before_it_is_released(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    us.unreleased = 2
    first, second = side.write(), side.write()
    assert frames_in(side.send()) == []
    us.unreleased = 1
    side.refresh()
    assert frames_in(side.send()) == [first]
    us.unreleased = 0
    eu.apply([first])
    side.refresh()
    side.receive(acked(side, eu, 1))
    assert frames_in(side.send()) == [second]


def test_what_was_not_released_when_the_replica_opened_does_not_leave_either(us: ToyReplica, eu: ToyReplica) -> None:
    first, second = us.write(), us.write()
    us.unreleased = 1
    side = Side(us)
    side.receive(hello_of(eu))
    assert frames_in(side.send()) == [first]
    us.unreleased = 0
    side.refresh()
    side.receive(Ack(VersionVector({us.origin: 1}), EMPTY_VV, 1, 0))
    assert frames_in(side.send()) == [second]


def test_on_a_short_link_one_message_is_on_its_way_and_the_next_carries_all_that_gathered(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    first = side.write()
    assert frames_in(side.send()) == [first]
    more = [side.write() for _ in range(5)]
    assert frames_in(side.send()) == []
    eu.apply([first])
    side.receive(acked(side, eu, 1))
    assert frames_in(side.send()) == more


def measure_round_trip(side: Side, ms: float) -> None:
    """Answer the first heartbeat after so long."""
    side.now += ms
    side.receive(HeartbeatReply(0, int((WALL_MS + side.now) * 1000), 0))


def test_on_a_long_link_the_window_grows_with_the_round_trip_and_messages_keep_their_distance(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    measure_round_trip(side, 80.0)
    pace_ms = 80 / LAN.flushes_per_round_trip
    sent = 0
    for _ in range(200):
        side.write()
        sent += len(frames_in(side.send()))  # one that was at rest sends at once
        side.write()
        assert frames_in(side.send()) == []  # until the pace is over nothing more leaves
        if sent == 1:
            assert side.session.ready().wake_at_ms == side.now + pace_ms
        side.pass_time(pace_ms - 1)
        assert frames_in(side.send()) == []
        side.pass_time(1)
    assert side.session.statistics().in_flight_messages == LAN.window_messages_min + LAN.flushes_per_round_trip
    assert sent == 2 * side.session.statistics().in_flight_messages - 1  # what was written meanwhile had gathered


@pytest.mark.parametrize(("round_trip_ms", "pace_ms"), [(1.9, 0.0), (2.0, 1.0), (64.0, 1.0), (80.0, 1.25), (640.0, 10.0), (1_000.0, 10.0)])
def test_the_pace_is_a_part_of_the_round_trip_within_bounds_and_nothing_on_a_short_link(round_trip_ms: float, pace_ms: float) -> None:
    assert Outgoing(LAN).pace_ms(round_trip_ms) == pace_ms


def test_peers_share_the_least_pace_so_a_node_sends_as_many_messages_however_many_there_are() -> None:
    flow = Outgoing(LAN)
    flow.sharers = 5
    assert [flow.pace_ms(round_trip_ms) for round_trip_ms in (1.9, 80.0, 640.0)] == [0.0, 5.0, 10.0]


def test_on_a_long_link_no_more_is_on_its_way_than_its_bound_and_a_message(us: ToyReplica, eu: ToyReplica) -> None:
    settings = replace(LAN, message_bytes_max=3_000, flight_bytes_far_max=20_000)
    side = live(us, eu, settings)
    measure_round_trip(side, 80.0)
    sent = 0
    for _ in range(100):
        side.write(size=900)
        side.pass_time(LAN.flush_ms_max)
        sent += sum(frame.size for frame in frames_in(side.send()))
    assert settings.flight_bytes_far_max <= sent < settings.flight_bytes_far_max + settings.message_bytes_max


def test_the_window_has_a_limit_however_long_the_link(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    measure_round_trip(side, 1_000.0)
    for _ in range(200):
        side.write()
        side.send()
        side.now += LAN.flush_ms_max
    assert side.session.statistics().in_flight_messages == LAN.window_messages_max


def test_on_a_long_link_one_that_catches_up_does_not_wait_between_full_messages(us: ToyReplica, eu: ToyReplica) -> None:
    settings = replace(LAN, message_bytes_max=10_000)
    side = live(us, eu, settings)
    measure_round_trip(side, 80.0)
    for _ in range(100):
        us.write(size=900)
    side.refresh()
    messages = 0
    while frames_in(side.send()):
        messages += 1
    assert messages == 10
    side.write()  # the last of them was not full, and what follows it gathers again
    assert frames_in(side.send()) == []


def test_a_message_is_bounded_in_bytes_and_frames_but_carries_one_large_frame(us: ToyReplica, eu: ToyReplica) -> None:
    settings = replace(LAN, message_bytes_max=10_000, message_frames_max=3)
    side = live(us, eu, settings)
    small = [us.write() for _ in range(4)]
    large = us.write(size=50_000)
    after = us.write()
    side.refresh()
    batches = []
    for count in range(1, 5):
        frames = frames_in(side.send())
        batches.append(frames)
        eu.apply(frames)
        side.receive(acked(side, eu, count))
    assert batches == [small[:3], small[3:], [large], [after]]


def test_what_was_written_while_nobody_was_connected_is_not_read_from_the_disk_for_the_tail(us: ToyReplica, eu: ToyReplica) -> None:
    """When a peer was there again after a million commits, all of them were read and decoded in one turn, to keep the last 8 MiB."""
    side = live(us, eu)
    side.receive(Bye("", ""))
    written = [us.write() for _ in range(100)]
    us.log.at_hand = lambda: 90
    read, positions = us.log.read, []

    def counted(position: int, **options: Any) -> tuple[list[Frame], int]:
        positions.append(position)
        return read(position, **options)

    us.log.read = counted  # type: ignore[method-assign]
    side.refresh()
    assert positions and min(positions) >= 90
    assert side.tail.last_seq == 100 and side.tail.behind_bytes(50) is None
    limits = {"bytes_max": MIB, "frames_max": 100, "credit": MIB}
    assert side.tail.after(50, **limits) is None and side.tail.after(95, **limits) == written[95:]
    again = Side(us)
    again.receive(hello_of(eu))
    assert frames_in(again.send()) == written  # what the tail has not, the log has


@pytest.mark.parametrize("tail_bytes_max", [1, 500, 8 * MIB])
def test_a_peer_that_is_far_behind_catches_up_from_the_log(us: ToyReplica, eu: ToyReplica, ap: ToyReplica, tail_bytes_max: int) -> None:
    settings = replace(LAN, tail_bytes_max=tail_bytes_max, message_frames_max=7)
    mine = []
    for n in range(50):
        us.apply([ap.write()])
        mine.append(us.write())
        if n == 25:
            side = live(us, eu, settings, vv=VersionVector({ap.origin: 10**6}))
            side.receive(Bye("", ""))
    side = Side(us, settings)
    side.receive(hello_of(eu))
    got: list[Frame] = []
    for count in range(1, 100):
        if count == 4:
            mine += [side.write() for _ in range(20)]
        frames = frames_in(side.send())
        got += frames
        side.receive(Ack(VersionVector({us.origin: got[-1].last_seq}), EMPTY_VV, count, 0))
        if len(got) == 70:
            break
    assert got == mine


def test_below_the_floor_no_frame_is_skipped_and_both_sides_know(us: ToyReplica, eu: ToyReplica) -> None:
    us.log = type(us.log)(bytes_max=20_000)
    for _ in range(60):
        us.write(size=1_000)
    assert us.log.floor().seq(us.origin) > 0
    side, other = Side(us), Side(eu)
    other.receive(*side.send())
    side.receive(*other.send())
    messages = side.send()
    assert frames_in(messages) == [] and only(CannotRelay, messages).own
    assert side.session.statistics().needs_snapshot
    assert [e.kind for e in side.events] == [EventKind.LIVE, EventKind.NEEDS_SNAPSHOT]
    assert side.send() == [] and not side.session.ready().plans  # it is said, and found, once
    other.receive(*messages)
    assert other.session.statistics().below_floor and other.events[-1].kind is EventKind.NEEDS_SNAPSHOT

    # By whatever way it gets over the floor: then the own stream goes on by itself.
    floor = us.log.floor().seq(us.origin)
    side.receive(Heartbeat(1, 0, VersionVector({us.origin: floor}), 0))
    assert frames_in(side.send())[0].first_seq == floor + 1
    assert not side.session.statistics().needs_snapshot


def test_what_the_peer_got_by_another_way_is_not_sent_again(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    frames = [us.write() for _ in range(4)]
    side.refresh()
    side.receive(Heartbeat(1, 0, VersionVector({us.origin: 3}), 0))
    assert frames_in(side.send()) == frames[3:]


def test_a_peer_that_had_to_drop_frames_is_sent_them_anew(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    frames = [us.write() for _ in range(3)]
    side.refresh()
    assert frames_in(side.send()) == frames
    side.receive(Ack(EMPTY_VV, EMPTY_VV, 1, 0), Subscribe(EMPTY_VV))
    assert frames_in(side.send()) == frames


# -- credit -----------------------------------------------------------------------------------------------------


def test_no_more_is_sent_than_was_granted(us: ToyReplica, eu: ToyReplica) -> None:
    frames = [us.write(size=400) for _ in range(10)]
    size = frames[-1].size
    side = Side(us)
    side.receive(hello_of(eu, own_credit=3 * size + size // 2))
    sent = frames_in(side.send())
    assert len(sent) == 3
    side.receive(Ack(EMPTY_VV, EMPTY_VV, 1, 0))
    assert frames_in(side.send()) == []
    side.receive(Credit(9 * size, 0))
    assert side.session.close_code == Code.PROTOCOL  # the relay credit was taken back
    side = Side(us)
    side.receive(hello_of(eu, own_credit=2 * size, relay_credit=0))
    assert len(frames_in(side.send())) == 2
    side.receive(Ack(EMPTY_VV, EMPTY_VV, 1, 0), Credit(7 * size, 0))
    assert len(frames_in(side.send())) == 5


def test_a_peer_that_overdraws_is_cut(us: ToyReplica, eu: ToyReplica) -> None:
    frames = [eu.write(size=MIB) for _ in range(40)]
    side = live(us, eu)
    for frame in frames:
        side.receive(Frames(False, (frame.data,)))
        if side.state is State.CLOSED:
            break
    assert side.session.own_in.received_messages == 32  # the 32nd was over the 32 MiB
    assert side.bye().code == Code.OVERDRAWN


def test_credit_comes_back_as_frames_are_applied_and_not_before(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    eu.apply([ap.write()])
    blocked = [eu.write(size=MIB) for _ in range(20)]
    side = live(us, eu)
    side.receive(*[Frames(False, (frame.data,)) for frame in blocked])
    side.apply()
    assert len(us.held) == 20
    messages = side.send()
    assert not any(isinstance(m, Credit) for m in messages)
    assert only(Ack, messages).own_messages == 20  # dealt with, so the window goes on; but not free
    us.apply([*ap.frames.values()])
    side.refresh()
    assert only(Credit, side.send()).own_bytes == LAN.own_credit_bytes + sum(f.size for f in blocked)


def test_own_and_relayed_credit_do_not_touch_each_other(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    """With one credit for both, held own frames use up what the relayed frames that they wait for need: nothing moves ever."""
    missing = ap.write(size=2 * MIB)
    eu.apply([missing])
    side = live(us, eu)
    side.receive(*[Frames(False, (eu.write(size=MIB).data,)) for _ in range(31)])
    side.apply()
    assert us.vv() == EMPTY_VV
    side.session.ask_relay()
    side.receive(Frames(True, (missing.data,)))
    side.apply()
    assert us.vv() == eu.vv()
    assert side.state is State.LIVE


def test_the_largest_frame_fits_whatever_credit_was_not_told(us: ToyReplica, eu: ToyReplica) -> None:
    """Grants are told in quarters; a sender that waits for room for the largest frame must not wait for ever."""
    settings = replace(LAN, own_credit_bytes=2 * FRAME_BYTES_MAX, relay_credit_bytes=2 * FRAME_BYTES_MAX)
    sender, receiver = Side(us, settings), Side(eu, settings)
    receiver.receive(*sender.send())
    sender.receive(*receiver.send())
    sizes = [3 * MIB + 1000, MIB, 8 * MIB - 1000, 10, 8 * MIB - 1000]
    for size in sizes:
        sender.write(size=size)
    for _ in range(30):
        receiver.receive(*sender.send())
        receiver.apply()
        sender.receive(*receiver.send())
    assert eu.vv() == us.vv()


# -- what comes in ----------------------------------------------------------------------------------------------


def test_frames_are_handed_on_and_acked_once_applied(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    frames = [eu.write() for _ in range(3)]
    side.receive(Frames(False, tuple(f.data for f in frames[:2])), Frames(False, (frames[2].data,)))
    assert not any(isinstance(m, Ack) for m in side.send())
    side.apply()
    side.pass_time(LAN.ack_delay_ms)
    ack = only(Ack, side.send())
    assert (ack.applied, ack.durable, ack.own_messages) == (us.vv(), us.durable_vv(), 2)
    assert us.vv() == eu.vv()
    assert side.send() == []


def test_an_ack_follows_when_what_was_applied_is_fsynced(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.receive(Frames(False, (eu.write().data,)))
    ((_, frames),) = side.session.take_frames()
    us.apply(frames)
    side.session.settle(False, frames)
    side.session.advance(us.vv(), EMPTY_VV, side.now)
    side.pass_time(LAN.ack_delay_ms)
    first = only(Ack, side.send())
    assert (first.applied, first.durable) == (us.vv(), EMPTY_VV)
    side.session.advance(us.vv(), us.vv(), side.now)
    side.pass_time(LAN.ack_delay_ms)
    assert only(Ack, side.send()).durable == us.vv()


# -- how often acks are said ------------------------------------------------------------------------------------


def deliver(side: Side, peer: ToyReplica, messages: int, *, size: int = 10) -> None:
    """So many messages of one frame each arrive and are applied."""
    for _ in range(messages):
        side.receive(Frames(False, (peer.write(size=size).data,)))
        side.apply()


def test_few_messages_are_acked_together_after_the_delay_and_the_session_says_when(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    deliver(side, eu, 1)
    side.pass_time(1)
    deliver(side, eu, LAN.ack_messages - 2)
    assert side.send() == []
    assert side.session.ready().wake_at_ms == LAN.ack_delay_ms  # counted from the first of them
    side.pass_time(LAN.ack_delay_ms - 1)
    assert only(Ack, side.send()).own_messages == LAN.ack_messages - 1
    side.pass_time(LAN.ack_delay_ms)
    assert side.send() == []


def test_many_messages_or_many_bytes_are_acked_at_once(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    deliver(side, eu, LAN.ack_messages)
    assert only(Ack, side.send()).own_messages == LAN.ack_messages
    deliver(side, eu, 1, size=LAN.ack_bytes)
    assert only(Ack, side.send()).own_messages == LAN.ack_messages + 1


def test_an_ack_goes_with_frames_if_there_are_any_and_needs_no_message_of_its_own(us: ToyReplica, eu: ToyReplica) -> None:
    side, other = live(us, eu, features=(ACK_WITH_FRAMES,)), live(eu, us, features=(ACK_WITH_FRAMES,))
    measure_round_trip(side, 0.3)
    measure_round_trip(other, 0.3)
    for _ in range(20):  # both write: no message but those of frames is needed
        for sender, receiver in ((side, other), (other, side)):
            sender.write()
            messages = sender.send()
            assert [type(m) for m in messages] == [Frames]
            receiver.receive(*messages)
            receiver.apply()
    assert side.session.statistics().in_flight_messages <= 1
    assert other.session.statistics().applied_seq == 19
    side.pass_time(LAN.ack_delay_ms)
    assert [type(m) for m in side.send()] == [Ack]  # nothing was written: by itself


def test_an_ack_goes_by_itself_to_a_peer_that_does_not_know_otherwise(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    deliver(side, eu, LAN.ack_messages)
    side.write()
    messages = side.send()
    assert [type(m) for m in messages] == [Ack, Frames]
    assert only(Frames, messages).ack is None


def test_an_ack_with_frames_is_checked_like_any_other(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu, features=(ACK_WITH_FRAMES,))
    side.receive(Frames(False, (eu.write().data,), Ack(eu.vv(), eu.vv(), 1, 0)))
    assert side.bye().code == Code.PROTOCOL
    assert side.session.take_frames() == []


def test_on_a_long_link_acks_wait_as_long_as_messages_of_frames_do(us: ToyReplica, eu: ToyReplica) -> None:
    settings = replace(LAN, flushes_per_round_trip=16)
    side = live(us, eu, settings)
    measure_round_trip(side, 160.0)
    deliver(side, eu, 1)
    side.pass_time(LAN.ack_delay_ms)
    assert side.send() == []
    side.pass_time(160 / settings.flushes_per_round_trip - LAN.ack_delay_ms)
    only(Ack, side.send())


def measure_more(side: Side, *round_trips_ms: float) -> None:
    """Answer further heartbeats, each after so long."""
    for ms in round_trips_ms:
        side.pass_time(LAN.heartbeat_ms)
        beat = only(Heartbeat, side.send())
        side.now += ms
        side.receive(HeartbeatReply(beat.number, int((WALL_MS + side.now) * 1000), 0))


def test_a_short_link_to_a_loaded_peer_is_not_compressed(us: ToyReplica, eu: ToyReplica) -> None:
    """Five peers of one node on one machine answered late under load: it compressed for each of them, a fifth of its CPU."""
    side = live(us, eu)
    side.session.packing.agreed = True
    measure_round_trip(side, 0.3)
    measure_more(side, 60.0, 90.0, 60.0)
    assert (side.session.round_trip_ms or 0) > LAN.compression_round_trip_ms and not side.session.packing.is_on
    far = live(us, eu)
    far.session.packing.agreed = True
    measure_round_trip(far, 60.0)
    assert far.session.packing.is_on


def test_a_loaded_peer_is_not_far_away(us: ToyReplica, eu: ToyReplica) -> None:
    """A peer that took in a backlog answered heartbeats late and was taken for a distant one: it was sent megabytes ahead, and what others
    wrote meanwhile waited behind them."""
    settings = replace(LAN, message_bytes_max=3_000, flight_bytes_max=5_000)
    side = live(us, eu, settings)
    measure_round_trip(side, 0.3)
    measure_more(side, *[90.0] * (ROUND_TRIPS - 1))
    assert (side.session.round_trip_ms or 0) > 80
    sent = 0
    for _ in range(100):  # each leaves at once, or waits for an ack
        side.write(size=900)
        sent += sum(frame.size for frame in frames_in(side.send()))
    assert settings.flight_bytes_max <= sent < settings.flight_bytes_max + settings.message_bytes_max
    measure_more(side, 90.0)  # nothing else for so long: the way has become longer
    assert frames_in(side.send())


@pytest.mark.parametrize("round_trip_ms", [0.3, 20.0])
def test_a_sender_never_waits_for_an_ack_that_waits_for_more(us: ToyReplica, eu: ToyReplica, round_trip_ms: float) -> None:
    """No time passes at the receiver, so no delay runs out there: what it says at once keeps the sender going."""
    sender, receiver = live(us, eu), live(eu, us)
    measure_round_trip(sender, round_trip_ms)
    for _ in range(200):
        sender.write()
        sender.pass_time(LAN.flush_ms)
        messages = sender.send()
        assert len(frames_in(messages)) == 1
        receiver.receive(*(m for m in messages if isinstance(m, Frames)))
        receiver.apply()
        sender.receive(*(m for m in receiver.send() if isinstance(m, Ack)))
    assert sender.session.statistics().in_flight_messages < LAN.ack_messages


def test_what_a_slow_receiver_has_not_dealt_with_stays_within_the_window_and_the_rest_gathers(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    measure_round_trip(side, 0.3)
    frames = [frame for _ in range(100) for frame in [side.write()] if frame not in frames_in(side.send())]
    assert side.session.statistics().in_flight_messages == LAN.window_messages_min
    assert len(frames) == 100 - LAN.window_messages_min
    eu.apply([frame for frame in us.frames.values() if frame not in frames])
    side.receive(acked(side, eu, LAN.window_messages_min))
    assert frames_in(side.send()) == frames  # in one message


def test_on_a_short_link_no_more_is_on_its_way_than_its_bound_and_a_message(us: ToyReplica, eu: ToyReplica) -> None:
    settings = replace(LAN, message_bytes_max=3_000, flight_bytes_max=5_000)
    side = live(us, eu, settings)
    measure_round_trip(side, 0.3)
    sent = 0
    for _ in range(100):
        side.write(size=900)
        sent += sum(frame.size for frame in frames_in(side.send()))
    assert settings.flight_bytes_max <= sent < settings.flight_bytes_max + settings.message_bytes_max


def test_own_commits_alone_cause_no_ack(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.write()
    assert [type(m) for m in side.send()] == [Frames]


@pytest.mark.parametrize("case", ["gap", "other origin", "other cluster", "garbage", "empty", "unasked relay"])
def test_a_peer_that_sends_wrong_frames_is_cut(us: ToyReplica, eu: ToyReplica, ap: ToyReplica, case: str) -> None:
    side = live(us, eu)
    first, second, third = eu.write(), eu.write(), eu.write()
    side.receive(Frames(False, (first.data,)))
    message, code = {
        "gap": (Frames(False, (third.data,)), Code.PROTOCOL),
        "other origin": (Frames(False, (ap.write().data,)), Code.PROTOCOL),
        "other cluster": (Frames(False, (ToyReplica("eu", cluster="other").write().data,)), Code.PROTOCOL),
        "garbage": (Frames(False, (second.data, second.data[:-1])), Code.CORRUPT),
        "empty": (Frames(False, ()), Code.PROTOCOL),
        "unasked relay": (Frames(True, (ap.write().data,)), Code.PROTOCOL),
    }[case]
    side.receive(message)
    assert side.state is State.CLOSED and side.bye().code == code
    assert side.session.take_frames() == []


@pytest.mark.parametrize("whose", ["mine", "theirs"])
def test_relayed_frames_are_of_third_origins(us: ToyReplica, eu: ToyReplica, whose: str) -> None:
    side = live(us, eu)
    side.session.ask_relay()
    frame = (us if whose == "mine" else eu).write()
    side.refresh()
    side.receive(Frames(True, (frame.data,)))
    assert side.session.close_code == Code.PROTOCOL


@pytest.mark.parametrize(
    "message",
    [Ack(EMPTY_VV, EMPTY_VV, 1, 0), Ack(EMPTY_VV, EMPTY_VV, 0, 1), Credit(0, 0), Credit(32 * MIB, 0), Heartbeat(1, 0, EMPTY_VV, 0)],
)
def test_counts_and_vectors_that_are_impossible_are_refused(us: ToyReplica, eu: ToyReplica, message: Message) -> None:
    side = live(us, eu, vv=VersionVector({eu.origin: 4}))
    side.receive(message)
    assert side.state is State.CLOSED and side.session.close_code == Code.PROTOCOL


def test_bytes_that_are_no_message_end_the_link(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.session.receive_garbage(CorruptionError("message: nonsense"), 0.0)
    assert side.bye().code == Code.CORRUPT


def test_frames_that_never_become_ready_are_reported_and_cost_no_more_than_the_credit(us: ToyReplica, eu: ToyReplica) -> None:
    ghost = ToyReplica("ap")
    eu.apply([ghost.write()])
    side = live(us, eu)
    side.receive(Frames(False, (eu.write().data,)))
    side.apply()
    side.now = float(LAN.stalled_ms)
    side.receive(Heartbeat(1, 0, eu.vv(), 0))
    side.pass_time(0)
    side.pass_time(1)
    assert [e.kind for e in side.events] == [EventKind.LIVE, EventKind.STALLED]
    assert str(ghost.origin) in side.events[-1].text
    blocked = side.session.blocked_on(side.now)
    assert blocked is not None and blocked[:2] == (VersionVector({ghost.origin: 1}), 0.0)


# -- relay ------------------------------------------------------------------------------------------------------


def test_an_ask_opens_the_relay_of_all_that_is_lacking_in_log_order(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    """Relaying only the origin asked for deadlocks: `sa` rests on `ap`, and nobody has asked for `ap`."""
    sa = ToyReplica("sa")
    order = []
    for _ in range(3):
        order.append(ap.write())
        sa.apply(order[-1:])
        order.append(sa.write())
        ap.apply(order[-1:])
        us.apply(order[-2:])
        us.write()
    side = live(us, eu)
    side.receive(AskRelay(EMPTY_VV))
    assert frames_in(side.send(), relayed=True) == order


def test_the_relay_leaves_out_what_the_asker_has_and_its_own(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    frames = [ap.write() for _ in range(4)]
    us.apply([*frames, eu.write()])
    side = live(us, eu, vv=VersionVector({ap.origin: 2, eu.origin: 1}))
    side.receive(AskRelay(VersionVector({ap.origin: 2, eu.origin: 1})))
    assert frames_in(side.send(), relayed=True) == frames[2:]


def test_an_open_relay_goes_on_until_it_is_ended(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    side = live(us, eu)
    side.receive(AskRelay(EMPTY_VV))
    for count, relayed in enumerate([True, True, False], 1):
        if not relayed:
            side.receive(EndRelay())
        frame = ap.write()
        us.apply([frame])
        side.refresh()
        assert (frames_in(side.send(), relayed=True) == [frame]) is relayed
        side.receive(Ack(EMPTY_VV, EMPTY_VV, 0, min(count, 2)))
    assert not side.session.statistics().relay_out


def test_below_the_floor_relay_is_refused_and_the_own_stream_goes_on(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    us.log = type(us.log)(bytes_max=20_000)
    for _ in range(60):
        us.apply([ap.write(size=1_000)])
    side = live(us, eu)
    mine = side.write()
    side.receive(AskRelay(EMPTY_VV))
    messages = side.send()
    assert only(CannotRelay, messages) == CannotRelay(us.log.floor(), own=False)
    assert frames_in(messages) == [mine] and frames_in(messages, relayed=True) == []
    assert side.send() == []
    # Whoever has enough to begin at the floor is served.
    side.receive(AskRelay(us.log.floor()))
    first = frames_in(side.send(), relayed=True)[0]
    assert first.first_seq == us.log.floor().seq(ap.origin) + 1


def test_relayed_frames_may_fill_their_credit_and_own_ones_still_flow(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    us.apply([ap.write(size=1_000) for _ in range(10)])
    side = live(us, eu, relay_credit=2_500)
    side.receive(AskRelay(EMPTY_VV))
    assert len(frames_in(side.send(), relayed=True)) == 2
    side.receive(Ack(EMPTY_VV, EMPTY_VV, 0, 1))
    mine = side.write()
    messages = side.send()
    assert frames_in(messages, relayed=True) == [] and frames_in(messages) == [mine]


def test_the_asker_sees_its_relay_open_be_refused_and_end(us: ToyReplica, eu: ToyReplica, ap: ToyReplica) -> None:
    side = live(us, eu)
    side.session.ask_relay()
    assert only(AskRelay, side.send()).vv == us.vv()
    assert side.session.relay is Relay.ASKED
    side.receive(Frames(True, (ap.write().data,)))
    assert side.session.relay is Relay.OPEN
    side.receive(CannotRelay(VersionVector({ap.origin: 9})))
    assert side.session.relay is Relay.REFUSED and side.session.relay_floor.seq(ap.origin) == 9
    side.session.ask_relay()
    side.session.end_relay()
    assert only(EndRelay, side.send()) == EndRelay()
    side.receive(Frames(True, (ap.write().data,)))  # was on its way
    assert side.state is State.LIVE


# -- time, clocks, digests ---------------------------------------------------------------------------------------


def test_heartbeats_keep_their_time_and_are_answered(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.pass_time(LAN.heartbeat_ms - 1)
    assert side.send() == []
    assert side.session.ready().wake_at_ms == LAN.heartbeat_ms
    side.pass_time(1)
    assert only(Heartbeat, side.send()).number == 1
    side.receive(Heartbeat(77, 0, EMPTY_VV, 0))
    side.now += 3
    side.session.tick(side.now)
    reply = only(HeartbeatReply, side.send())
    assert (reply.number, reply.waited_us) == (77, 3_000)


def test_a_silent_peer_is_dead_after_the_missed_heartbeats(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.pass_time(LAN.dead_after_ms - 1)
    assert side.state is State.LIVE
    side.receive(Heartbeat(1, 0, EMPTY_VV, 0))
    side.pass_time(LAN.dead_after_ms - 1)
    assert side.state is State.LIVE
    side.pass_time(1)
    assert side.state is State.CLOSED and side.session.close_code == Code.TIMEOUT


def test_round_trip_and_clock_offset_are_measured_without_the_time_spent_there(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    assert side.session.statistics().round_trip_ms is None
    assert side.session.statistics().clock_offset_ms is None
    ahead_ms = 70.0
    side.now = 20 + 5 + 20
    side.receive(HeartbeatReply(0, int((WALL_MS + 20 + ahead_ms) * 1000), 5_000))
    row = side.session.statistics()
    assert (row.round_trip_ms, row.clock_offset_ms) == (40.0, ahead_ms)


def test_replies_that_nobody_asked_for_change_nothing(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    side.receive(HeartbeatReply(5, 0, 0), HeartbeatReply(0, 0, 2**53), HeartbeatReply(0, 0, 0))
    assert side.session.statistics().round_trip_ms == 0.0
    assert side.state is State.LIVE


def test_different_digests_at_equal_vectors_are_an_alarm_told_once(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    settled = us.digest()
    assert settled is not None
    side.receive(Heartbeat(1, 0, EMPTY_VV, 0, settled))
    side.receive(Heartbeat(2, 0, EMPTY_VV, 0, (VersionVector({eu.origin: 1}), "f" * 32)))
    assert [e.kind for e in side.events] == [EventKind.LIVE]
    side.receive(Heartbeat(3, 0, EMPTY_VV, 0, (us.vv(), "f" * 32)), Heartbeat(4, 0, EMPTY_VV, 0, (us.vv(), "f" * 32)))
    (alarm,) = [e for e in side.events if e.alarm]
    assert alarm.kind is EventKind.DIVERGENCE
    assert (alarm.details["ours"], alarm.details["theirs"]) == (settled[1], "f" * 32)
    assert side.state is State.LIVE


def test_a_digest_is_told_at_the_start_and_when_idle_but_not_under_load(us: ToyReplica, eu: ToyReplica) -> None:
    side = Side(us)
    side.receive(hello_of(eu))
    told = []
    for writes in (0, 1, 1, 0, 0):
        if writes:
            side.write()
        told.append(only(Heartbeat, side.send()).digest is not None)
        side.receive(HeartbeatReply(99, 0, 0))
        side.pass_time(LAN.heartbeat_ms)
    assert told == [True, False, False, True, True]


# -- lag --------------------------------------------------------------------------------------------------------


def test_lag_is_what_the_peer_has_not_applied_and_unknown_when_it_is_gone(us: ToyReplica, eu: ToyReplica) -> None:
    side = live(us, eu)
    first = side.write(3)
    side.now = 10.0
    second = side.write(2)
    side.now = 25.0
    side.session.tick(side.now)
    row = side.session.statistics()
    assert (row.applied_seq, row.behind_commits, row.behind_bytes, row.behind_ms) == (0, 5, first.size + second.size, 25.0)
    side.send()
    side.receive(Ack(VersionVector({us.origin: 3}), EMPTY_VV, 1, 0))
    row = side.session.statistics()
    assert (row.applied_seq, row.durable_seq, row.behind_commits, row.behind_bytes, row.behind_ms) == (3, 0, 2, second.size, 15.0)
    side.receive(Ack(us.vv(), us.vv(), 1, 0))
    row = side.session.statistics()
    assert (row.applied_seq, row.durable_seq, row.behind_commits, row.behind_bytes, row.behind_ms) == (5, 5, 0, 0, 0.0)
    side.receive(Bye("shutdown", ""))
    row = side.session.statistics()
    assert (row.applied_seq, row.behind_commits, row.behind_bytes, row.behind_ms, row.round_trip_ms) == (None,) * 5


def test_lag_of_a_peer_that_misses_what_was_written_before_the_start_is_unknown_in_bytes(us: ToyReplica, eu: ToyReplica) -> None:
    us.write(4)
    row = live(us, eu).session.statistics()
    assert (row.behind_commits, row.behind_bytes) == (4, None)
