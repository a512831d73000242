"""Bugs that the simulations found, each as a test that tells its story. They stay for ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from crdtkv.core.causality import EMPTY_VV, VersionVector, make_origin
from crdtkv.core.clock import HybridClock
from crdtkv.core.codec import encode_value
from crdtkv.core.control import NOTHING_AGREED, Control, MemberState, Steering, close_delta, member_delta
from crdtkv.core.frame import Delta, DeltaKind, Frame
from crdtkv.core.install import install
from crdtkv.core.join import Snapshot, snapshot_of
from crdtkv.core.replica import Replica
from crdtkv.core.state import DictBase
from crdtkv.core.transfer import Arrival, encode_header, next_link
from crdtkv.core.types.counter import run_name
from crdtkv.errors import CorruptionError, DiskFullError, RegionRemovedError
from crdtkv.replication.hello import refusal
from crdtkv.replication.membership import Membership
from crdtkv.replication.messages import ORIGINS_MAX, AskSnapshot, Frames, Reports
from crdtkv.replication.messages import decode as decode_message
from crdtkv.replication.messages import encode as encode_message
from crdtkv.replication.settings import LOOPBACK
from crdtkv.replication.status import Code
from crdtkv.simulation.disk import SimulatedEngine, SimulatedLog, position_of
from crdtkv.simulation.files import FaultyFiles
from crdtkv.storage.log import FileLog
from crdtkv.storage.memory_log import MemoryLog
from crdtkv.storage.retention import Due, RetentionPolicy
from crdtkv.storage.segments import RECORD_OVERHEAD
from crdtkv.store.machine import Machine
from crdtkv.store.reading import Reader
from crdtkv.store.retention import Retention
from crdtkv.store.snapshots import MemoryStaging, Snapshots
from crdtkv.store.transaction import Transaction
from tests.stores import chunks
from tests.toy_replica import Network, ToyReplica


def replica(region: str) -> Replica:
    return Replica(DictBase(), origin=make_origin(region, 1, 0), cluster="c", clock=HybridClock(lambda: 1_000))


def commit(at: Replica, *deltas: Delta) -> Frame:
    at.commit(list(deltas))
    frame = at.close_frame()
    assert frame is not None
    return frame


def test_what_a_killed_process_had_only_appended_was_acknowledged_as_durable() -> None:
    """SIGKILL leaves frames that only the kernel has. The next process replayed them, called everything it had applied
    durable, and told its peers so, before any fsync: loss of power would then have taken back what they had been told.
    """
    log, engine = SimulatedLog(), SimulatedEngine()

    def start() -> Machine:
        clock = HybridClock(lambda: 1_000)
        return Machine(log, engine, origin=make_origin("us", 1, 0), cluster="c", clock=clock, sync_releases=True)

    killed = start()
    killed.transact([[DeltaKind.REGISTER_PUT, "k", encode_value(1)]])
    killed.seal()
    assert killed.durable_vv() == EMPTY_VV and killed.released() == 0
    restarted = start()
    assert restarted.vv() == killed.vv()
    assert restarted.durable_vv() <= log.vv_at[log.synced()]
    assert restarted.released() <= log.synced()


def test_a_reset_that_came_with_an_increment_hid_a_concurrent_reset_from_the_journal() -> None:
    """ca resets a counter. ap, without having seen that, resets it too and increments it, in one commit. At br the index
    of removals held one removal per slot: ap's reset replaced ca's before ap's increment was looked at, the increment met
    only the reset of its own commit, and that ca's reset had lost against it was recorded nowhere.
    """
    ap, br, ca = replica("ap"), replica("br"), replica("ca")
    first = commit(ap, [DeltaKind.COUNTER_ADD, "n", 1, 5])
    for other in (br, ca):
        other.receive(first)
    reset = [DeltaKind.COUNTER_RESET, "n", [[ap.origin, 1, 5, 1]]]
    at_ca = commit(ca, reset)
    at_ap = commit(ap, reset, [DeltaKind.COUNTER_ADD, "n", 2, 7])
    br.receive(at_ca)
    br.receive(at_ap)
    assert Reader(br).counter(b"n") == 7
    losers = {(loser.origin, loser.kind) for record in br.journal.records() for loser in record.losers}
    assert losers == {(ca.origin, "reset")}


def test_a_removal_that_the_writer_had_seen_hid_one_that_it_had_not() -> None:
    """Of two concurrent removals of an element only the later to arrive was remembered; a write that had seen that one
    and not the other then met nothing at the replica that knew of both.
    """
    ap, br, ca = replica("ap"), replica("br"), replica("ca")
    element = encode_value("x")
    added = commit(ap, [DeltaKind.SET_ADD, "s", element])
    for other in (br, ca):
        other.receive(added)
    unseen = commit(ca, [DeltaKind.SET_REMOVE, "s", element])
    seen = commit(ap, [DeltaKind.SET_REMOVE, "s", element])
    again = commit(ap, [DeltaKind.SET_ADD, "s", element])
    for frame in (unseen, seen, again):
        br.receive(frame)
    records = list(br.journal.records())
    assert [(r.winner.origin, r.winner.seq, [(loser.origin, loser.kind) for loser in r.losers]) for r in records] == [
        (ap.origin, 3, [(ca.origin, "remove")])
    ]


def test_runs_are_named_by_the_commit_that_opened_them() -> None:
    """Beside the stories above: a transaction that resets and increments opens a run of its own, also in the middle of a frame."""
    us = replica("us")
    for n in (2, 3):
        transaction = Transaction(us, Reader(us))
        transaction.increment("n", n)
        transaction.reset("n")
        transaction.increment("n", 10 * n)
        us.commit(transaction.deltas())
    us.close_frame()
    assert Reader(us).counter(b"n") == 30
    assert sorted(us.heads.runs(b"n")) == [(us.origin, 1), (us.origin, 2)]
    assert run_name(b"\x92\xa1a\x01") == ("a", 1)


def test_what_was_held_stayed_held_after_a_snapshot_brought_what_it_waited_for() -> None:
    """us holds a frame of ca that rests on ap's. A snapshot brings ap's; nothing looked at the held frame again until the
    next frame came, and if none came, for ever.
    """
    ap, ca = replica("ap"), replica("ca")
    log = MemoryLog()
    us = Machine(log, SimulatedEngine(), origin=make_origin("us", 1, 0), cluster="c", clock=HybridClock(lambda: 1_000))
    ca.receive(commit(ap, [DeltaKind.REGISTER_PUT, "k", encode_value(1)]))
    waiting = commit(ca, [DeltaKind.REGISTER_PUT, "k", encode_value(2)])
    assert us.apply([waiting]).held == 1
    us.installed(install(us.replica, snapshot_of(ap)).jumped)
    assert us.vv() == ca.vv() and us.replica.held == (0, 0) and us.digest() == (ca.vv(), f"{ca.digest():032x}")
    assert log.read(0, bytes_max=1 << 20) == ([waiting], 1)


def test_a_write_after_a_snapshot_was_stamped_below_what_it_superseded() -> None:
    """Frames drag the clock along, a snapshot did not. Causality still decided, but a concurrent third write could then
    win against the second one and not against the first.
    """
    ahead = Replica(DictBase(), origin=make_origin("ap", 1, 0), cluster="c", clock=HybridClock(lambda: 9_000))
    us = replica("us")
    _, stamp = ahead.commit([[DeltaKind.REGISTER_PUT, "k", encode_value(1)]])
    ahead.close_frame()
    install(us, snapshot_of(ahead))
    assert us.commit([[DeltaKind.REGISTER_PUT, "k", encode_value(2)]])[1] > stamp


def counted_past_a_reset(counting: Replica, resetting: Replica, other: Replica) -> tuple[Frame, Frame, Frame]:
    """An increment by 5 that all have, a reset of it, and an increment by 7 of who has not seen that: their frames."""
    first = commit(counting, [DeltaKind.COUNTER_ADD, "n", 1, 5])
    for at in (resetting, other):
        at.receive(first)
    reset = commit(resetting, [DeltaKind.COUNTER_RESET, "n", [[counting.origin, 1, 5, 1]]])
    return first, reset, commit(counting, [DeltaKind.COUNTER_ADD, "n", 1, 12])


def test_a_dead_run_stays_until_what_its_origin_counted_before_it_knew_is_here() -> None:
    """Beside the stories above: eu counts on, unaware of ap's reset, and acknowledges the reset before its increment has
    reached us. Were the dead run gone there by then, the increment's total would count what was reset.
    """
    us, eu, ap = replica("us"), replica("eu"), replica("ap")
    _, reset, unaware = counted_past_a_reset(eu, ap, us)
    for other in (us, eu):
        other.receive(reset)
    us.forget_stable(us.vv(), {eu.origin: eu.vv()}, 10)
    us.receive(unaware)
    assert Reader(us).counter(b"n") == Reader(eu).counter(b"n") == 7
    assert us.digest() == eu.digest()


def test_the_engine_follows_frames_that_change_nothing() -> None:
    """An expiry that another region had issued already changes no record, so nothing was folded for it, and the engine stood
    still while the log went on. Retention dropped the log up to what it took for folded; after a crash the engine stood before
    the log's beginning, and the store refused to open.
    """
    log, engine = SimulatedLog(), SimulatedEngine()

    def start() -> Machine:
        return Machine(log, engine, origin=make_origin("us", 1, 0), cluster="c", clock=HybridClock(lambda: 1_000))

    us, ap = start(), replica("ap")
    us.apply([commit(ap, [DeltaKind.REGISTER_PUT, "k", encode_value(1)])])
    us.fold()
    us.apply([commit(ap, [DeltaKind.EXPIRE, "k", 1, b"", [[ap.origin, 9]]])])  # another region had removed it already
    us.fold()
    assert position_of(engine.records) == us.log.end() == 2
    us.flush(us.replica.position)
    us.log.truncate(2)
    again = start()
    assert again.vv() == us.vv() and again.replica.digest() == us.replica.digest()


def test_nobody_could_read_a_snapshot_of_a_cluster_that_had_closed_an_origin() -> None:
    """The header's field for what members have agreed on was declared as raw bytes or None, which the decoder takes for None alone. From
    the first closing or member's record on, a region that needed a snapshot was refused every one, for ever.
    """
    us, taken = replica("us"), Arrival()
    us.commit_control([member_delta("ap", MemberState.ACTIVE, "", 1)])
    us.close_frame()
    header = encode_header(us, us.vv())
    taken.take(header, next_link(b"", header))
    assert taken.incoming is not None and taken.incoming.agreed == us.control.agreed() != NOTHING_AGREED


def test_an_install_that_had_begun_was_refused_after_a_restart() -> None:
    """ap had frozen an origin and was told that others have more of it, so it took a snapshot that has. What limits rise to is kept in
    memory only. It was killed in the middle of the install, and the next process refused to go on with it: the store did not open again.
    """
    us, eu = make_origin("us", 1, 0), machine("eu")
    at_us = replica("us")
    first, second = (commit(at_us, [DeltaKind.REGISTER_PUT, f"k{n}", encode_value(n)]) for n in (1, 2))
    eu.apply([first, second])
    log, engine, staging = SimulatedLog(), SimulatedEngine(), MemoryStaging()
    ap = machine("ap", log, engine)
    ap.apply([first])
    ap.freeze([us])
    ap.raise_limits({us: 2})
    for data, link in chunks(Snapshots(eu, MemoryStaging()).open(), 1 << 20):
        staging.append(data, link)

    def killed(step: str) -> None:
        if step == "marked":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ap.install(staging, killed)
    again = machine("ap", log, engine)
    again.install(staging)
    assert again.vv() == eu.vv() and again.digest() == eu.digest()


def test_what_a_killed_merge_had_put_into_the_floor_was_called_fsynced_once_the_log_was_dropped() -> None:
    """A process was killed while it merged a state, between raising the log's floor and the engine's batch. That is harmless by itself: the
    state is not there, and was not acknowledged. But once the next process had dropped part of its log, it took what that part had held
    from the floor: it told its peers, and noted for its next opening, that it had fsynced commits that it never had. Reopened, it found
    fewer than noted, and took a new incarnation for a mere SIGKILL.
    """
    log = SimulatedLog()
    log.reset_floor(VersionVector({make_origin("eu", 1, 0): 20}))
    us = machine("us", log)

    def write() -> None:
        us.transact([[DeltaKind.REGISTER_PUT, "k", encode_value(0)]])
        us.seal()

    for _ in range(3):
        write()
    Retention(us, RetentionPolicy()).run(Due(3))
    assert log.start() == 3
    write()
    log.sync()
    write()
    assert us.durable_vv() == VersionVector({us.origin: 4}) and us.commits_durable() == 4


@pytest.mark.parametrize("also", [(), (member_delta("eu", MemberState.REMOVED, "", 1),)], ids=["", "donor-removed"])
def test_a_closing_that_had_waited_for_a_snapshot_kept_its_install_from_being_finished(also: tuple[Delta, ...]) -> None:
    """ap lost its disk, and took a snapshot of eu, which had not heard that us was removed and had more of it than the others had agreed
    on. A frame of ca with the closing of us had waited at ap for what the snapshot brought, and was applied right behind it. Then ap was
    killed, before it had noted that the install was done: the next process held the snapshot against that closing, and did not open again.
    """
    at_us, eu_log, ca_log = replica("us"), SimulatedLog(), SimulatedLog()
    first, second = (commit(at_us, [DeltaKind.REGISTER_PUT, f"k{n}", encode_value(n)]) for n in (1, 2))
    eu = machine("eu", eu_log)
    eu.apply([first])
    eu.transact([[DeltaKind.REGISTER_PUT, "eu", encode_value(0)]])
    eu.seal()
    ca = machine("ca", ca_log)
    ca.apply(eu_log.frames)
    ca.commit_control([close_delta(at_us.origin, 1), *also])
    closing = ca_log.frames[-1]
    eu.apply([second])
    log, engine, staging = SimulatedLog(), SimulatedEngine(), MemoryStaging()
    ap = machine("ap", log, engine)
    assert ap.apply([closing]).held == 1
    for data, link in chunks(Snapshots(eu, MemoryStaging()).open(), 1 << 20):
        staging.append(data, link)

    def killed(step: str) -> None:
        if step == "installed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ap.install(staging, killed)
    assert ap.control.last(at_us.origin) == 1 < ap.vv().seq(at_us.origin)
    again = machine("ap", log, engine)
    again.install(staging)
    assert again.vv() == ap.vv() and not staging.is_marked
    assert again.digest() == (ap.vv(), eu.digest()[1]), "a closing is no part of the state"


def test_a_snapshot_was_refused_for_an_end_that_it_brings_itself_further_on() -> None:
    """An origin was closed twice, the second time further on, while eu was away, and the log that told of it is gone."""
    us, ap, eu = replica("us"), replica("ap"), replica("eu")
    first, second = (commit(us, [DeltaKind.REGISTER_PUT, f"k{n}", encode_value(n)]) for n in (1, 2))
    ap.apply(first)
    ap.commit_control([close_delta(us.origin, 1)])
    closing = ap.close_frame()
    assert closing is not None
    eu.apply(first)
    eu.apply(closing)
    ap.raise_limit(us.origin, 2)
    ap.apply(second)
    open_end = replace(snapshot_of(ap), agreed=eu.control.agreed())
    ap.commit_control([close_delta(us.origin, 2)])
    ap.close_frame()
    with pytest.raises(RegionRemovedError):
        install(eu, open_end)
    install(eu, snapshot_of(ap))
    assert (eu.vv(), eu.digest(), eu.control.last(us.origin)) == (ap.vv(), ap.digest(), 2)
    assert eu.control.limit(us.origin) == 2, "and no further"


def test_who_came_with_an_empty_disk_was_frozen_for_a_later_one_that_nobody_remembered() -> None:
    """ca had gone on as another incarnation, which wrote nothing and lost its disk, and begins at the first generation again. A link to the
    dead one was still thought live, so ap froze the new one. Then that link ended: nothing told of a later one any more, and ap answered
    for ever that ca was being closed for a reason that it did not know.
    """
    ap, dead, new = ToyReplica("ap"), make_origin("ca", 2, 5), make_origin("ca", 1, 9)
    ap._vv = VersionVector({new: 1})
    membership = Membership(ap, ["ap", "ca"])
    membership.review(ap.vv(), ap.vv(), {dead: ()})
    assert membership.steering.freeze == (new,)
    membership.review(ap.vv(), ap.vv(), {})
    assert membership.is_former(new), "it must take a new incarnation"
    assert not membership.is_former(dead), "who was met may come again"


def test_for_whom_an_incarnation_was_frozen_was_forgotten_with_a_restart() -> None:
    """As before, and ap was started again before the empty one came back: it answered for ever that it did not know why."""
    ap, dead, new = ToyReplica("ap"), make_origin("ca", 2, 5), make_origin("ca", 1, 9)
    ap._vv = VersionVector({new: 1})
    membership = Membership(ap, ["ap", "ca"])
    membership.review(ap.vv(), ap.vv(), {dead: ()})
    assert membership.steering.later == {new: dead}
    ap.control.freeze(new, 1, membership.steering.later[new])
    for control in (ap.control, Control(ap.control._state)):
        ap.control = control
        again = Membership(ap, ["ap", "ca"])
        again.review(ap.vv(), ap.vv(), {dead: ()})
        assert not again.is_former(new), "two run as one region: that is for an operator to say"
        again.review(ap.vv(), ap.vv(), {})
        assert again.is_former(new), "it must take a new incarnation"
    ap.control.thaw(new)
    assert not Control(ap.control._state).ended_by


def test_why_an_incarnation_was_frozen_was_lost_with_the_disk_of_who_knew() -> None:
    """ap had met an incarnation of ca that wrote nothing and lost its disk, and froze the empty one that came after it; br froze that as
    well, since ap told that it had, and did not know why. ap lost its disk; br refused ca for ever, and could not say what to do.
    """
    ap, br, dead, new = ToyReplica("ap"), ToyReplica("br"), make_origin("ca", 2, 5), make_origin("ca", 1, 9)
    ap._vv = br._vv = VersionVector({new: 1})
    there, here = Membership(ap, ["ap", "br", "ca"]), Membership(br, ["ap", "br", "ca"])
    there.review(ap.vv(), ap.vv(), {dead: (), br.origin: ()})
    ap.control.freeze(new, 1, there.steering.later[new])
    told = there.review(ap.vv(), ap.vv(), {br.origin: ()})
    assert told is not None and told.ended_by == {new: dead}
    for reasons in ({}, told.ended_by):  # an older version tells none
        here.receive(Reports(told.reports, told.removals, reasons))
        here.review(br.vv(), br.vv(), {ap.origin: ()})
        assert here.steering.freeze == (new,) and here.steering.later == reasons
        br.control.freeze(new, 1, here.steering.later.get(new))
        assert here.is_former(new) == bool(reasons)
    again = Membership(br, ["ap", "br", "ca"])
    code, text = refusal(br, new, br.vv(), is_former=again.is_former(new)) or (None, "")
    assert code is Code.ENDED and "so must whoever was it" in text
    message = again.review(br.vv(), br.vv(), {})
    assert message is not None and message.ended_by == {new: dead} and not again.steering.freeze
    br.control.apply(close_delta(new, 1), br.origin, 1, 5, b"")
    here.review(br.vv(), br.vv(), {})
    assert not here._ended_by


def test_a_region_was_frozen_by_one_that_it_cannot_reach_and_nobody_told_it() -> None:
    """ap has frozen the living us, having met another incarnation of it that wrote nothing; the link between the two is cut for good. br,
    which has a link to us and so freezes nothing, passed the freeze on, and not why; us went on writing what ap never took.
    """
    ap, br, us, dead = make_origin("ap", 1, 0), ToyReplica("br"), ToyReplica("us"), make_origin("us", 2, 5)
    written = us.write()
    br.apply([written])
    here = Membership(br, ["ap", "br", "us"])
    here.receive(Reports({ap: {us.origin: (1, True)}}, {}, {us.origin: dead}))
    told = here.review(br.vv(), br.vv(), {ap: (), us.origin: ()})
    assert not here.steering and told is not None and told.ended_by == {us.origin: dead}, "who freezes it for this must know why"

    net = Network([us, br])
    net.mesh()
    net.run_until(net.is_live, 3_000)
    drive, (link,) = net.drives["us"], net.drives["us"]._peers
    alive = Reports({**told.reports, dead: {us.origin: (1, True)}}, {}, told.ended_by)
    drive.receive(link, encode_message(alive), net.now)
    assert drive.amnesia is None, "two run as one region: that is for an operator to say"
    drive.receive(link, encode_message(told), net.now)
    assert drive.amnesia is not None and "has ended" in drive.amnesia


def test_a_drain_waited_for_an_incarnation_that_only_the_reports_still_named() -> None:
    """ca is being drained, and all reported on ca@2, which wrote nothing, when it lost its disk. It began at the first generation again;
    who had met ca@2 had restarted; and each went on to report on ca@2, because the others did: also ca, whose own reports counted for
    nothing. Nobody told it that it had ended, and neither the drain nor any closing came to an end.
    """
    eu, gone, new = ToyReplica("eu"), make_origin("ca", 2, 5), make_origin("ca", 1, 9)
    eu.control.apply(member_delta("ca", MemberState.DRAINING, "", 1), eu.origin, 1, 5, b"")
    eu._vv = VersionVector({eu.origin: 1})
    membership = Membership(eu, ["ap", "ca", "eu"])
    membership.receive(Reports({make_origin("ap", 1, 0): {gone: (0, False)}}))
    membership.review(eu.vv(), eu.vv(), {make_origin("ap", 1, 0): (), new: ()})
    assert membership.is_former(new), "it must take a new incarnation"
    later = make_origin("ca", 3, 1)
    assert not membership.is_former(later) and not membership.is_former(gone)
    message = membership.review(eu.vv(), eu.vv(), {make_origin("ap", 1, 0): (), later: ()})
    assert message is not None and message.reports[eu.origin] == {later: (0, False)}
    membership.receive(Reports({make_origin("ap", 2, 0): {gone: (0, True)}}))
    assert not membership.is_former(new), "what has been stopped is no reason"


def test_a_reason_that_is_of_another_region_or_is_the_origin_itself_is_refused() -> None:
    us, later, other = make_origin("us", 1, 0), make_origin("us", 2, 5), make_origin("eu", 2, 5)
    assert decode_message(encode_message(Reports({}, {}, {us: later}))) == Reports({}, {}, {us: later})
    for wrong in (other, us):
        with pytest.raises(CorruptionError, match="is said to have ended"):
            decode_message(encode_message(Reports({}, {}, {us: wrong})))


def test_a_full_disk_undid_a_freeze_that_was_only_told_why() -> None:
    us, ap, later = machine("us"), machine("ap"), make_origin("ap", 2, 5)
    us.apply([made(ap, "k", 1)])
    us.freeze([ap.origin])
    us.engine.is_full = True
    with pytest.raises(DiskFullError):
        us.freeze([ap.origin], {ap.origin: later})
    assert us.control.frozen == {ap.origin: 1}


def test_a_freeze_that_was_asked_for_twice_took_a_limit_back_that_had_risen() -> None:
    """Who had asked for the limit saw nothing change, so it did not ask again: what lay beyond it could never come."""
    us, ap = machine("us"), machine("ap")
    us.freeze([ap.origin])
    us.raise_limits({ap.origin: 3})
    version = us.control.version
    us.freeze([ap.origin])
    assert (us.control.limit(ap.origin), us.control.version) == (3, version)
    later = make_origin("ap", 2, 5)
    us.freeze([ap.origin], {ap.origin: later})  # the reason is news: all limits are to be found anew
    assert us.control.limit(ap.origin) == 0
    assert us.control.version > version


def test_what_peers_announced_is_remembered_only_while_it_is_not_here_and_of_so_many_origins() -> None:
    """Every origin that anybody ever named stayed in memory, those that a peer had made up as well."""
    us, eu, ap = ToyReplica("us"), ToyReplica("eu").origin, make_origin("ap", 1, 1)
    membership = Membership(us, ["eu", "us"])
    membership.announce(eu, VersionVector({eu: 5, ap: 7}))
    membership.review(VersionVector({eu: 5, ap: 3}), EMPTY_VV, {eu: ()})
    assert membership._announced == {ap: 7}
    us._vv = VersionVector({ap: 3})
    assert {s.region: s.announced for s in membership.standings(us.vv())}["ap"] == {ap: 7}
    for number in range(ORIGINS_MAX):
        membership.receive(Reports({eu: {make_origin("zz", 1, number): (1, False)}}))
    assert len(membership._announced) == ORIGINS_MAX
    membership.announce(eu, VersionVector({eu: 6, ap: 8}))
    assert membership._announced[ap] == 8 and eu not in membership._announced


@pytest.mark.parametrize("at", ["eu", "us"])
def test_a_region_that_was_drained_closed_an_origin_after_all_had_told_that_they_have_what_it_had(at: str) -> None:
    """The commit was in no other region when it was removed a moment later. Another closes what a drained region leaves."""
    former, present = make_origin("eu", 1, 0), ToyReplica("eu", generation=2)
    replica = present if at == "eu" else ToyReplica("us")
    other = present.origin if at == "us" else ToyReplica("us").origin
    replica._vv = VersionVector({former: 3})
    replica.control.freeze(former, 3)
    membership = Membership(replica, ["eu", "us"])
    membership.receive(Reports({other: {former: (3, True)}}))
    membership.review(replica.vv(), replica.vv(), {other: ()})
    assert membership.steering.close == ({former: 3} if at == "eu" else {})
    replica.control.apply(member_delta("eu", MemberState.DRAINING, "", 1), other, 1, 5, b"")
    membership.review(replica.vv(), replica.vv(), {other: ()})
    assert membership.steering.close == ({former: 3} if at == "us" else {})


def test_a_drain_waited_for_who_had_never_heard_of_what_was_lost_everywhere() -> None:
    """The only region that had a commit of what ap had been lost its disk, once others had frozen that origin, at nothing. Of nothing
    there is nothing to have: it never heard of the origin again, and ap never left.
    """
    us, eu, former, present = ToyReplica("us"), make_origin("eu", 2, 5), make_origin("ap", 1, 0), make_origin("ap", 2, 5)
    us._vv = VersionVector({eu: 1})
    us.control.freeze(former, 0)
    us.control.apply(member_delta("ap", MemberState.DRAINING, "", 1), eu, 1, 5, b"")
    membership = Membership(us, ["ap", "eu", "us"])
    membership.receive(Reports({present: {former: (0, True), present: (0, False)}}, {present: {eu: 1}}))
    for told, waits_for in (({}, ("eu",)), ({present: (0, False)}, ())):
        membership.receive(Reports({eu: told}))
        membership.review(us.vv(), us.vv(), {eu: (), present: ()})
        standing = next(s for s in membership.standings(us.vv()) if s.region == "ap")
        assert (standing.waits_for, standing.is_drained) == (waits_for, not waits_for), "whether eu knows of the drain does count"
    membership.receive(Reports({present: {former: (2, True)}}))
    standing = next(s for s in membership.standings(us.vv()) if s.region == "ap")
    assert standing.waits_for == ("eu", "us")


def test_an_origin_was_closed_by_reports_of_who_still_followed_the_removed_region() -> None:
    """br removed ap, which was away, with two commits that br had not. ca froze ap because br told that it had, and told where it stood;
    of the removal itself it had not heard. So br closed ap there, and ca then followed the report of ap, which was a member to it.
    """
    br, ca, ap, again = ToyReplica("br"), ToyReplica("ca").origin, make_origin("ap", 1, 0), make_origin("ap", 2, 5)
    br._vv = VersionVector({ap: 3, br.origin: 1})
    br.control.apply(member_delta("ap", MemberState.REMOVED, "", 1), br.origin, 1, 5, b"")
    br.control.freeze(ap, 3)
    membership = Membership(br, ["ap", "br", "ca"])
    membership.receive(Reports({ca: {ap: (3, True)}, again: {ap: (5, True)}}))
    message = membership.review(br.vv(), br.vv(), {ca: ()})
    assert message is not None and message.removals[br.origin] == {br.origin: 1}
    assert not membership.steering.close, "ca may take what ap has"
    membership.receive(Reports({ca: {ap: (3, True)}}, {ca: {br.origin: 1}}))
    membership.review(br.vv(), br.vv(), {ca: ()})
    assert membership.steering.close == {ap: 3}


def test_nobody_goes_by_a_removal_that_is_not_on_his_disk_or_before_all_that_he_froze_is() -> None:
    """What a report promises has to hold after a crash as well, and of all origins in it at once."""
    ca, br, ap = ToyReplica("ca"), make_origin("br", 2, 5), make_origin("ap", 1, 0)
    ca._vv = VersionVector({ap: 3, br: 1})
    ca.control.freeze(ap, 3)
    ca.control.apply(member_delta("ap", MemberState.REMOVED, "", 1), br, 1, 5, b"")
    membership = Membership(ca, ["ap", "br", "ca"])
    for durable, told, goes_by in (
        ({ap: 3}, {ap: (3, True)}, None),
        ({ap: 2, br: 1}, None, None),
        ({ap: 3, br: 1}, {ap: (3, True)}, {br: 1}),
    ):
        message = membership.review(ca.vv(), VersionVector(durable), {br: ()})
        assert (None if message is None else message.reports.get(ca.origin)) == told
        assert (None if message is None else message.removals.get(ca.origin)) == goes_by


@pytest.mark.parametrize("is_late", [False, True])
def test_who_had_followed_a_region_went_on_with_it_after_having_heard_that_it_is_removed(is_late: bool) -> None:
    """ca was to take two more commits of ap's former incarnation, as ap had told; then it heard that ap is removed, and told that it goes
    by that. They waited for something, and came to be applied when that was there: also if the limit was raised only afterwards.
    """
    ap, br, ca = machine("ap"), machine("br"), machine("ca")
    first, more = made(ap, "k", 1), made(ap, "l", 2)
    ca.apply([first])
    br.apply([first])
    br.commit_control([member_delta("ap", MemberState.REMOVED, "", 1)])
    removal = br.log.find(br.origin, 1)
    assert removal is not None
    ca.freeze([ap.origin])
    found = Steering(limits={ap.origin: 2}, version=ca.control.version)
    if is_late:
        ca.apply([removal])
        ca.steer(found)
    else:
        ca.steer(found)
        ca.apply([removal])
    ca.apply([more])
    assert ca.vv().seq(ap.origin) == 1 and ca.replica.held[0] == 1
    ca.steer(Steering(limits={ap.origin: 2}, version=ca.control.version))
    assert ca.vv().seq(ap.origin) == 2, "a member had it after all"


def test_a_removal_that_became_ready_with_what_was_to_be_followed_came_first() -> None:
    """Both had waited for one commit of us. What was ready was applied without another look at how much is taken."""
    us, ap, aa, ca = machine("us"), machine("ap"), machine("aa"), machine("ca")
    waited_for = made(us, "k", 1)
    for each in (ap, aa):
        each.apply([waited_for])
    aa.commit_control([member_delta("ap", MemberState.REMOVED, "", 1)])
    removal, rests = aa.log.find(aa.origin, 1), made(ap, "l", 2)
    assert removal is not None
    ca.freeze([ap.origin])
    ca.steer(Steering(limits={ap.origin: 1}, version=ca.control.version))
    assert ca.apply([removal, rests]).held == 2
    ca.apply([waited_for])
    assert ca.vv() == VersionVector({us.origin: 1, aa.origin: 1}) and ca.replica.held[0] == 1


@pytest.mark.parametrize("is_removed", [False, True])
def test_what_the_frame_of_a_removed_region_had_seen_was_taken_for_what_members_have(is_removed: bool) -> None:
    """A frame of ap's next incarnation was held, and not frozen yet: what it rests on is taken only as long as ap is a member."""
    ap, ca, br = machine("ap"), machine("ca"), machine("br")
    seen = made(ap, "k", 1)
    again = Machine(SimulatedLog(), SimulatedEngine(), origin=make_origin("ap", 2, 5), cluster="c", clock=HybridClock(lambda: 2_000))
    again.apply([seen])
    rests = made(again, "l", 2)
    if is_removed:
        br.commit_control([member_delta("ap", MemberState.REMOVED, "", 1)])
        removal = br.log.find(br.origin, 1)
        assert removal is not None
        ca.apply([removal])
    ca.freeze([ap.origin])
    ca.apply([rests, seen])
    assert ca.vv().seq(ap.origin) == (0 if is_removed else 1)


