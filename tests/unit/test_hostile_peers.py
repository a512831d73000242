"""A peer that breaks the protocol, by a bug or on purpose, neither corrupts, nor stalls, nor exhausts a node: it loses its link.

The node is a real store behind a real drive loop; `evil` is a script that says whatever it likes; `eu` is an honest node beside it, with
which replication must go on. A member that lies consistently (says that others have ended, say) is not defended against.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec
import pytest

import crdtkv
from crdtkv.core.causality import EMPTY_VV, Origin, VersionVector, make_origin
from crdtkv.core.clock import STAMP_MAX, ms_of
from crdtkv.core.codec import encode_value
from crdtkv.core.frame import NO_HASH, Frame
from crdtkv.core.transfer import NO_LINK, encode_slots, next_link
from crdtkv.errors import CrdtkvError
from crdtkv.replication import LOOPBACK, Code, Drive, Event, EventKind, ReplicationSettings
from crdtkv.replication.messages import Ack, AskSnapshot, CannotRelay, Chunk, Frames, Heartbeat, Message, Packed, Reports, encode
from crdtkv.replication.packing import pack
from crdtkv.replication.snapshot import CHUNKS_WAITING_MAX, WAITING_BYTES_MAX
from crdtkv.store import Settings, Store
from tests.toy_replica import ToyReplica
from tests.unit.test_session import hello_of

CLUSTER = "test"
EVIL = make_origin("evil", 1, 7)
GHOST = make_origin("ghost", 1, 9)
SETTINGS = replace(LOOPBACK, snapshot_life_ms=6_000)


class Node:
    """A store and its drive, run as a node runs them, in virtual time."""

    def __init__(self, region: str, settings: ReplicationSettings = SETTINGS) -> None:
        self.store: Store = crdtkv.open(region=region, settings=Settings(cluster=CLUSTER, held_frames_max=50))
        self.now = 0.0
        self.drive = Drive(self.store.port, settings, now_ms=0.0, wall_ms=lambda: 1_750_000_000_000.0 + self.now)
        self.sent: list[tuple[object, Message]] = []
        self.events: list[Event] = []
        self.neighbours: dict[object, tuple[Node, object]] = {}

    def link(self, other: Node) -> None:
        """Connect two nodes."""
        self.neighbours[other], other.neighbours[self] = (other, self), (self, other)
        self.drive.connect(other, self.now, dialed=True)
        other.drive.connect(self, other.now, dialed=False)

    def turn(self) -> None:
        """Do all that is to be done, and what follows from it here."""
        self.drive.local_commits(self.now)
        self.drive.tick(self.now)
        while True:
            if self.drive.amnesia is not None:
                self.store.begin_incarnation(self.drive.amnesia)
                self.drive.renewed(self.now)
            work = self.drive.ready()
            self.drive.accept(work)
            self.events += work.events
            for link, messages in work.messages.items():
                for message, data in zip(messages, work.encoded(link), strict=True):
                    if link in self.neighbours:
                        other, name = self.neighbours[link]
                        other.drive.receive(name, data, other.now)
                    else:
                        self.sent.append((link, message))
            for closed in work.closed:
                self.drive.disconnect(closed.link, self.now)
                if closed.link in self.neighbours:
                    other, name = self.neighbours.pop(closed.link)
                    other.neighbours.pop(name, None)
                    other.drive.disconnect(name, other.now)
            for job in work.jobs:
                try:
                    self.drive.job_done(job, job.run(), self.now)
                except CrdtkvError as e:
                    self.drive.job_failed(job, e, self.now)
            if work.apply:
                try:
                    self.drive.applied(self.store.port.apply(work.apply), self.now)
                except CrdtkvError as e:
                    self.drive.apply_failed(e, self.now)
            elif not work.jobs and not work.messages:
                return

    def hears(self, *messages: Message | bytes, link: str = "evil", turns: bool = True) -> None:
        """A scripted peer says something."""
        for message in messages:
            self.drive.receive(link, message if isinstance(message, bytes) else encode(message), self.now)
            if turns:
                self.turn()

    def codes(self) -> list[object]:
        """Why links ended."""
        return [event.details["code"] for event in self.events if event.kind is EventKind.CLOSED]


class World:
    """`us` with `evil` at the door, and `eu`."""

    def __init__(self) -> None:
        self.us, self.eu = Node("us"), Node("eu")
        self.us.link(self.eu)
        self.run(10)
        self.numbers = itertools.count()

    def run(self, ms: float) -> None:
        for _ in range(int(ms // 10) or 1):
            for node in (self.us, self.eu):
                node.now += 10
                node.turn()
            self.us.turn()

    def evil(self, *, vv: VersionVector = EMPTY_VV, **changes: object) -> None:
        """Evil connects and says hello."""
        self.us.drive.connect("evil", self.us.now, dialed=False)
        toy = ToyReplica("evil")
        self.us.hears(hello_of(toy, vv=vv, **changes))

    def goes_on(self) -> bool:
        """Whether us takes writes and replicates with eu, both ways, and they hold the same; evil has lost its link."""
        number = next(self.numbers)
        us, eu = self.us.store, self.eu.store
        us.put(f"by us {number}", number)
        eu.put(f"by eu {number}", number)
        for _ in range(300):
            self.run(10)
            if us.vv() == eu.vv() and eu.get(f"by us {number}") == us.get(f"by eu {number}") == number:
                return us.digest() == eu.digest()
        return False

    def is_rid_of_evil(self, code: Code) -> bool:
        return "evil" not in self.us.drive._peers and self.us.codes()[-1] == code


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    assert made.goes_on()
    yield made
    made.us.store.close()
    made.eu.store.close()


def frame(
    seq: int, *, after: Frame | None = None, context: VersionVector = EMPTY_VV, hlc: int | None = None, value: str = "x", count: int = 1
) -> Frame:
    """A frame of evil's own, after another one, or after nothing that ever was."""
    previous = after.hash if after is not None else NO_HASH if seq == 1 else b"h" * 16
    rows = [[int(i > 0), None, [0, f"k{seq + i}", encode_value(value)]] for i in range(count)]
    return Frame.build(CLUSTER, 0, EVIL, seq, seq if hlc is None else hlc, context, previous, rows)


