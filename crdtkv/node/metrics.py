"""A node's metrics for Prometheus: what there is to see, and the collector that looks.

Nothing is counted for the sake of metrics on the way of a request: a scrape takes one moment of the store and of replication, in a turn
of the writer as `crdtkv status` does, and makes text of it in a thread of its own. What is unknown is NaN, or absent, and never zero: of a
peer that is not connected, everything but that.

How many series there are is bounded: labels are regions (at most `REGIONS_MAX` of them), codes of errors, rules of conflicts and kinds of
events; never keys, clients, addresses or incarnations.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from crdtkv.core.causality import generation_of, region_of
from crdtkv.core.journal import (
    RULE_ADD_WINS,
    RULE_ELEMENT,
    RULE_INCREMENT_SURVIVES,
    RULE_LWW,
    RULE_REPAIR,
    RULE_WRITE_SURVIVES,
)
from crdtkv.errors import CrdtkvError
from crdtkv.node.loop_stops import LoopStops
from crdtkv.replication import PeerStatistics
from crdtkv.replication.membership import Standing
from crdtkv.results import PeerLag
from crdtkv.storage.durations import BOUNDS_S, Durations
from crdtkv.storage.files import space_of
from crdtkv.store.statistics import StoreStatistics, spent_runs, statistics
from crdtkv.version import VERSION

if TYPE_CHECKING:
    from crdtkv.node.kv import KeyValueService
    from crdtkv.node.peers import Peers
    from crdtkv.node.worker import StorageWorker
    from crdtkv.store.store import Store

REGIONS_MAX: Final = 64
"""Regions that a metric names, in the order of their names; of more than so many the rest is left out."""
BUSY_S: Final = 2.0
"""How long a scrape waits for its turn with the store. While a snapshot is installed there is none: then the rest is told without it."""
RUNS_EVERY_S: Final = 60.0
RUNS_MAX: Final = 100_000
"""Spent counter runs are counted so often at most, and up to so many."""
_RULES: Final = {
    RULE_LWW: "lww",
    RULE_ADD_WINS: "add_wins",
    RULE_WRITE_SURVIVES: "write_survives",
    RULE_INCREMENT_SURVIVES: "increment_survives",
    RULE_ELEMENT: "element_expiry",
}
NAN: Final = float("nan")


class Described(NamedTuple):
    """One metric: its row in docs/metrics.md, and the help that a scrape shows. The name is without the suffix `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The name of its series."""
        return f"{self.name}_{'total' if self.kind == 'counter' else 'info'}" if self.kind in ("counter", "info") else self.name


METRICS: Final[Mapping[str, tuple[Described, ...]]] = {
    "Node": (
        Described("crdtkv", "info", "What this node is", ("region", "cluster", "engine", "durability", "version")),
        Described("crdtkv_ready", "gauge", "1: takes requests; 0: is opening its store, or shutting down"),
        Described("crdtkv_complete", "gauge", "0: the store was busy or is not open: what it knows is left out"),
        Described("crdtkv_uptime_seconds", "gauge", "Since the node started"),
        Described("crdtkv_read_only", "gauge", "1: takes no writes: the disk is full, or the region is drained or removed"),
        Described("crdtkv_warnings", "gauge", "Warnings that `crdtkv status` shows at present"),
        Described("crdtkv_event_loop_stop_max_seconds", "gauge", "Longest stop of the event loop in the last minute or two"),
    ),
    "Requests": (
        Described("crdtkv_requests", "counter", "Requests answered"),
        Described("crdtkv_reads", "counter", "Requests answered that made no commit and did not fail"),
        Described("crdtkv_writes", "counter", "Commits of this region, however made; goes on after a restart"),
        Described("crdtkv_request_errors", "counter", "Requests that failed, by the error's name", ("code",)),
        Described("crdtkv_requests_waiting", "gauge", "Requests accepted and not yet answered"),
        Described("crdtkv_sessions", "gauge", "Client sessions open"),
        Described("crdtkv_streams", "gauge", "Scans and watches open"),
        Described("crdtkv_watchers", "gauge", "Watchers that follow the store"),
        Described("crdtkv_watchers_cut", "counter", "Watchers that were cut off because they were too slow"),
    ),
    "Replication, by peer": (
        Described("crdtkv_peer_connected", "gauge", "1: the link is up", ("peer",)),
        Described("crdtkv_peer_lag_seconds", "gauge", "How old the peer's newest commit that is not here may be", ("peer",)),
        Described("crdtkv_peer_behind_commits", "gauge", "Commits that the peer announced and are not applied here", ("peer",)),
        Described("crdtkv_peer_ahead_commits", "gauge", "Own commits that the peer has not applied", ("peer",)),
        Described("crdtkv_peer_ahead_bytes", "gauge", "The same in bytes", ("peer",)),
        Described("crdtkv_peer_ahead_seconds", "gauge", "Since when the oldest of them could have left", ("peer",)),
        Described("crdtkv_peer_unsynced_commits", "gauge", "Own commits that the peer has not fsynced", ("peer",)),
        Described("crdtkv_peer_round_trip_seconds", "gauge", "Measured by heartbeats", ("peer",)),
        Described("crdtkv_peer_clock_offset_seconds", "gauge", "The peer's wall clock minus this one's", ("peer",)),
        Described("crdtkv_peer_silence_seconds", "gauge", "Since anything was heard of the peer", ("peer",)),
        Described("crdtkv_peer_in_flight_messages", "gauge", "Messages of frames sent and not yet acknowledged", ("peer",)),
        Described("crdtkv_peer_waiting_frames", "gauge", "Frames received from the peer that are not part of the state yet", ("peer",)),
        Described("crdtkv_peer_sent_bytes", "counter", "Bytes of all messages sent over the present link, before compression", ("peer",)),
        Described("crdtkv_peer_sent_wire_bytes", "counter", "Bytes sent over the present link, compressed or not", ("peer",)),
        Described("crdtkv_peer_received_bytes", "counter", "Bytes of all messages received over the present link, unpacked", ("peer",)),
        Described("crdtkv_peer_received_wire_bytes", "counter", "Bytes received over the present link, compressed or not", ("peer",)),
        Described("crdtkv_peer_relaying", "gauge", "1: the peer relays what other regions wrote", ("peer",)),
        Described("crdtkv_peer_needs_snapshot", "gauge", "1: one of the two lacks what the other's log no longer has", ("peer",)),
        Described("crdtkv_replication_events", "counter", "What happened to links, relays and snapshots", ("kind",)),
    ),
    "What is applied": (
        Described("crdtkv_applied_commits", "counter", "Commits applied here since the cluster began", ("region",)),
        Described("crdtkv_state_digest", "gauge", "48 bits of the state's digest; absent while it is not at hand"),
        Described("crdtkv_held_frames", "gauge", "Frames received that wait for what they rest on"),
        Described("crdtkv_held_bytes", "gauge", "The same in bytes"),
        Described("crdtkv_incarnation", "gauge", "This replica's generation: it rises when commits were lost"),
        Described("crdtkv_incarnations", "gauge", "Incarnations whose commits are here, ended ones among them", ("region",)),
        Described("crdtkv_open_origins", "gauge", "Incarnations that vectors and tokens name; normally one of each region"),
        Described("crdtkv_member", "gauge", "1: the region's standing is this", ("region", "state")),
    ),
    "Conflicts": (
        Described("crdtkv_conflicts", "counter", "Conflicts recorded in the journal, by the rule that decided", ("rule",)),
        Described("crdtkv_conflict_journal_records", "gauge", "Conflicts that the journal keeps"),
        Described("crdtkv_conflict_journal_bytes", "gauge", "The same in bytes"),
        Described("crdtkv_conflict_journal_trimmed", "counter", "Conflicts that the journal no longer has"),
        Described("crdtkv_removals_evicted", "counter", "Removals forgotten for want of room: conflicts with them are told elsewhere only"),
    ),
    "Log": (
        Described("crdtkv_log_bytes", "gauge", "Size of the commit log"),
        Described("crdtkv_log_segments", "gauge", "Its files"),
        Described("crdtkv_log_frames", "counter", "Frames ever appended"),
        Described("crdtkv_log_frames_kept", "gauge", "Frames that the log still has"),
        Described("crdtkv_log_unsynced_frames", "gauge", "Frames that are not fsynced"),
        Described("crdtkv_log_floor_commits", "counter", "From after so many commits of the region on the log has them all", ("region",)),
        Described("crdtkv_log_kept_for", "gauge", "1: the log is kept beyond age and size until this region has it", ("region",)),
        Described("crdtkv_log_fsync_seconds", "histogram", "How long an fsync of the log took"),
    ),
    "State engine and disk": (
        Described("crdtkv_engine_bytes", "gauge", "Size of the state engine"),
        Described("crdtkv_overlay_records", "gauge", "Changed records that wait in memory for the engine"),
        Described("crdtkv_overlay_bytes", "gauge", "Frames that nobody has begun to write to the engine"),
        Described("crdtkv_fold_step_seconds", "histogram", "How long a step of writing the engine took"),
        Described("crdtkv_disk_full", "gauge", "1: no writes and nothing of peers is taken for want of room"),
        Described("crdtkv_disk_free_bytes", "gauge", "Room on the disk of the data directory"),
        Described("crdtkv_removals", "gauge", "Slots in the index of removals"),
        Described("crdtkv_request_ids", "gauge", "Request ids remembered, by which a retry is recognised"),
        Described("crdtkv_spent_counter_runs", "gauge", "Counter runs that were reset and are kept; counted once a minute"),
        Described("crdtkv_clears", "gauge", "Cleared collections whose elements are still being removed"),
    ),
    "Snapshots": (
        Described("crdtkv_snapshots_begun", "counter", "Snapshots taken for other regions"),
        Described("crdtkv_snapshots_given", "counter", "Of those, such as arrived whole"),
        Described("crdtkv_snapshots_held", "gauge", "Snapshots held for others at present; they keep log and engine from shrinking"),
        Described("crdtkv_snapshot_sent_bytes", "counter", "Bytes of chunks sent"),
        Described("crdtkv_installing", "gauge", "1: a snapshot is being installed; requests wait"),
        Described("crdtkv_snapshots_installed", "counter", "Snapshots of other regions installed here"),
        Described("crdtkv_snapshots_given_up", "counter", "Transfers to here that ended without an install"),
        Described("crdtkv_snapshot_received_bytes", "counter", "Bytes of chunks received"),
        Described("crdtkv_snapshot_staged_chunks", "gauge", "Chunks that are staged of the snapshot on its way here"),
        Described("crdtkv_snapshot_staged_slots", "gauge", "Slots in them"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """What one scrape sees; what is None could not be looked at."""

    store: StoreStatistics
    peers: Sequence[tuple[PeerLag, PeerStatistics | None]]
    standings: Sequence[Standing]
    events: Mapping[str, int]
    snapshots: Mapping[str, int]
    warnings: int


class NodeCollector:
    """A custom collector of `prometheus_client`: see the module's docstring. `collect` may be called in any thread but the loop's.

    Args:
        loop: the node's, which must run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, kv: KeyValueService, peers: Peers) -> None:
        self._loop = loop
        self._kv = kv
        self._peers = peers
        self._store: Store | None = None
        self._worker: StorageWorker | None = None
        self._stops = LoopStops(loop)
        self._began = time.monotonic()
        self._runs = NAN
        self._runs_at = float("-inf")

    def open(self, store: Store, worker: StorageWorker) -> None:
        """The store is open."""
        self._store, self._worker = store, worker

    def close(self) -> None:
        """The store is about to be closed. In the loop."""
        self._store = None
        self._stops.close()

    def collect(self) -> Iterator[Metric]:
        """All metrics, each with the values that are known."""
        found = dict(self._values())
        for described in itertools.chain.from_iterable(METRICS.values()):
            yield _family(described, found.get(described.name, ()))

    # -- looking --------------------------------------------------------------------------------------------------

    def _look(self) -> Moment | None:
        """One moment of store and replication, or None if the store has no time for it."""
        store, worker = self._store, self._worker
        if store is None or worker is None:
            return None

        def look() -> Moment | None:
            if worker.occupied:
                return None
            peers = self._peers
            transfers = peers.transfers
            snapshots = {} if transfers is None else {name: getattr(transfers, name) for name in _TRANSFERS.values()}
            found = statistics(store)
            warnings = len(store.warnings) + len(peers.alarms)
            return Moment(found, peers.lag_now(), [s for s, _ in peers.standings()], peers.events, snapshots, warnings)

        asked = asyncio.run_coroutine_threadsafe(worker.run(look), self._loop)
        try:
            return asked.result(BUSY_S)
        except (TimeoutError, concurrent.futures.CancelledError, CrdtkvError, RuntimeError):
            asked.cancel()
            return None

    def _spent_runs(self, store: Store) -> float:
        """The count of the last minute: it takes a scan."""
        if time.monotonic() >= self._runs_at + RUNS_EVERY_S:
            self._runs_at = time.monotonic()
            self._runs = float(spent_runs(store, RUNS_MAX))
        return self._runs

    def _values(self) -> Iterator[tuple[str, Iterable[tuple[Sequence[str], Any]]]]:
        """Name → label values and what they stand for."""
        store, worker, kv = self._store, self._worker, self._kv
        moment = self._look()
        one: dict[str, Any] = {
            "crdtkv_ready": kv.ready,
            "crdtkv_complete": moment is not None,
            "crdtkv_uptime_seconds": time.monotonic() - self._began,
            "crdtkv_event_loop_stop_max_seconds": self._stops.longest_s(),
            "crdtkv_sessions": kv.sessions,
            "crdtkv_streams": kv.streams,
        }
        if worker is not None:
            one["crdtkv_installing"] = bool(worker.occupied)
            one |= {"crdtkv_requests": worker.answered, "crdtkv_reads": worker.reads, "crdtkv_requests_waiting": worker.queued}
            yield "crdtkv_request_errors", _labelled(Counter(worker.errors) + Counter(worker.refused) + Counter(kv.errors))
        if store is not None:
            yield "crdtkv", [((store.region, store.cluster, store.engine_name, store.durability, VERSION), 1)]
            if store.path is not None:
                with contextlib.suppress(OSError):  # unknown
                    one["crdtkv_disk_free_bytes"] = space_of(store.path)[0]
        if moment is not None and store is not None:
            with contextlib.suppress(CrdtkvError):  # the store is being closed
                one["crdtkv_spent_counter_runs"] = self._spent_runs(store)
            one |= _of_store(moment)
            yield from _of_store_by_region(moment)
            yield from _of_peers(moment.peers, moment.store.own_seq)
            yield "crdtkv_replication_events", _labelled(moment.events)
        for name, value in one.items():
            yield name, [((), value)]


_TRANSFERS: Final = {
    "crdtkv_snapshots_begun": "begun",
    "crdtkv_snapshots_given": "given",
    "crdtkv_snapshots_held": "holds",
    "crdtkv_snapshot_sent_bytes": "sent_bytes",
    "crdtkv_snapshots_installed": "installs",
    "crdtkv_snapshots_given_up": "given_up",
    "crdtkv_snapshot_received_bytes": "received_bytes",
}


def _of_store(moment: Moment) -> dict[str, Any]:
    """What has no labels."""
    store = moment.store
    found = {
        "crdtkv_read_only": store.refuses,
        "crdtkv_warnings": moment.warnings,
        "crdtkv_writes": store.by_region(store.applied).get(region_of(store.origin), 0),
        "crdtkv_watchers": store.watchers,
        "crdtkv_watchers_cut": store.watchers_cut,
        "crdtkv_held_frames": store.held_frames,
        "crdtkv_held_bytes": store.held_bytes,
        "crdtkv_incarnation": generation_of(store.origin),
        "crdtkv_open_origins": store.open_origins,
        "crdtkv_conflict_journal_records": store.journal_records,
        "crdtkv_conflict_journal_bytes": store.journal_bytes,
        "crdtkv_conflict_journal_trimmed": store.journal_trimmed,
        "crdtkv_log_bytes": store.log_bytes,
        "crdtkv_log_segments": store.log_segments,
        "crdtkv_log_frames": store.log_end,
        "crdtkv_log_frames_kept": store.log_end - store.log_start,
        "crdtkv_log_unsynced_frames": store.log_end - store.log_synced,
        "crdtkv_engine_bytes": store.engine_bytes,
        "crdtkv_overlay_records": store.overlay_records,
        "crdtkv_overlay_bytes": store.overlay_bytes,
        "crdtkv_fold_step_seconds": store.fold_steps,
        "crdtkv_disk_full": store.full,
        "crdtkv_removals": store.removals,
        "crdtkv_removals_evicted": store.removals_evicted,
        "crdtkv_request_ids": store.requests,
        "crdtkv_clears": store.clears,
        "crdtkv_snapshot_staged_chunks": store.staged_chunks,
        "crdtkv_snapshot_staged_slots": store.staged_slots,
    }
    if store.digest is not None:
        found["crdtkv_state_digest"] = store.digest >> 80  # a float holds so much exactly
    if store.fsyncs is not None:
        found["crdtkv_log_fsync_seconds"] = store.fsyncs
    return found | {name: moment.snapshots[attribute] for name, attribute in _TRANSFERS.items() if attribute in moment.snapshots}


def _of_store_by_region(moment: Moment) -> Iterator[tuple[str, Iterable[tuple[Sequence[str], Any]]]]:
    store = moment.store
    applied = store.by_region(store.applied)
    yield "crdtkv_applied_commits", _labelled(applied)
    yield "crdtkv_log_floor_commits", _labelled(dict.fromkeys(applied, 0) | store.by_region(store.floor))
    yield "crdtkv_incarnations", _labelled(Counter(region_of(origin) for origin in store.applied))
    yield "crdtkv_log_kept_for", _labelled(store.kept_for)
    rules: Counter[str] = Counter()
    for rule, count in store.conflicts.items():
        rules["repair" if rule.startswith(RULE_REPAIR) else _RULES.get(rule, "other")] += count
    yield "crdtkv_conflicts", _labelled(rules)
    yield "crdtkv_member", [((s.region, s.state), 1) for s in sorted(moment.standings, key=lambda s: s.region)[:REGIONS_MAX]]


def _of_peers(
    peers: Sequence[tuple[PeerLag, PeerStatistics | None]], own_seq: int
) -> Iterator[tuple[str, Iterable[tuple[Sequence[str], Any]]]]:
    found: dict[str, list[tuple[Sequence[str], Any]]] = {}
    for lag, row in peers[:REGIONS_MAX]:
        connected = lag.connected and row is not None
        values: dict[str, Any] = {
            "connected": connected,
            "lag_seconds": _seconds(lag.lag_ms),
            "behind_commits": lag.commits_behind,
            "ahead_commits": lag.commits_ahead,
            "ahead_bytes": lag.bytes_ahead,
            "ahead_seconds": _seconds(row.behind_ms) if row is not None else None,
            "unsynced_commits": max(0, own_seq - row.durable_seq) if row is not None and row.durable_seq is not None else None,
            "round_trip_seconds": _seconds(lag.rtt_ms),
            "clock_offset_seconds": _seconds(lag.clock_offset_ms),
            "silence_seconds": _seconds(lag.last_heard_ms),
        }
        if row is not None and connected:
            values |= {
                "in_flight_messages": row.in_flight_messages,
                "waiting_frames": row.waiting_frames,
                "sent_bytes": row.sent_bytes,
                "sent_wire_bytes": row.sent_wire_bytes,
                "received_bytes": row.received_bytes,
                "received_wire_bytes": row.received_wire_bytes,
                "relaying": lag.state == "relaying",
                "needs_snapshot": row.needs_snapshot or row.below_floor,
            }
        for name, value in values.items():
            unknown = value is None or not (connected or name == "connected")
            found.setdefault(f"crdtkv_peer_{name}", []).append(((lag.region,), NAN if unknown else value))
    yield from found.items()


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _labelled(values: Mapping[str, Any]) -> list[tuple[Sequence[str], Any]]:
    return [((label,), value) for label, value in sorted(values.items())[:REGIONS_MAX]]


def _family(described: Described, values: Iterable[tuple[Sequence[str], Any]]) -> Metric:
    name, text, labels = described.name, described.help, described.labels
    match described.kind:
        case "gauge":
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for label_values, value in values:
                gauge.add_metric(label_values, float(value))
            return gauge
        case "counter":
            counter = CounterMetricFamily(name, text, labels=labels)
            for label_values, value in values:
                counter.add_metric(label_values, float(value))
            return counter
        case "info":
            info = InfoMetricFamily(name, text)
            for label_values, _ in values:
                info.add_metric((), dict(zip(labels, label_values, strict=True)))
            return info
        case "histogram":
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for label_values, value in values:
                _add_durations(histogram, label_values, value)
            return histogram


def _add_durations(histogram: HistogramMetricFamily, labels: Sequence[str], durations: Durations) -> None:
    counts = list(itertools.accumulate(durations.counts))
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    histogram.add_metric(labels, list(zip(bounds, map(float, counts), strict=True)), durations.total_s)


def table() -> str:
    """The tables of docs/metrics.md, a section each: `python -c "from crdtkv.node.metrics import table; print(table())"` writes them."""
    lines: list[str] = []
    for section, rows in METRICS.items():
        lines += [f"### {section}", "", "| metric | kind | labels | what it says |", "|---|---|---|---|"]
        for row in rows:
            labels = ", ".join(f"`{label}`" for label in row.labels)
            lines.append(f"| `{row.shown}` | {row.kind} | {labels} | {row.help} |")
        lines.append("")
    return "\n".join(lines)