def test_a_log_damaged_before_an_install_amounts_to_what_was_installed() -> None:
    """The simulator's own log forgot an install once damage had taken the frames before it, and blamed the replica, which had it all."""
    us, log = machine("us"), SimulatedLog()
    log.append([made(us, "k", 1)])
    log.reset_floor(VersionVector({us.origin: 3}))
    log.lose(0)
    assert log.vv() == log.floor() == VersionVector({us.origin: 3})


def test_what_found_no_room_came_back_after_a_loss_of_power() -> None:
    """Of two frames the disk took the first whole. Both were refused, and the file cut back; but that was not synced, so when the power
    failed a commit that its client had been told of as refused could stand in the log again.
    """
    us = machine("us")
    frames = [made(us, "k", 1), made(us, "l", 2)]
    for seed in range(40):
        files = FaultyFiles()
        log = FileLog(Path("/"), files=files)
        log.sync()
        files.room = frames[0].size + RECORD_OVERHEAD + 5
        with pytest.raises(DiskFullError):
            log.append(frames)
        assert FileLog(Path("/"), files=files.lose_power(Random(seed).random)).end() == 0


def test_what_was_held_is_held_again_when_a_full_disk_undoes_what_made_it_ready() -> None:
    """A frame comes that others have waited for, and the log has no room for them together: none is applied. The one that came will come
    again, for its sender keeps it; those that had waited nobody sends again.
    """
    us, eu, log = machine("us"), machine("eu"), SimulatedLog()
    first = made(us, "k", 1)
    eu.apply([first])
    rests = made(eu, "l", 2)
    ap = machine("ap", log)
    assert ap.apply([rests]).held == 1
    log.is_full = True
    with pytest.raises(DiskFullError):
        ap.apply([first])
    assert ap.vv() == EMPTY_VV and ap.replica.held[0] == 1
    log.is_full = False
    ap.retry()
    ap.apply([first])
    assert ap.vv() == eu.vv() and ap.digest() == eu.digest()