def frames(*parts: Frame) -> Frames:
    return Frames(False, tuple(part.data for part in parts))


def test_the_script_can_behave(world: World) -> None:
    """Else nothing below would mean anything."""
    world.evil()
    first = frame(1)
    world.us.hears(frames(first), frames(frame(2, after=first)))
    assert world.us.store.get("k2") == "x"
    assert "evil" in world.us.drive._peers
    world.us.store.put("k1", "seen")
    assert world.us.store.get("k1") == "seen"


@pytest.mark.parametrize("start", [2, 1 << 40, (1 << 63) - 1])
def test_wrong_seqs(world: World, start: int) -> None:
    world.evil()
    world.us.hears(frames(frame(start)))
    assert world.is_rid_of_evil(Code.PROTOCOL)
    assert world.us.store.vv().seq(EVIL) == 0
    assert world.goes_on()


def test_frames_that_overlap_with_what_is_applied_change_nothing(world: World) -> None:
    """Two commits were applied; a frame comes that begins at the second, with other content."""
    world.evil()
    world.us.hears(frames(frame(1, count=2)))
    before = world.us.store.digest()
    world.us.hears(frames(frame(2, count=2, value="other")))
    world.run(50)
    assert world.us.store.vv().seq(EVIL) == 2
    assert world.us.store.digest() == before
    assert (world.us.store.get("k2"), world.us.store.get("k3")) == ("x", None)
    assert world.us.codes(), "evil has lost its link"
    assert world.goes_on()


def test_a_forked_chain(world: World) -> None:
    world.evil()
    world.us.hears(frames(frame(1)), frames(frame(2, value="of another history")))
    assert world.is_rid_of_evil(Code.FORK)
    assert any(event.alarm for event in world.us.events)
    assert world.us.store.vv().seq(EVIL) == 1
    assert world.us.store.get("k2") is None
    world.us.drive.connect("evil", world.us.now, dialed=False)
    assert world.goes_on()


