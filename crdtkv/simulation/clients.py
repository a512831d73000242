"""The clients of a simulation: sessions that carry what they have seen, wander between regions and try again what had no answer.

A session's token is the real one, as text. A region serves a session once it has applied what the token covers; until then the
client waits, or goes elsewhere. A request whose answer does not come is tried again under its id, in the same region only: another one
might not know of it. What sessions read and wrote in some registers is written down, and judged by the history checkers at the end.

Which region a session turns to is decided by `Routing`: the seam for regions that take only some keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from crdtkv.core.causality import EMPTY_VV, Dot, VersionVector
from crdtkv.core.codec import SlotType, decode_value, encode_value, slot_of
from crdtkv.core.frame import Delta
from crdtkv.core.token import Token, token_vv
from crdtkv.simulation import checkers
from crdtkv.simulation.dice import Dice
from crdtkv.simulation.specification import Operation, Write
from crdtkv.simulation.workload import Workload
from crdtkv.store.transaction import Transaction

if TYPE_CHECKING:
    from crdtkv.simulation.member import Member
    from crdtkv.simulation.world import World

Fill = Callable[[Transaction], tuple[list[Delta], tuple[Operation, ...]]]

covered_by = lru_cache(maxsize=64)(token_vv)
"""What a token covers. A session that waits shows the same one again."""
SESSIONS: Final = 4
RECORDED: Final = ("seen/0", "seen/1", "seen/2")
"""Registers that only recorded transactions use, without a lifetime: their histories can be judged from outside."""
PATIENCE: Final = 12
"""So often a session waits for a region to catch up with its token before it begins anew, without one."""


class Routing(Protocol):
    """Which region a session's next request goes to, by its number."""

    def place(self, session: Session, regions: int) -> int: ...


class Wandering:
    """Every region takes every key: a session stays where it is, or goes on in any other."""

    def __init__(self, dice: Dice, hop: float) -> None:
        self._dice = dice
        self._hop = hop

    def place(self, session: Session, regions: int) -> int:
        return self._dice.below(regions) if self._dice.chance(self._hop) else session.at


class Session:
    """One client: where it is, its token, and the request that has no answer yet."""

    __slots__ = ("at", "name", "pending", "token", "waited")

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = 0
        self.token: str | None = None
        self.pending: Pending | None = None
        self.waited = 0

    def seen(self, member: Member) -> VersionVector:
        """What its token covers, as this replica understands it."""
        return EMPTY_VV if self.token is None else member.machine.control.complete(covered_by(self.token))

    def learn(self, member: Member) -> None:
        """It has read from, or written to, a replica: all that is applied there is seen."""
        machine = member.machine
        self.token = Token(machine.shard, machine.origin, machine.log.end(), machine.control.show(machine.vv())).encode()


class Pending:
    """A request that was sent and not answered."""

    __slots__ = ("fill", "origin", "request_id", "tries")

    def __init__(self, request_id: bytes, origin: str, fill: Fill) -> None:
        self.request_id = request_id
        self.origin = origin
        self.fill = fill
        self.tries = 1