def made(at: Machine, key: str, value: int) -> Frame:
    at.transact([[DeltaKind.REGISTER_PUT, key, encode_value(value)]])
    at.seal()
    frame = at.log.find(at.origin, at.own_seq())
    assert frame is not None
    return frame


def test_a_lesser_closing_that_came_later_took_the_last_hash_along() -> None:
    """A region whose disk was put back closed its former incarnation twice, further on the second time, and where the second closing came
    first, the first took the hash of the last commit's frame off the record. After a restart nobody knew it: what came beyond that end
    would have been called a fork, and a snapshot from there damaged.
    """
    x, early, late = machine("xx"), machine("aa"), machine("bb")
    frames = [made(x, "k", 1), made(x, "k", 2)]
    closings = []
    for closer, seen in ((early, frames[:1]), (late, frames)):
        closer.apply(seen)
        closer.commit_control([close_delta(x.origin, len(seen))])
        frame = closer.log.find(closer.origin, 1)
        assert frame is not None
        closings.append(frame)
    log, engine = SimulatedLog(), SimulatedEngine()
    here = machine("us", log, engine)
    here.apply([*frames, closings[1], closings[0]])
    assert here.control.last(x.origin) == 2 and x.origin not in here.control.show(here.vv())
    here.fold()
    again = machine("us", log, engine).replica
    assert again.last_hash(x.origin) == (2, frames[-1].hash)
    assert again.last_hash(x.origin) == here.replica.last_hash(x.origin)
    snapshot = snapshot_of(again)
    assert Snapshot.from_bytes(snapshot.to_bytes()) == snapshot

    # A donor that has no more than the lesser end changes it as little.
    here.control.absorb(early.control.agreed(), {x.origin: frames[0].hash})
    here.fold()
    assert machine("us", log, engine).replica.last_hash(x.origin) == (2, frames[-1].hash)


