"""One client's connection: a multiplexed stream to the first endpoint that answers. Lives in one event loop.

Theory of operation. Calls gather in a queue; a writer takes all that have gathered into one message, so the requests of one
turn of the event loop travel together, and while a message is on its way the next one fills: batches clock themselves, from
one request at rest to thousands under load, without a delay that anyone chose. A message may follow the last when it is full,
when something was answered since, or after `PACE_S` (over a long round trip nothing is answered for a while); never while the last one
has not left for want of room in the node's window or the socket. Over a short round trip no more than two wait for an
answer unless they are full, so what a node that stood still has missed comes to it in few messages. What is in flight and waits is bounded.

A region that takes no writes (it is drained, was removed, or its disk is full) turns the client away: once everything in flight is
answered, it goes to the next endpoint and sends there what was refused. If no other is there, or all refused lately, the call fails.

A node that has no time for a call at present says when to come again (`retry_after_ms`): within its deadline the call does, by itself.

Deadlines cost one timer for all calls, set to the nearest of them.

When the connection is lost, calls that were never sent, and reads, go on the next one. A write that was sent may have been
applied; the region it was sent to knows its request id, so it is sent again there, and nowhere else: if the connection
comes up elsewhere, it fails with `maybe_applied`. Endpoints are tried in the caller's order, after the one just lost; when
`CONNECT_ROUNDS` rounds in a row found nobody, everything that waits fails, and the next call starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import DecodeError

from crdtkv.client.endpoints import Credentials
from crdtkv.client.queues import MESSAGE_REQUESTS_MAX, InFlight, Waiting
from crdtkv.client.waves import Waves
from crdtkv.client.wire import Block, Call, new_request_ids
from crdtkv.errors import (
    CorruptionError,
    CrdtkvError,
    DeadlineExceededError,
    DiskFullError,
    OverloadedError,
    RegionRemovedError,
    RegionUnavailableError,
    StoreClosedError,
    error_from_parts,
)
from crdtkv.pb.v1 import kv_pb2
from crdtkv.results import OK, ONE_BY_ONE
from crdtkv.transport.calling import ClientStream, open_stream
from crdtkv.transport.errors import from_rpc_error
from crdtkv.transport.messages import Messages

SESSION: Final = "/crdtkv.v1.KeyValue/Session"
IN_FLIGHT_MAX: Final = 8192
"""Requests sent and not answered; a node reads on below 16,384."""
IN_FLIGHT_BYTES_MAX: Final = 16 << 20
PENDING_MAX: Final = 65_536
"""Requests waiting to be sent; one more is refused. A pipeline is admitted whole."""
DEADLINE_TOLERANCE: Final = 0.02
"""Requests whose deadlines differ by no more than this part of what is left share one in the message, or in a block."""
TURNED_AWAY_S: Final = 5.0
"""How long an endpoint that refused writes is not gone to for another one's refusal."""
PACE_S: Final = 0.001
MESSAGES_MIN: Final = 2
MESSAGE_PER_S: Final = 0.002
"""So many messages that are not full may wait for an answer, and one more for each `MESSAGE_PER_S` of the shortest time to an answer. What
was sent ahead while the node stood still for a moment would else stay queued there: each answer lets one message follow, so their number
never went down again, and every call waited behind them. And in few messages the same calls cost both sides less."""
CONNECT_TIMEOUT_S: Final = 2.0
CONNECT_ROUNDS: Final = 3
AGAIN_MS_MIN: Final = 10
"""A call that a node refuses for the moment is not sent again sooner, whatever the node says."""
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0

Row = tuple[int, str, list[Any], bytes | dict[str, Any] | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, int, Any]]).decode


class Connection:
    """An open session stream."""

    __slots__ = ("address", "index", "stream")

    def __init__(self, index: int, address: str, stream: ClientStream) -> None:
        self.index = index
        self.address = address
        self.stream = stream

    async def close(self) -> None:
        """End the session stream."""
        self.stream.cancel()
        await self.stream.closed()