@pytest.mark.parametrize("hlc", [STAMP_MAX, 1 << 61, 0])
def test_clocks_of_the_far_future_and_of_none(world: World, hlc: int) -> None:
    """What it wrote is taken, since a hole would be worse; but no clock here follows, and whoever has seen it writes over it."""
    store = world.us.store
    world.evil(hlc=hlc)
    world.us.hears(frames(frame(1, hlc=hlc)), Heartbeat(0, 2**53, VersionVector({EVIL: 1}), hlc))
    assert store.vv().seq(EVIL) == 1
    store.put("k1", "seen")
    assert store.get("k1") == "seen"
    assert ms_of(store.port.hlc()) < time.time() * 1000 + 3_600_000
    assert world.goes_on()
    assert world.eu.store.get("k1") == "seen"


def test_lengths_that_promise_more_than_there_is(world: World) -> None:
    for data in (
        b"\x94\xa6frames\xc2\xdd\x7f\xff\xff\xff",
        b"\x94\xa6frames\xc2\x91\xc6\xff\xff\xff\xff",
        b"\x92\xa9subscribe\xdd\xff\xff\xff\xff",
        b"\x93\xa6packed\xce\xff\xff\xff\xff\xc4\x00",
        b"\xdd\xff\xff\xff\xff",
        b"",
    ):
        world.evil()
        world.us.hears(data)
        assert world.is_rid_of_evil(Code.CORRUPT)
    assert world.goes_on()


def test_contexts_that_are_never_satisfied(world: World) -> None:
    """What it sends waits for what does not exist: within its credit and the bound on held frames, however often it comes back."""
    for life in range(3):
        world.evil(vv=VersionVector({GHOST: 1 << 40}))
        made: Frame | None = None
        for seq in range(1, 200):
            made = frame(seq, after=made, context=VersionVector({GHOST: seq + life}), value="v" * 1_000)
            world.us.hears(frames(made), turns=seq % 50 == 0)
        world.us.turn()
        assert world.us.store.status().held_frames <= 50
        assert world.goes_on(), "what is honest needs no room among the held"
        world.us.drive.disconnect("evil", world.us.now)
    assert world.us.store.vv().seq(EVIL) == 0


def test_vectors_that_name_ever_more_origins(world: World) -> None:
    world.evil()
    named = itertools.count(1)
    for number in range(5):
        vv = VersionVector({make_origin(f"r{next(named)}", 1, 1): 1 for _ in range(2_000)})
        world.us.hears(Heartbeat(number, 0, vv, 0))
    assert world.is_rid_of_evil(Code.PROTOCOL)
    assert world.goes_on()


def test_who_knows_more_of_a_node_than_it_wrote_costs_it_one_incarnation_and_not_one_each_time(world: World) -> None:
    """Before, each such word made another one: a peer with a bug in its vector would have had its neighbours change names for ever."""
    us = world.us
    names = {us.store.origin}
    for _ in range(5):
        world.evil(vv=VersionVector({us.store.origin: 1 << 40}))
        names.add(us.store.origin)
        world.evil()
        us.hears(frames(frame(1, context=VersionVector({us.store.origin: 1 << 40}))))
        names.add(us.store.origin)
    assert len(names) == 2
    assert world.is_rid_of_evil(Code.PROTOCOL)
    us.link(world.eu)
    assert world.goes_on()


def test_who_says_that_a_node_told_more_than_it_has_costs_it_one_incarnation_and_no_link_later(world: World) -> None:
    us = world.us
    names = {us.store.origin}
    for _ in range(2):
        world.evil()
        us.hears(Reports({us.store.origin: {GHOST: (1 << 40, True)}}))
        names.add(us.store.origin)
    assert len(names) == 2 and "evil" in us.drive._peers
    us.link(world.eu)
    assert world.goes_on()


def asked_for_snapshot(world: World) -> None:
    """us lacks what only evil has, and not in its log: it asks for a snapshot."""
    world.evil(vv=VersionVector({EVIL: 5}), features=("snapshot",))
    world.us.hears(CannotRelay(VersionVector({EVIL: 5}), own=True))
    world.run(300)
    assert any(isinstance(message, AskSnapshot) for link, message in world.us.sent if link == "evil"), world.us.events