def machine(region: str, log: SimulatedLog | None = None, engine: SimulatedEngine | None = None) -> Machine:
    clock = HybridClock(lambda: 1_000)
    return Machine(log or SimulatedLog(), engine or SimulatedEngine(), origin=make_origin(region, 1, 0), cluster="c", clock=clock)


def test_a_region_put_back_to_before_a_closing_waited_for_ever() -> None:
    """A region is put back to an earlier state and goes on as another incarnation; it stops its former one where it now has it. The others
    have closed that one, further on, and no longer spoke of it: so it took neither what it lacked nor the closing, nor anything after it.
    """
    eu = ToyReplica("eu")
    before, after = make_origin("us", 1, 0), make_origin("us", 3, 0)
    eu._vv = VersionVector({before: 7, make_origin("us", 2, 0): 1})
    eu.control.apply(close_delta(before, 7), make_origin("us", 2, 0), 1, 5, b"h" * 16)
    membership = Membership(eu, ["us", "eu"])
    membership.receive(Reports({after: {before: (1, True)}}))
    message = membership.review(eu.vv(), eu.vv(), {after: ()})
    assert message is not None and message.reports[eu.origin][before] == (7, True), "it must be told where that one ends"
    membership.announce(after, VersionVector({before: 7}))
    message = membership.review(eu.vv(), eu.vv(), {after: ()})
    assert message is not None and before not in message.reports.get(eu.origin, {}), "and no longer, once it is there"