class Session:
    """The calls of one client and the stream they share. Only for the event loop it was made in.

    Attributes:
        messages: sent so far.
        pending: calls that wait to be sent, and how many requests they are.
    """

    def __init__(self, endpoints: Sequence[str], *, credentials: Credentials | None = None, pending_max: int = PENDING_MAX) -> None:
        self.endpoints = tuple(endpoints)
        self.pending = Waiting()
        self.messages = 0
        self.pending_max = pending_max
        self.closed = False
        self._tls = None if credentials is None else credentials.tls
        self._calls: set[ClientStream] = set()  # beside the session's stream
        self.loop = asyncio.get_running_loop()
        self._in_flight = InFlight()
        self._connection: Connection | None = None
        self._first = 0  # the endpoint to try first
        self._turned_away: dict[int, float] = {}  # endpoints that refused writes, and when
        self._may_leave = False  # the current one is not there for want of others
        self._leaving = False  # nothing more is sent here; once all is answered, on to the next
        self._answered = True  # something was answered, or the pace has passed, since the last message
        self._unanswered: deque[tuple[int, float]] = deque()  # messages without an answer: the last request, and when it was sent
        self._waves = Waves()
        self._round_trip_s = float("inf")  # the shortest time to an answer, on this connection
        self._heard_at = 0.0
        self._is_woken = False  # the writer is to run in the next iteration of the loop
        self._broken: CrdtkvError | None = None  # what the node sent that cannot be read
        self._refusals = 0  # streams in a row that ended before anything was heard
        self._refusal: CrdtkvError | None = None  # and why, as far as they said
        self._wanted = asyncio.Event()  # somebody needs a connection
        self._connecting: list[asyncio.Future[Connection]] = []
        self._refused: dict[Call, asyncio.TimerHandle] = {}  # calls that a node asked to send again later
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._pace: asyncio.TimerHandle | None = None
        self._task = self.loop.create_task(self._run(), name="crdtkv-client")

    # -- calls ----------------------------------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Raise `OverloadedError` if no more calls can wait."""
        if self.pending.requests >= self.pending_max:
            raise OverloadedError(
                f"{self.pending_max:,} requests wait to be sent to {self._where()}: slow down, or use a pipeline",
                limit=self.pending_max,
                retry_after_ms=10,
            )

    def submit(self, call: Call, timeout: float) -> None:
        """Queue a call whose sink is set; the outcome goes there."""
        self.submit_all([call], timeout)

    def submit_all(self, calls: list[Call], timeout: float) -> None:
        """`submit` of each."""
        if self.closed:
            for call in calls:
                call.fail(closed_error())
            return
        deadline = self.loop.time() + timeout
        for call in calls:
            call.deadline, call.timeout = deadline, timeout
        self.pending.add(calls)
        self._submitted(deadline)

    def submit_now(self, batches: deque[tuple[list[Call], float]]) -> None:
        """`submit_all` of each and all that comes meanwhile, from left to right, and send it without waiting for more."""
        self._is_woken = True  # what is submitted need not see to it
        while batches:
            self.submit_all(*batches.popleft())
        self._write()

    def gather(self, op: str, weight: int, timeout: float) -> Block:
        """The block to which the caller is to add such a request, now; see `Waiting.gather`."""
        if self.closed:
            raise closed_error()
        deadline = self.loop.time() + timeout
        pending = self.pending
        if 0 < self._waves.split_at <= pending.requests and not self._in_flight:
            self._waves.split()
            self._write()
            self._answered = True  # the other half may follow
        block = pending.gather(op, weight, deadline, timeout * DEADLINE_TOLERANCE)
        if not block.sinks:
            block.timeout = timeout
            self._submitted(deadline)
        elif pending.requests == MESSAGE_REQUESTS_MAX:
            self._wake_writer()  # a full message does not wait for an answer
        return block

    def _submitted(self, deadline: float) -> None:
        if deadline < self._timer_at:
            self._set_timer(deadline)
        if self._connection is None:
            self._wanted.set()
        elif not self._is_woken:
            self._is_woken = True
            self.loop.call_soon(self._write)

    async def connected(self) -> Connection:
        """The current connection, made if there is none.

        Raises:
            RegionUnavailableError: no endpoint answered.
        """
        if self.closed:
            raise closed_error()
        if self._connection is not None:
            return self._connection
        waiter: asyncio.Future[Connection] = self.loop.create_future()
        self._connecting.append(waiter)
        self._wanted.set()
        return await waiter

    async def call(self, address: str, method: str, messages: Messages) -> ClientStream:
        """Begin another call at a node, on a connection of its own; it ends with the session, if not before.

        Raises:
            RegionUnavailableError: nobody answers there.
        """
        try:
            stream = await open_stream(address, method, messages.arrived, messages.writable, tls=self._tls)
        except RegionUnavailableError as e:
            raise RegionUnavailableError(f"{address}: {e.message}", address=address) from None
        messages.begin(stream)
        if self.closed:
            stream.cancel()
        else:
            self._calls.add(stream)
            stream.ended.add_done_callback(lambda _: self._calls.discard(stream))
        return stream

    async def close(self) -> None:
        """Fail what waits, end all streams; idempotent."""
        if self.closed:
            return
        self.closed = True
        calls = list(self._calls)
        for stream in calls:
            stream.cancel()
        await asyncio.gather(*(stream.closed() for stream in calls))
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for timer in (self._timer, self._pace):
            if timer is not None:
                timer.cancel()
        for timer in self._refused.values():
            timer.cancel()
        for call in [*self._in_flight.clear(), *self.pending.clear(), *self._refused]:
            call.fail(closed_error(maybe_applied=_may_have(call)))
        self._refused.clear()
        self._refuse_waiters(closed_error())

    # -- the connection -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self.closed:  # asked here too: a cancellation that meets the end of the writer is swallowed with it
            await self._wanted.wait()
            self._wanted.clear()
            if not (self.pending or self._connecting):
                continue
            try:
                connection = await self._connect()
            except CrdtkvError as e:
                self._fail_pending(e)
                continue
            self._adopt(connection)
            why: CrdtkvError | None = None
            try:
                self._wake_writer()
                why = self._why(await asyncio.shield(connection.stream.ended))  # who cancels us is not to cancel that
            finally:
                self._connection = None
                self._requeue(connection)
                with contextlib.suppress(Exception):
                    await connection.close()
            if not self.closed:
                await self._consider(why)
            if self.pending or self._connecting:
                self._wanted.set()

    async def _consider(self, why: CrdtkvError | None) -> None:
        """After a loss: an endpoint that takes the connection and then refuses the stream is a failure like any other."""
        if self._heard_at:
            self._refusals, self._refusal = 0, None
            return
        self._refusals += 1
        if self._refusals > 1:  # the first time it is asked again: it may hold a write of ours
            self._first = (self._first + 1) % len(self.endpoints)
        if why is not None and not isinstance(why, RegionUnavailableError):
            self._refusal = why  # says more than a broken stream does
        error = self._refusal or why or RegionUnavailableError("the stream was closed before anything was answered")
        if not error.retryable or self._refusals >= CONNECT_ROUNDS * len(self.endpoints):
            self._refusals, self._refusal = 0, None
            self._fail_pending(error)
        else:
            await asyncio.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2**self._refusals) * random.uniform(0.5, 1.0))

    async def _connect(self) -> Connection:
        """The first endpoint that answers, beginning with `_first`."""
        order = [self._first, *(i for i in range(len(self.endpoints)) if i != self._first)]
        reasons: dict[str, str] = {}
        for attempt in range(CONNECT_ROUNDS):
            if attempt:
                await asyncio.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2**attempt) * random.uniform(0.5, 1.0))
            for index in order:
                address = self.endpoints[index]
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        stream = await open_stream(address, SESSION, self._message, self._wake_writer, tls=self._tls)
                    return Connection(index, address, stream)
                except RegionUnavailableError as e:
                    reasons[address] = e.message
                except TimeoutError:
                    reasons[address] = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        why = "; ".join(f"{address}: {reason}" for address, reason in reasons.items())
        raise RegionUnavailableError(
            f"no endpoint answered, asked {CONNECT_ROUNDS} times: {why}; see that a node runs there, or name others",
            endpoints=list(self.endpoints),
        )

    def _adopt(self, connection: Connection) -> None:
        self._connection = connection
        self._waves = Waves()
        self._first = connection.index
        self._leaving = False
        now = self.loop.time()
        self._turned_away = {index: at for index, at in self._turned_away.items() if now - at < TURNED_AWAY_S}
        self._may_leave = connection.index not in self._turned_away
        self._answered = True
        self._heard_at = 0.0
        self._round_trip_s = float("inf")
        if any([call.bound is not None and call.bound != connection.index for call in self.pending]):
            kept = []
            for call in self.pending.clear():
                if call.bound is None or call.bound == connection.index:
                    kept.append(call)
                    continue
                lost_to = self.endpoints[call.bound]
                text = f"the connection to {lost_to} was lost before an answer; the write may have been applied there"
                call.fail(RegionUnavailableError(text, maybe_applied=True, endpoint=lost_to, call=call.name))
            self.pending.add(kept)
        for waiter in self._connecting:
            if not waiter.done():
                waiter.set_result(connection)
        self._connecting.clear()

    def _why(self, error: grpc.RpcError | None) -> CrdtkvError | None:
        """Why a stream ended, if that is known."""
        broken, self._broken = self._broken, None
        if broken is not None or error is None:
            return broken
        return from_rpc_error(error, where=self._where())

    def _requeue(self, connection: Connection) -> None:
        """Sort what was in flight: it waits again, writes bound to the endpoint that may have them."""
        calls = self._in_flight.clear()
        for call in calls:
            if call.write:
                call.bound = connection.index
        self.pending.put_back(calls)
        self._unanswered.clear()

    def _fail_pending(self, error: CrdtkvError) -> None:
        for call in self.pending.clear():
            call.fail(error_from_parts(error.code, error.message, error.details, error.retryable, _may_have(call)))
        self._refuse_waiters(error)

    def _refuse_waiters(self, error: CrdtkvError) -> None:
        for waiter in self._connecting:
            if not waiter.done():
                waiter.set_exception(error)
        self._connecting.clear()

    def _where(self) -> str:
        return self._connection.address if self._connection is not None else ", ".join(self.endpoints)

    # -- writing --------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Send what may go now. Runs in the iteration of the loop after the one that gave it something to do, with all that gathered."""
        self._is_woken = False
        if self._connection is None:
            return
        stream = self._connection.stream
        while stream.can_send and self._may_send():
            calls = self.pending.take(IN_FLIGHT_MAX - self._in_flight.requests)
            if calls:
                self._answered = False
                self.messages += 1
                before = self._in_flight.requests
                rows, deadline_ms = self._rows(calls)
                now = time.monotonic()
                self._unanswered.append((rows[-1][0], now))
                self._waves.sent(self._in_flight.requests - before, now)
                stream.send(kv_pb2.RequestBatch(rows=_encode(rows), deadline_ms=deadline_ms).SerializeToString())
        if self.pending and self._in_flight and not self._answered:
            self._set_pace()

    def _may_send(self) -> bool:
        in_flight = self._in_flight
        if not self.pending or self._leaving:
            return False
        if not in_flight:
            return True
        may_follow = (self._answered and len(self._unanswered) < self._messages_max()) or self.pending.requests >= MESSAGE_REQUESTS_MAX
        return may_follow and in_flight.requests < IN_FLIGHT_MAX and in_flight.bytes < IN_FLIGHT_BYTES_MAX

    def _messages_max(self) -> int:
        """How many messages that are not full may be on their way."""
        round_trip_s = self._round_trip_s
        return MESSAGES_MIN if round_trip_s < MESSAGE_PER_S else MESSAGES_MIN + int(min(round_trip_s, 1.0) / MESSAGE_PER_S)

    def _rows(self, calls: list[Call]) -> tuple[list[Row], int]:
        """The rows of a message, in flight from here on, and the deadline that they share, in ms from now."""
        now = self.loop.time()
        unnamed = [call for call in calls if call.write and not call.is_named]
        if unnamed:
            ids = iter(new_request_ids(sum([call.count for call in unnamed])))
            for call in unnamed:
                call.name_requests(ids)
        common = calls[0].deadline
        tolerance = (common - now) * DEADLINE_TOLERANCE
        earliest, latest = common - tolerance, common + tolerance
        add = self._in_flight.add
        rows: list[Row] = []
        for call in calls:
            call.sent_at = now
            options: bytes | dict[str, Any] | None = call.request_id
            if call.durability is not None or not earliest <= call.deadline <= latest:
                options = {"deadline_ms": _ms_left(call.deadline, now)}
                if call.request_id is not None:
                    options["rid"] = call.request_id
                if call.durability is not None:
                    options["durability"] = call.durability
            rows.append((add(call), call.op, call.args, options))
        return rows, _ms_left(common, now)

    def _set_pace(self) -> None:
        if self._pace is None:
            self._pace = self.loop.call_later(PACE_S, self._pace_passed)

    def _pace_passed(self) -> None:
        self._pace = None
        self._answered = True
        self._wake_writer()

    def _wake_writer(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self.loop.call_soon(self._write)

    # -- reading --------------------------------------------------------------------------------------------------------

    def _message(self, data: bytes) -> None:
        """Take a message of the stream. Its callers go on in the next iteration of the loop."""
        try:
            message = kv_pb2.ReplyBatch.FromString(data)
            self._receive(message.rows, message.token)
        except (CorruptionError, DecodeError) as e:
            self._broken = e if isinstance(e, CorruptionError) else CorruptionError(f"replies: {e}")
            assert self._connection is not None
            self._connection.stream.cancel()

    def _receive(self, data: bytes, token: str) -> None:
        try:
            rows = _decode(data)
        except msgspec.DecodeError as e:
            raise CorruptionError(f"replies: {e}") from e
        in_flight = self._in_flight
        before = in_flight.requests
        for id, status, payload in rows:
            call = in_flight.get(id)
            if call is None:
                continue
            if status == ONE_BY_ONE and isinstance(call, Block):
                self._answer_one_by_one(call, payload, token)
                if len(call.answered) < call.count:
                    continue  # the others come in another row
            else:
                self._answer(call, status, payload, token)
            in_flight.pop(id)
        self._heard_at = self.loop.time()
        self._answered = True
        if rows:
            # Messages are answered in order: this answer is of the last of them, or of one before.
            unanswered, last, now, waited_s = self._unanswered, rows[-1][0], time.monotonic(), 0.0
            while unanswered and unanswered[0][0] <= last:
                waited_s = now - unanswered.popleft()[1]
                self._round_trip_s = min(self._round_trip_s, waited_s)
            self._answered = self._waves.answered(before - in_flight.requests, waited_s, now, are_all=not in_flight)
        if self._leaving and not self._in_flight:
            assert self._connection is not None
            self._connection.stream.cancel()
        else:
            # Even if nothing waits: the callers that were answered go on before it, in the same iteration of the loop, and what they
            # ask next is sent at the end of that and not of the next.
            self._wake_writer()

    def _answer(self, call: Call, status: int, payload: Any, token: str) -> None:
        if status == OK:
            call.answer(payload, token)
        elif not call.done():
            error = _error_of(payload)
            if not self._again_later(call, error) and not self._elsewhere(call, error):
                call.fail(error)

    def _answer_one_by_one(self, block: Block, replies: Any, token: str) -> None:
        try:
            for at, status, payload in replies:
                if at not in block.answered:
                    self._answer(block.single(at), status, payload, token)
                    block.answered.add(at)
        except (TypeError, ValueError, IndexError) as e:
            raise CorruptionError(f"{block.name}: the answers to a block have an unexpected form: {e}") from e

    def _elsewhere(self, call: Call, error: CrdtkvError) -> bool:
        """Have a write that this region does not take sent to another; False: there is none, or it is no such error."""
        refuses = isinstance(error, RegionUnavailableError | RegionRemovedError | DiskFullError) and not error.maybe_applied
        if not refuses or call.bound is not None or not call.write:
            return False
        if not self._leaving:
            assert self._connection is not None
            here, n = self._connection.index, len(self.endpoints)
            others = [i for i in ((here + k) % n for k in range(1, n)) if i not in self._turned_away]
            if not others or not self._may_leave:
                return False
            self._turned_away[here] = self.loop.time()
            self._first, self._leaving = others[0], True
        call.sent_at = 0.0  # it was refused: nobody has it
        self.pending.add([call])
        return True

    def _again_later(self, call: Call, error: CrdtkvError) -> bool:
        """Send a call again that the node refused for the moment, after as long as it says; False: there is no time, or it is not such."""
        wait_ms = error.details.get("retry_after_ms")
        if not isinstance(error, RegionUnavailableError | OverloadedError) or type(wait_ms) is not int or error.maybe_applied:
            return False
        at = self.loop.time() + max(wait_ms, AGAIN_MS_MIN) / 1000 * random.uniform(1.0, 1.5)
        if at >= call.deadline:
            return False
        if call.bound is None:
            call.sent_at = 0.0  # it was refused: nobody has it
        self._refused[call] = self.loop.call_at(at, self._send_again, call)
        return True

    def _send_again(self, call: Call) -> None:
        del self._refused[call]
        if not call.done():
            self.pending.add([call])
            self._submitted(call.deadline)

    # -- deadlines ------------------------------------------------------------------------------------------------------

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.loop.call_at(at, self._expire)

    def _expire(self) -> None:
        """Fail what is past its deadline; set the timer to the nearest that remains. O(calls under way), once per deadline."""
        now = self.loop.time()
        nearest = float("inf")
        silent = False
        waits_since = next((call.sent_at for call in self._in_flight), 0.0)
        self._timer = None
        self._timer_at = nearest
        for id, call in [*zip(self._in_flight.ids, self._in_flight, strict=True), *((0, call) for call in self.pending)]:
            if call.done():
                continue
            if call.deadline <= now:
                since = call.sent_at or waits_since  # it may wait behind what has no answer
                silent = silent or 0 < since >= self._heard_at  # equal: clocks of loops count whole milliseconds
                self._in_flight.pop(id)  # its place is free; an answer that still comes is ignored
                may_have = _may_have(call)
                text = f"no answer from {self._where()} within {call.timeout:g} s{'; it may have been applied' if may_have else ''}"
                call.fail(DeadlineExceededError(text, maybe_applied=may_have, call=call.name))
            elif call.deadline < nearest:
                nearest = call.deadline
        if nearest < float("inf"):
            self._set_timer(nearest)
        if self.pending:
            self._wake_writer()
        if silent and len(self.endpoints) > 1 and self._connection is not None:
            # Nothing at all was heard since that call was sent: leave this endpoint for the next one.
            self._first = (self._connection.index + 1) % len(self.endpoints)
            self._connection.stream.cancel()


def _error_of(payload: Any) -> CrdtkvError:
    try:
        return error_from_parts(*payload)
    except TypeError as e:
        return CorruptionError(f"an error of an unexpected form was answered: {e}")


def closed_error(*, maybe_applied: bool | None = None) -> StoreClosedError:
    """The error of a client that was closed."""
    return StoreClosedError("the client is closed: connect again with crdtkv.connect(…)", maybe_applied=maybe_applied)


def _ms_left(deadline: float, now: float) -> int:
    return max(0, int((deadline - now) * 1000)) + 1


def _may_have(call: Call) -> bool:
    return call.write and call.sent_at > 0