class Clients:
    """See the module's docstring.

    Attributes:
        tokens: sessions carry what they have seen; without, they see what the region has that they turn to.
        recorded: how many of the requests are such as can be judged from outside.
        transactions: what was seen and written in the recorded registers.
    """

    def __init__(self, world: World, workload: Workload, routing: Routing) -> None:
        self._world = world
        self._workload = workload
        self._routing = routing
        self._dice = world.dice
        self._sessions = [Session(f"client {i + 1}") for i in range(SESSIONS)]
        self._begun = SESSIONS
        self._values = self._requests = 0
        self.tokens = True
        self.recorded = 0.3
        self.transactions: list[checkers.Transaction] = []

    def turn(self) -> None:
        """One client's next request, or its next try of the last one."""
        world, dice = self._world, self._dice
        number = dice.below(SESSIONS)
        session = self._sessions[number]
        before = session.at
        if session.pending is None:
            session.at = self._routing.place(session, len(world.members))
        member = world.members[session.at]
        if not member.is_up:
            return world.idle()
        if self.tokens and not session.seen(member) <= member.machine.vv():
            return self._wait(number)
        session.waited = 0
        world.rare["session_hopped"] += session.at != before and session.token is not None
        if session.pending is not None:
            self._try_again(session, session.pending, member)
        elif dice.chance(self.recorded):
            self._record(session, member)
        else:
            self._request(session, member)
        if session.pending is None:
            session.learn(member)
        world.changed(member)

    def _wait(self, number: int) -> None:
        world, session = self._world, self._sessions[number]
        session.waited += 1
        world.rare["session_waited"] += 1
        if session.waited >= PATIENCE:
            world.rare["session_gave_up"] += 1
            self._begun += 1
            self._sessions[number] = Session(f"client {self._begun}")
        world.idle()

    def _request(self, session: Session, member: Member) -> None:
        now_ms = member.machine.replica.now_ms()

        def fill(transaction: Transaction) -> tuple[list[Delta], tuple[Operation, ...]]:
            return self._workload.fill(transaction, now_ms)

        count = self._dice.pick((1, 1, 3))
        if count == 1 and self._dice.chance(0.4):
            self._requests += 1
            request_id = f"request {self._requests}".encode()
            member.serve(fill, 1, request_id)
            if self._dice.chance(0.3):  # the answer is lost, if there was one
                session.pending = Pending(request_id, member.origin, fill)
        else:
            member.serve(fill, count)

    def _try_again(self, session: Session, pending: Pending, member: Member) -> None:
        world = self._world
        pending.tries += 1
        if member.origin != pending.origin:  # it begins anew as another: whether the request was done there, it need not know
            world.rare["request_given_up"] += 1
            session.pending = None
            return
        made = member.machine.replica.request(pending.request_id)
        if made is None and member.machine.replica.settings.requests_max >= self._requests:
            world.rare["request_tried_again"] += 1
            member.serve(pending.fill, 1, pending.request_id)
        elif made is not None:
            world.rare["retry_was_answered"] += 1
            world.auditor.answered(pending.request_id, Dot(made.origin, made.seq))
        if pending.tries > 2 or self._dice.chance(0.7):  # else that answer is lost, too
            session.pending = None

    def _record(self, session: Session, member: Member) -> None:
        """Read and write some registers at once, and write down what was seen."""
        dice = self._dice
        reads = [checkers.Read(key, self._read(member, key)) for key in RECORDED if dice.chance(0.6)]
        writes = [checkers.Write(key, self._value()) for key in RECORDED if dice.chance(0.4)]

        def fill(transaction: Transaction) -> tuple[list[Delta], tuple[Operation, ...]]:
            for write in writes:
                transaction.put(write.key, encode_value(write.value), None)
            return transaction.deltas(), tuple(Write((w.key, "register", b""), encode_value(w.value)) for w in writes)

        is_done = not writes or member.serve(fill, 1)
        if is_done and (reads or writes):
            self.transactions.append(checkers.Transaction(session.name, (*reads, *writes)))

    def _value(self) -> int:
        self._values += 1
        return self._values

    @staticmethod
    def _read(member: Member, key: str) -> int | None:
        entry = member.reader.entry(slot_of(key.encode(), SlotType.REGISTER, b""))
        value = None if entry is None else decode_value(entry.value)
        assert value is None or isinstance(value, int)
        return value

    def probe(self, member: Member) -> bool:
        """Write something at a replica that must take it; whether it did, or had to refuse for its clock."""
        refused = self._world.rare["clock_refused"]
        value = encode_value(self._value())

        def fill(transaction: Transaction) -> tuple[list[Delta], tuple[Operation, ...]]:
            transaction.put("probe", value, None)
            return transaction.deltas(), (Write(("probe", "register", b""), value),)

        return member.serve(fill, 1) or self._world.rare["clock_refused"] > refused

    # -- at the end -----------------------------------------------------------------------------------------------

    def judge(self, *, convergent: bool) -> str | None:
        """What the recorded history breaks, of what clients are promised. `convergent`: no write was stamped below one that it had seen."""
        history = checkers.History(self.transactions)
        anomalies = checkers.session_guarantees(history) + checkers.atomic_visibility(history, convergent=convergent)
        anomalies += (checkers.causal_convergence if convergent else checkers.causal_consistency)(history)
        return f"clients saw what may not be: {anomalies[0]}" if anomalies else None

    def waits_for(self, member: Member) -> str | None:
        """A session that could not go on at this replica."""
        for session in self._sessions:
            if not (seen := session.seen(member)) <= member.machine.vv():
                return f"{session.name} has seen {seen}, and waits for {member.region} in vain"
        return None