def test_who_was_far_was_never_asked_for_what_it_had_while_those_near_refused() -> None:
    """Peers that cannot relay are asked again after a while. Where the near ones refuse faster than all can be asked, they were asked over
    and over, nobody got to the far one, and as not all had refused at one time, no snapshot was asked for either.
    """
    near = [f"n{number}" for number in range(6)]
    settings = replace(LOOPBACK, relay_retry_ms=50, relay_timeout_ms=400)
    net = Network([ToyReplica(region) for region in ("us", "ap", "far", *near)], settings=settings)
    for region in near:
        net.delays[frozenset({"ap", region})] = 10.0
    net.delays[frozenset({"ap", "far"})] = 40.0
    net.drop = lambda source, target, m: {source, target} == {"us", "ap"} and isinstance(m, Frames)
    net.mesh()
    net.run_until(net.is_live, 3_000)
    net.write("us")
    net.run_until(lambda: all(len(net.replicas[name].vv()) == 1 for name in (*near, "far")))
    for region in near:
        net.replicas[region].log.reset_floor(net.replicas[region].vv())  # (small logs are not truncated by the frame)
    net.cut("us", "ap")
    net.run_until(net.is_equal, 5_000)


def test_what_nobody_had_anything_of_was_the_latest_because_its_successor_told_that_it_had_frozen_it() -> None:
    """Every disk was lost in turn, br's too, which had stopped br@3 by then, and begins at the first generation again. Its reports name
    br@3, of which nobody had anything, so that nobody froze it, and it counted as the one that may go on: br's reports were for nothing.
    """
    ap, br, ended, gone = ToyReplica("ap", generation=6), make_origin("br", 1, 9), make_origin("ap", 5, 0), make_origin("br", 3, 5)
    ap._vv = VersionVector({ended: 2, br: 1})
    ap.control.freeze(ended, 2)
    membership = Membership(ap, ["ap", "br"])
    membership.receive(Reports({br: {ended: (2, True), gone: (0, True)}}))
    membership.review(ap.vv(), ap.vv(), {br: ()})
    assert membership.steering.close == {ended: 2}