def chunks(datas: Sequence[bytes], *, number: int = 0, link: bytes = NO_LINK) -> Iterator[Chunk]:
    for at, data in enumerate(datas, number):
        link = next_link(link, data)
        yield Chunk(b"i" * 16, at, data, link, False)


def header() -> bytes:
    """The first chunk of a snapshot that an honest store of evil's region would send."""
    with crdtkv.open(region="evil", settings=Settings(cluster=CLUSTER)) as store:
        store.put("k", 1)
        snapshots = store.port.snapshots
        assert snapshots is not None
        source = snapshots.open()
        data, _ = source.read(b"", 1 << 20)
        source.close()
        return data


def test_a_snapshot_without_end(world: World) -> None:
    """It comes chunk by chunk, each in good time, and never ends: it is left for another once no honest donor would hold it any more."""
    asked_for_snapshot(world)
    link = NO_LINK
    data = header()
    number = 0
    while not any(event.kind is EventKind.SNAPSHOT_ENDED for event in world.us.events):
        (chunk,) = chunks([data], number=number, link=link)
        link, data, number = chunk.link, encode_slots([]), number + 1
        world.us.hears(chunk, Heartbeat(number, 0, VersionVector({EVIL: 5}), 0))
        world.run(500)
        assert world.us.now < 3 * SETTINGS.snapshot_life_ms
    snapshots = world.us.store.port.snapshots
    assert snapshots is not None and snapshots.staged.chunks == 0
    assert not world.us.drive.transfers.is_active
    assert world.goes_on()


@pytest.mark.parametrize("size", [1, 4 << 20])
def test_chunks_far_ahead_of_their_acks(world: World, size: int) -> None:
    """Nothing is staged between them, as where the disk is slow: a bound in number and in bytes, whatever the donor thinks of windows."""
    asked_for_snapshot(world)
    for chunk in chunks([header(), *[bytes(size)] * min(CHUNKS_WAITING_MAX + 2, 2 * WAITING_BYTES_MAX // size)]):
        world.us.hears(chunk, turns=False)
        waiting = world.us.drive.transfers._chunks
        assert sum(len(one.data) for one in waiting) <= WAITING_BYTES_MAX and len(waiting) <= CHUNKS_WAITING_MAX
    world.us.turn()
    assert world.is_rid_of_evil(Code.PROTOCOL)
    assert world.goes_on()


def test_chunks_that_nobody_asked_for(world: World) -> None:
    world.evil(features=("snapshot",))
    world.us.hears(*chunks([header(), b"more"]))
    snapshots = world.us.store.port.snapshots
    assert snapshots is not None and snapshots.staged.chunks == 0
    assert world.goes_on()


@pytest.mark.parametrize(
    "message",
    [
        Ack(EMPTY_VV, EMPTY_VV, 1 << 50, 0),
        Frames(False, (b"x",)),
        Frames(True, (frame(1).data,)),
        Frames(False, ()),
        Frames(False, (frame(1).data,), Ack(EMPTY_VV, EMPTY_VV, 0, 1 << 50)),
        Packed(10, b"noise"),
        pack(encode(Frames(False, (b"y" * 10_000,)))),
    ],
    ids=["ack", "no frame", "relayed unasked", "no frames", "ack with frames", "packed noise", "packed unagreed"],
)
def test_what_breaks_the_protocol_costs_the_link(world: World, message: Message) -> None:
    world.evil()
    world.us.hears(message)
    assert "evil" not in world.us.drive._peers
    assert world.us.store.vv().seq(EVIL) == 0
    assert world.goes_on()


def test_a_compression_bomb(world: World) -> None:
    for claim in (1_000, 16 << 20):
        world.evil(features=("zlib",))
        world.us.hears(msgspec.structs.replace(pack(bytes(16 << 20)), size=claim))
        assert world.is_rid_of_evil(Code.CORRUPT)
    assert world.goes_on()


def test_reports_of_strangers_end_nobody(world: World) -> None:
    us = world.us.store
    told: dict[Origin, dict[Origin, tuple[int, bool]]] = {EVIL: {us.origin: (1 << 40, True), GHOST: (3, True)}}
    world.evil()
    world.us.hears(Reports(told))
    world.run(200)
    assert us.port.control.limit(us.origin) is None
    assert world.goes_on()