def test_two_that_had_closed_different_origins_refused_each_other_what_would_have_told_them() -> None:
    """Each has a commit, of a region that is gone, which the other lacks, and which closed an origin; their logs no longer hold those
    origins' commits. Each leaves what it closed out of its vector, and to the other, which has not heard of that closing, it lacks it: so
    either's log began too late to relay, for ever. Nor was a snapshot asked for: what the refusal named, each knew to have.
    """
    first, second, third, fourth, us, eu = (ToyReplica(region) for region in ("aa", "bb", "cc", "dd", "us", "eu"))
    ended = [first.write(), second.write()]
    for at, closer, closed in ((us, third, 0), (eu, fourth, 1)):
        at.apply([*ended, closer.write()])
        at.log.reset_floor(VersionVector({first.origin: 1, second.origin: 1}))
        at.control.apply(close_delta(ended[closed].origin, 1), closer.origin, 1, 5, ended[closed].hash)
    net = Network([us, eu])
    net.mesh()
    net.run_until(lambda: us.vv() == eu.vv(), 5_000)
    assert len(us.vv()) == 4


@pytest.mark.parametrize("donor", ["eu", "ap"])
def test_what_a_closed_origin_wrote_was_asked_of_nobody_because_no_vector_named_it(donor: str) -> None:
    """A region begins with nothing. eu closed an origin, and its logs no longer hold that one's commits: its frames wait for them here, and
    no log gives them. Who has them does not say so: a closed origin is in no vector that is shown. So no donor of a snapshot was found.
    """
    gone, us, eu, ap = (ToyReplica(region) for region in ("br", "us", "eu", "ap"))
    written = [gone.write()]
    eu.apply(written)
    ap.apply([*written, rests := eu.write()])
    for replica in (eu, ap):
        replica.log.reset_floor(VersionVector({gone.origin: 1}))
        replica.control.apply(close_delta(gone.origin, 1), eu.origin, 1, 5, written[0].hash)
    for replica in (us, eu if donor == "eu" else ap):
        replica.snapshots = SimpleNamespace(staged=Arrival())
    assert rests.context == VersionVector({gone.origin: 1})
    net = Network([us, eu, ap])
    net.mesh()
    net.run_until(lambda: any(isinstance(m, AskSnapshot) and (a, b) == ("us", donor) for _, a, b, m in net.sent), 3_000)


def test_a_dead_run_of_a_closed_origin_was_forgotten_before_the_last_that_it_had_counted_came() -> None:
    """A region was removed and counted on, unheard; a new one, which had not heard of that, took it all. Where the removed one was closed
    its run was reset and then forgotten, as if nothing could come any more: what came counted all that had been reset.
    """
    gone, us, eu = replica("br"), replica("us"), replica("eu")
    first, reset, unaware = counted_past_a_reset(gone, us, eu)
    eu.receive(unaware)  # it was added at that moment, and nobody counted it
    us.commit_control([close_delta(gone.origin, 1)])
    closing = us.close_frame()
    assert closing is not None
    for frame in (reset, closing):
        eu.receive(frame)
    assert Reader(eu).counter(b"n") == 7
    assert us.forget_stable(us.vv(), {eu.origin: eu.vv()}, 10) == b""
    by_snapshot = replica("ap")
    for frame in (first, unaware):
        by_snapshot.receive(frame)
    install(by_snapshot, snapshot_of(us))
    us.raise_limit(gone.origin, 2)
    us.receive(unaware)
    assert us.vv() == eu.vv() == by_snapshot.vv() and us.digest() == eu.digest() == by_snapshot.digest()
    assert Reader(us).counter(b"n") == Reader(by_snapshot).counter(b"n") == 7


def test_a_spent_run_goes_once_its_closed_origin_is_known_to_have_opened_another() -> None:
    """Of a closed origin only the last run of a counter has to stay."""
    gone, us = replica("br"), replica("us")
    us.receive(commit(gone, [DeltaKind.COUNTER_ADD, "n", 1, 5]))
    us.receive(commit(gone, [DeltaKind.COUNTER_RESET, "n", [[gone.origin, 1, 5, 1]]]))
    us.receive(commit(gone, [DeltaKind.COUNTER_ADD, "n", 3, 2]))
    commit(us, [DeltaKind.COUNTER_RESET, "n", [[gone.origin, 1, 5, 1], [gone.origin, 3, 2, 3]]])
    us.commit_control([close_delta(gone.origin, 3)])
    us.close_frame()
    us.forget_stable(us.vv(), {}, 10)
    assert us.heads.runs(b"n") == [(gone.origin, 3)]


@pytest.mark.parametrize("folds_first", [False, True])
def test_what_became_ready_as_a_limit_rose_was_applied_and_not_logged_where_the_log_had_no_room(folds_first: bool) -> None:
    """The replica went on with commits that its log lacked: after the next write and a SIGKILL the store did not open, or the engine was
    ahead of its log.
    """
    log, engine, ap = SimulatedLog(), SimulatedEngine(), machine("ap")
    us = machine("us", log, engine)
    us.freeze([ap.origin])
    assert us.apply([made(ap, "k", 1)]).held == 1
    log.is_full = True
    with pytest.raises(DiskFullError):
        us.steer(Steering(limits={ap.origin: 1}, version=us.control.version))
    assert us.vv() == us.replica.vv() and us.vv().seq(ap.origin) == 0 and us.replica.held[0] == 1
    log.is_full = False
    us.retry()
    us.steer(Steering(limits={ap.origin: 1}, version=us.control.version))
    assert us.vv().seq(ap.origin) == 1, "it is asked for again"
    made(us, "own", 1)
    if folds_first:
        us.fold()
    again = machine("us", log, engine)
    assert us.vv() == us.replica.vv() == again.vv() and us.digest() == again.digest() and not again.is_engine_ahead


def test_a_full_machine_lets_no_limit_rise() -> None:
    us, ap = machine("us"), machine("ap")
    us.freeze([ap.origin])
    us.apply([made(ap, "k", 1)])
    us.refuse(DiskFullError("no room"))
    with pytest.raises(DiskFullError):
        us.raise_limits({ap.origin: 1})
    assert us.vv() == us.replica.vv() and us.vv().seq(ap.origin) == 0


def test_what_became_ready_behind_an_install_was_applied_and_not_logged_where_the_log_had_no_room() -> None:
    """The same; the install itself is done, so nobody is told of it as failed, and what could not be logged comes once there is room."""
    log, engine, ap, ca = SimulatedLog(), SimulatedEngine(), replica("ap"), replica("ca")
    us = machine("us", log, engine)
    ca.receive(commit(ap, [DeltaKind.REGISTER_PUT, "k", encode_value(1)]))
    waiting = commit(ca, [DeltaKind.REGISTER_PUT, "k", encode_value(2)])
    assert us.apply([waiting]).held == 1
    log.is_full = True
    us.installed(install(us.replica, snapshot_of(ap)).jumped)
    assert us.failed is None and us.vv() == us.replica.vv() == VersionVector({ap.origin: 1}) and us.full is not None
    log.is_full = False
    us.retry()
    assert us.vv() == us.replica.vv() == VersionVector({ap.origin: 1, ca.origin: 1}) and us.replica.position == log.end()


def test_a_held_frame_of_a_fork_kept_those_beside_it_out_of_the_log() -> None:
    """An install made two held frames ready, of which the second was of another history. The first was applied, and never logged."""
    ap, ca, zz, fork = replica("ap"), replica("ca"), replica("zz"), replica("zz")
    us = machine("us")
    us.apply([commit(zz, [DeltaKind.REGISTER_PUT, "z", encode_value(1)])])
    commit(fork, [DeltaKind.REGISTER_PUT, "z", encode_value(2)])
    first = commit(ap, [DeltaKind.REGISTER_PUT, "k", encode_value(1)])
    for each in (ca, fork):
        each.receive(first)
    waiting, bad = commit(ca, [DeltaKind.REGISTER_PUT, "k", encode_value(2)]), commit(fork, [DeltaKind.REGISTER_PUT, "k", encode_value(3)])
    assert us.apply([waiting, bad]).held == 2
    us.installed(install(us.replica, snapshot_of(ap)).jumped)
    assert us.failed is None and us.replica.held[0] == 0
    assert us.vv() == us.replica.vv() == VersionVector({ap.origin: 1, ca.origin: 1, zz.origin: 1})
    with pytest.raises(CorruptionError, match="fork"):
        us.apply([bad])  # whoever brings it again is blamed


def test_a_record_that_was_outdone_took_a_raised_limit_back() -> None:
    """Two operators recorded one region at once, and the lesser record came second. It changed nothing that was agreed, so nobody looked
    anew; but limits began again with it, as with each frame of such records, and nobody raised them a second time.
    """
    us, ap, br, eu = machine("us"), machine("ap"), machine("br"), machine("eu")
    br.commit_control([member_delta("zz", MemberState.ACTIVE, "", 2)])
    eu.commit_control([member_delta("zz", MemberState.ACTIVE, "", 1)])
    us.apply([br.log.find(br.origin, 1)])
    us.freeze([ap.origin])
    us.raise_limits({ap.origin: 3})
    version = us.control.version
    us.apply([eu.log.find(eu.origin, 1)])
    assert us.control.limit(ap.origin) == 0 and us.control.version > version


def test_a_closing_undone_for_want_of_room_left_its_origin_open() -> None:
    """The closing had thawed it. What was undone came back from engine and log; that the origin was frozen, and why, did not."""
    us, ap, eu, later = machine("us"), machine("ap"), machine("eu"), make_origin("ap", 2, 5)
    first, more = made(ap, "k", 1), made(ap, "l", 2)
    eu.apply([first])
    eu.commit_control([close_delta(ap.origin, 1)])
    us.apply([first])
    us.freeze([ap.origin], {ap.origin: later})
    us.log.is_full = True
    with pytest.raises(DiskFullError):
        us.apply([eu.log.find(eu.origin, 1)])
    us.log.is_full = False
    us.retry()
    us.apply([more])
    assert us.vv().seq(ap.origin) == 1
    assert us.control.frozen == {ap.origin: 1} and us.control.ended_by == {ap.origin: later}


def test_a_second_drain_was_done_by_what_had_been_told_of_the_first() -> None:
    """A region was drained, taken back, and wrote on; then it was cut off, and drained again elsewhere. That was done at once, and the
    region could be removed without force: what it had written meanwhile was acknowledged, and in no other region.
    """
    eu, br, ca = ToyReplica("eu"), make_origin("br", 1, 0), make_origin("ca", 1, 0)
    eu._vv = VersionVector({eu.origin: 3, ca: 100, br: 1})
    membership = Membership(eu, ["br", "ca", "eu"])

    def record(state: MemberState, at: int) -> None:
        eu.control.apply(member_delta("ca", state, "", at), eu.origin, at, 4 + at, b"")

    def is_drained(*live: str) -> bool:
        membership.review(eu.vv(), eu.vv(), {{"br": br, "ca": ca}[region]: () for region in live})
        return next(standing for standing in membership.standings(eu.vv()) if standing.region == "ca").is_drained

    record(MemberState.DRAINING, 1)
    assert not is_drained("br", "ca")
    membership.receive(Reports({br: {ca: (100, False)}, ca: {ca: (100, False)}}, {ca: {eu.origin: 1}}))
    assert is_drained("br", "ca")
    record(MemberState.ACTIVE, 2)
    assert not is_drained("br", "ca")
    record(MemberState.DRAINING, 3)
    assert not is_drained("br"), "it has not heard of it, and may have written since"
    membership.receive(Reports({br: {ca: (155, False)}, ca: {ca: (155, False)}}, {ca: {eu.origin: 3}}))
    assert not is_drained("br", "ca"), "it is not all here"
    eu._vv = eu._vv.advance(ca, 155)
    assert is_drained("br", "ca")


@pytest.mark.parametrize("is_handed_over", [False, True])
def test_a_drained_region_says_that_it_goes_by_its_drain_together_with_what_it_has(is_handed_over: bool) -> None:
    """Or a report of an earlier drain would count for this one."""
    ca, eu = ToyReplica("ca"), make_origin("eu", 1, 0)
    ca._vv = VersionVector({ca.origin: 7, eu: 3})
    ca.control.apply(member_delta("ca", MemberState.DRAINING, "", 3), eu, 3, 7, b"")
    membership = Membership(ca, ["ca", "eu"])
    message = membership.review(ca.vv(), ca.vv(), {eu: ()}, is_handed_over=is_handed_over)
    assert (message is not None and message.removals.get(ca.origin) == {eu: 3}) is is_handed_over


def test_a_region_removed_and_added_again_before_it_was_closed_was_refused_for_ever() -> None:
    """Its process went on. It was frozen for the removal, which the later record had outdone: so each refused it for a reason that nobody
    could name, and it was not closed, because it was a member that could not report. It took writes all the while, unheard.
    """
    former = make_origin("us", 1, 0)
    here = [ToyReplica("br"), ToyReplica("ca")]
    told = [Membership(at, ["br", "ca", "us"]) for at in here]
    for at, membership in zip(here, told, strict=True):
        at._vv = VersionVector({former: 3, here[0].origin: 2, here[1].origin: 1})
        at.control.apply(member_delta("us", MemberState.REMOVED, "", 1), here[0].origin, 1, 5, b"")
        at.control.freeze(former, 3)
        assert not membership.is_former(former), "it is removed, and told so"
        at.control.apply(member_delta("us", MemberState.ACTIVE, "", 2), here[0].origin, 2, 6, b"")
        assert membership.is_former(former), "it is to go on as another incarnation"
        refused = refusal(at, former, at.vv(), is_former=True)
        assert refused is not None and refused[0] is Code.ENDED


def test_what_only_a_drained_region_had_of_a_lost_disk_counted_as_handed_over() -> None:
    """us lost its disk, and is connected as another incarnation. What it had written last is at ap alone, and could be had, it was thought,
    from whoever wrote it.
    """
    before, us, ap, eu = ToyReplica("us"), ToyReplica("us", generation=2), ToyReplica("ap"), ToyReplica("eu")
    ap.apply([before.write()])
    net = Network([us, ap, eu])
    net.drop = lambda source, target, m: isinstance(m, Frames)  # it has not come yet
    net.mesh()
    net.run_until(net.is_live, 3_000)
    assert not us.vv() and not eu.vv() and ap.vv() and not net.drives["ap"]._is_handed_over()


def test_a_refusal_outlived_the_incarnation_that_it_was_for() -> None:
    """A region had applied the closing of its own origin. It took a new incarnation, and called itself removed until it was restarted."""
    us, eu = machine("us"), machine("eu")
    eu.apply([made(us, "k", 1)])
    eu.commit_control([close_delta(us.origin, 1)])
    us.apply([eu.log.find(eu.origin, 1)])
    assert us.replica.refusal is not None
    us.begin_incarnation(make_origin("us", 2, 5))
    assert us.replica.refusal is None
    made(us, "k", 2)


def test_a_drain_waited_for_who_had_told_that_he_has_it_before_one_knew_what_his_ack_leaves_out() -> None:
    """A peer leaves what is closed out of its acks. The last one came before the closing did, and named less than the peer had; nothing was
    written any more, so none followed, and what the drained region had was never called handed over.
    """
    gone, eu, ap = ToyReplica("br"), ToyReplica("eu"), ToyReplica("ap")
    for at in (eu, ap):
        at.apply([last := gone.write()] if at is eu else [last])
    net = Network([eu, ap])
    net.mesh()
    net.run_until(net.is_live, 3_000)
    closing = net.write("eu")
    eu.control.apply(close_delta(gone.origin, 1), eu.origin, closing.last_seq, 5, last.hash)
    net.run(2_000)
    link = next(link for link, peer in net.drives["ap"]._peers.items() if peer.session.origin == eu.origin)
    shown = eu.control.show(eu.vv())
    net.drives["ap"]._peers[link].session.peer_durable = shown  # as acked before the closing was applied here
    assert gone.origin not in shown and not net.drives["ap"]._is_handed_over()
    ap.control.apply(close_delta(gone.origin, 1), eu.origin, closing.last_seq, 5, last.hash)
    assert net.drives["ap"]._is_handed_over()


def test_an_engine_that_had_no_room_for_a_new_incarnation_woke_up_before_it() -> None:
    """A log had lost its end, which the engine had, so a new incarnation began. The engine took it in once there was room, but not to the
    disk: after a loss of power it stood where it had stood before, at a position that the log had filled anew. That commit was passed over.
    """
    log, engine = SimulatedLog(), SimulatedEngine()
    us = machine("us", log, engine)
    made(us, "k", 1)
    made(us, "l", 1)
    us.settle()
    del log.frames[1:], log.vv_at[2:]  # (what was synced: bits of it had turned over)
    log.sync()
    us = machine("us", log, engine)
    assert us.is_engine_ahead
    engine.is_full = True
    us.begin_incarnation(later := make_origin("us", 2, 0))
    assert us.full is not None
    engine.is_full = False
    us.retry()
    made(us, "m", 1)
    log.sync()
    engine.wake(0)  # the least that a loss of power leaves
    again = Machine(log, engine, origin=later, cluster="c", clock=HybridClock(lambda: 1_000))
    assert again.vv() == us.vv() and again.replica.digest() == us.replica.digest()


@pytest.mark.parametrize("is_member", [True, False])
def test_a_snapshot_of_a_member_was_refused_for_what_it_had_of_a_region_that_was_added_again(is_member: bool) -> None:
    """ap was removed, and frozen here, and was added again where br is, which has what it wrote since. The logs no longer hold how that
    came: only a snapshot of br's helps, and each was refused for going beyond what is taken of ap, where br's frames would be followed.
    """
    us, ap, br = machine("us"), machine("ap"), machine("br")
    first, since = made(ap, "k", 1), made(ap, "l", 1)
    us.apply([first])
    us.freeze([ap.origin])
    us.commit_control([member_delta("ap" if is_member else "br", MemberState.REMOVED, "", 1)])
    br.apply([first, since])
    staging = MemoryStaging()
    for data, link in chunks(Snapshots(br, MemoryStaging()).open(), 1 << 20):
        staging.append(data, link)
    if is_member:
        us.install(staging)
        assert us.vv().seq(ap.origin) == 2
    else:
        with pytest.raises(RegionRemovedError):
            us.install(staging)
        assert us.vv().seq(ap.origin) == 1 and us.failed is None
