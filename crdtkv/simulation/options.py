"""What may vary between two runs: everything here is drawn from the seed, within what a scenario prescribes.

Limits are tiny on purpose: a bound that is never reached is not tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from crdtkv.core.settings import CoreSettings
from crdtkv.replication.settings import ReplicationSettings
from crdtkv.simulation.dice import Dice

REGIONS: Final = ("ap", "br", "ca", "eu", "us", "au", "in", "jp", "za")
"""In this order: a run of n regions has the first n."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyReplicationSettings(ReplicationSettings):
    """Replication with limits below what frames of full size would need; those of a simulation are small."""

    def validate(self) -> ReplicationSettings:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run. Rates are per virtual second and replica, times are virtual.

    Attributes:
        regions: how many replicas.
        transactions: how many the clients ask for, over `busy_s`; then everything heals, and `quiet_s` is the bound on convergence.
        sync: durability `sync`: nothing leaves or is acknowledged before it is fsynced; power losses happen. Else a crash
            loses nothing that was appended, as a killed process does not.
        hop: how often a client's session goes on in another region.
        skew_ms: how far wall clocks are off; `jumps` says how often one is set, `grain_ms` how coarse they are.
        delay_ms: one-way delay of a link; each message adds up to `jitter` times as much.
        cuts, resets, crashes, truncations, folds, fulls: rates of faults.
        beyond: logs are truncated whoever lacks what goes, so that only snapshots help.
        late: the last region comes empty while the others write.
        install_crashes: how often each step of an install is the last of its process.
        losses: rate at which a directory is put back from a copy, lost, or its log rolled back, and in half of all crashes the power
            fails, at whatever durability: own commits are then lost, and new incarnations due. Without truncations.
        bridge: when everything heals, two regions stay cut off from each other, and must converge through a third.
        lives: how often a replica that crashed goes on as another incarnation.
        removals: how many regions are removed while the others write: by force (it goes on, unheard), or after it was drained.
        additions: how many regions are added.
        regrets: operators change their minds: a drain is taken back, and perhaps begun again; a region removed by force is added again
            while its process goes on; and two of them record one region at once.
        beside: what is set aside for the state engine is written in steps, while the machine goes on, as a store's thread does it.
        weights: how often clients do what. elements: how many elements a set may hold.
        filed: logs are real ones on disks in memory, whose unsynced writes are torn and reordered when the power fails.
        errors, rots: rates at which such a disk fails a call (EIO), and at which a bit that was synced turns over.
        slows, flaps: rates at which a region is slow for a while, and a link comes and goes.
        absences: how many times a region is away while the others write, and drop from their logs what it lacks.
        stops: a region that is away may be stopped.
        safety: the run ends while everything fails, instead of after it has healed.
        core_min: this many regions are healthy in the end; others may stay stopped, cut off or full. 0: all are.
    """

    regions: int
    transactions: int = 40
    busy_s: float = 1.5
    quiet_s: float = 30.0
    sync: bool = True
    keys: int = 3
    hop: float = 0.5
    skew_ms: int = 300
    drift: float = 0.0
    grain_ms: int = 1
    jumps: float = 0.0
    delay_ms: float = 10.0
    jitter: float = 1.0
    disk_ms: float = 2.0
    cuts: float = 0.4
    resets: float = 0.3
    crashes: float = 0.15
    truncations: float = 0.0
    losses: float = 0.0
    fulls: float = 0.0
    beyond: bool = False
    late: bool = False
    install_crashes: float = 0.0
    bridge: bool = False
    lives: float = 0.0
    removals: int = 0
    additions: int = 0
    regrets: bool = False
    folds: float = 1.0
    fold_records_max: int = 64
    beside: bool = False
    both_dial: bool = False
    filed: bool = False
    errors: float = 0.0
    rots: float = 0.0
    slows: float = 0.0
    flaps: float = 0.0
    absences: int = 0
    stops: bool = True
    safety: bool = False
    core_min: int = 0
    elements: int = 4
    weights: dict[str, float] = field(default_factory=dict)
    core: CoreSettings = field(default_factory=CoreSettings)
    replication: ReplicationSettings = field(default_factory=TinyReplicationSettings)


def draw(dice: Dice, scenario: str = "mixed") -> Options:
    """The options of one run."""
    core = CoreSettings(
        max_skew_ms=dice.pick((0, 200, 60_000)),
        clock_refuse_ms=dice.pick((2_000, 600_000)),
        held_frames_max=dice.pick((0, 1, 4, 4096)),
        journal_records_max=dice.pick((3, 100_000, 100_000)),
        clear_at_once_max=dice.pick((0, 2, 1000)),
        requests_max=dice.pick((2, 100_000)),
        expiry_grace_ms=dice.pick((50, 1_000)),
    )
    credit = dice.pick((8 << 10, 1 << 20))
    heartbeat_ms, message_bytes_max = dice.pick((250, 700)), dice.pick((200, 2_000, 1 << 20))
    replication = TinyReplicationSettings(
        heartbeat_ms=heartbeat_ms,
        hello_timeout_ms=500,
        message_bytes_max=message_bytes_max,
        flight_bytes_max=message_bytes_max,
        message_frames_max=dice.pick((1, 3, 4096)),
        own_credit_bytes=credit,
        relay_credit_bytes=credit,
        read_bytes_max=dice.pick((500, 1 << 20)),
        tail_bytes_max=dice.pick((300, 1 << 20)),
        apply_bytes_max=dice.pick((300, 1 << 20)),
        relay_delay_ms=dice.pick((5, 40)),
        relay_linger_ms=dice.pick((100, 1_000)),
        resubscribe_ms=50,
        stalled_ms=1_000,
        starved_ms=3_000,
        backoff_min_ms=20,
        backoff_max_ms=100,
        backoff_refused_ms=100,
        snapshot_chunk_bytes=dice.pick((100, 1_000, 64 << 10)),
        snapshot_window=dice.pick((1, 4)),
        snapshot_hold_ms=1_500,
        compression="on",  # but for some members, see `member`
        compression_bytes_min=100,
    )
    filed = dice.chance(0.3)
    options = Options(
        regions=dice.weighted(((2, 1), (3, 5), (4, 2), (5, 1))),
        transactions=dice.pick((8, 16, 32)),
        sync=dice.chance(0.6),
        keys=dice.pick((1, 3, 6)),
        hop=dice.pick((0.1, 0.9)),
        skew_ms=dice.pick((0, 0, 300, 5_000)),
        drift=dice.pick((0.0, 0.02)),
        grain_ms=dice.pick((1, 50, 500)),
        jumps=dice.pick((0.0, 0.0, 0.3)),
        delay_ms=dice.pick((0.2, 2.0, 20.0)),
        jitter=dice.pick((0.1, 2.0)),
        disk_ms=dice.pick((0.5, 30.0)),
        cuts=dice.pick((0.0, 0.4, 1.0)),
        resets=dice.pick((0.0, 0.5)),
        crashes=dice.pick((0.0, 0.3)),
        truncations=dice.pick((0.0, 2.0)),
        folds=dice.pick((0.2, 5.0)),
        fold_records_max=dice.pick((1, 8, 64, 4096)),
        both_dial=dice.chance(0.3),
        filed=filed,
        errors=dice.pick((0.0, 0.3)) if filed else 0.0,
        slows=dice.pick((0.0, 0.0, 0.3)),
        flaps=dice.pick((0.0, 0.0, 0.3)),
        absences=dice.pick((4, 6, 8)),
        late=dice.chance(0.5),
        safety=dice.chance(0.1),
        core_min=2 if dice.chance(0.25) else 0,
        core=core,
        replication=replication,
    )
    options = SCENARIOS[scenario](options)
    # How long one waits for an answer fits the links: else nothing but asking again would be seen on slow ones. So does a snapshot's
    # life: of a big set in the smallest chunks, none ended in time (seed 2030995, clears).
    far_ms = int(options.delay_ms * (1 + options.jitter))
    waits = replace(
        options.replication, relay_timeout_ms=80 + 4 * far_ms, relay_retry_ms=100 + 4 * far_ms, snapshot_timeout_ms=200 + 6 * far_ms,
        snapshot_life_ms=10_000 + 200 * far_ms,
    )  # fmt: skip
    return replace(options, replication=waits)


def _mixed(options: Options) -> Options:
    return options


def _ties(options: Options) -> Options:
    """Equal stamps and three siblings: coarse clocks that agree, one hot key, far apart."""
    core = replace(options.core, max_skew_ms=0)
    return replace(
        options, regions=max(3, options.regions), core=core, skew_ms=0, drift=0.0, jumps=0.0, grain_ms=1_000, delay_ms=20.0, keys=1,
        weights={"put": 6, "add": 3, "hput": 3, "delete": 1},
    )  # fmt: skip


def _counters(options: Options) -> Options:
    """Resets against increments."""
    return replace(options, weights={"increment": 5, "reset": 2, "delete": 0.5}, keys=1, transactions=40)


def _clears(options: Options) -> Options:
    """Clears in slices while others add."""
    core = replace(options.core, clear_at_once_max=0)
    weights: dict[str, float] = {"add": 8, "hput": 4, "clear": 3, "remove": 1, "delete": 1}
    if options.jitter > 1:  # big sets
        return replace(options, core=core, weights={**weights, "fill": 4}, keys=1, elements=300)
    return replace(options, core=core, weights=weights, keys=1, transactions=40)


def _relay(options: Options) -> Options:
    """Long cuts between some, so that third replicas must relay; logs that forget."""
    return replace(options, regions=max(3, options.regions), cuts=2.0, truncations=4.0, hop=0.9)


def _bridge(options: Options) -> Options:
    """Two regions that never see each other again."""
    return replace(options, regions=max(3, options.regions), bridge=True, cuts=1.0, hop=0.9, core_min=0)


def _crashes(options: Options) -> Options:
    """Crashes everywhere between append, sync and fold."""
    return replace(options, crashes=1.5, disk_ms=30.0, folds=1.0, beside=True, fold_records_max=min(8, options.fold_records_max))


def _expiry(options: Options) -> Options:
    """Everything expires, is refreshed, and is removed by whoever comes first."""
    core = replace(options.core, expiry_grace_ms=20)
    return replace(options, core=core, weights={"put": 4, "add": 4, "hput": 4, "remove": 1}, keys=1, jumps=0.5, cuts=1.0)


def _holding(options: Options) -> Options:
    """No room for frames that wait, and little for what is on its way."""
    core = replace(options.core, held_frames_max=1)
    replication = replace(options.replication, message_frames_max=1, own_credit_bytes=8 << 10, relay_credit_bytes=8 << 10)
    return replace(options, regions=max(3, options.regions), core=core, replication=replication, jitter=5.0, hop=0.9, cuts=0.5, absences=8)


def _full(options: Options) -> Options:
    """Disks that fill up and are freed again, while everybody writes, and now and then die meanwhile."""
    return replace(options, fulls=2.5, crashes=0.5, truncations=2.0, hop=0.9, transactions=40)


def _members(options: Options) -> Options:
    """Regions that end, go, return and come, while everybody writes."""
    regions, additions = max(3, min(4, options.regions)), int(options.jitter < 1)
    return replace(
        options, regions=regions, crashes=0.8, lives=0.5, removals=1, additions=additions, hop=0.9, truncations=0.0, absences=4, late=False,
        core_min=0, safety=False,
    )  # fmt: skip


def _regrets(options: Options) -> Options:
    """Operators who change their minds, and do things twice, about regions that come and go while disks are full, or lost."""
    loses = options.jitter > 1
    return replace(
        options, regions=max(3, options.regions), crashes=0.5, fulls=options.keys / 6, lives=0.2, removals=2, additions=1, regrets=True,
        hop=0.9, absences=2, late=False, core_min=0, safety=False, filed=False, errors=0.0,
        losses=0.4 * loses, truncations=2.0 * loses, beyond=loses,
    )  # fmt: skip


def _snapshot(options: Options) -> Options:
    """Logs that forget what others lack, a region that comes late, crashes within installs: what no log gives, snapshots must."""
    replication = replace(options.replication, tail_bytes_max=300, snapshot_chunk_bytes=100, snapshot_window=1 + options.keys)
    return replace(
        options, regions=max(3, options.regions), replication=replication, beyond=True, late=options.grain_ms > 1, install_crashes=0.1,
        cuts=1.0, truncations=6.0, hop=0.9, transactions=25, absences=8, beside=True,
    )  # fmt: skip


def _churn(options: Options) -> Options:
    """Regions added, drained and removed while logs forget what others lack, installs are cut short, and directories are put back."""
    replication = replace(options.replication, tail_bytes_max=300, snapshot_chunk_bytes=100, snapshot_window=1 + options.keys)
    return replace(
        options, regions=max(3, min(4, options.regions)), replication=replication, removals=1, additions=1, losses=0.4, crashes=0.5,
        beyond=True, truncations=4.0, install_crashes=0.1, beside=True, hop=0.9, transactions=32, absences=4, late=options.grain_ms > 1,
        filed=False, errors=0.0, core_min=0, safety=False,
    )  # fmt: skip


def _losses(options: Options) -> Options:
    """Disks that are put back, lost or rolled back, and power that fails: replicas that must not go on under their old ids."""
    return replace(
        options, regions=max(3, options.regions), losses=1.2, crashes=0.7, truncations=0.0, sync=options.sync and options.delay_ms > 1,
        hop=0.9, transactions=40, absences=2, late=False, core_min=0, filed=False, errors=0.0,
    )  # fmt: skip


def _disks(options: Options) -> Options:
    """Real logs on disks that tear and reorder what was not synced, refuse calls, run full, and forget bits of what was synced."""
    return replace(
        options, regions=max(3, options.regions), filed=True, errors=0.6, rots=0.3, fulls=0.6, crashes=0.8, disk_ms=30.0, truncations=2.0,
        hop=0.9, transactions=32, core_min=0, absences=8,
    )  # fmt: skip


def _removals(options: Options) -> Options:
    """Removals that cross writes and other removals, and bookkeeping of them that is forgotten as soon as it may be."""
    core = replace(options.core, journal_records_max=100_000, clear_at_once_max=1000)
    return replace(
        options, regions=max(3, options.regions), core=core, keys=1, elements=2, transactions=48, hop=0.9, jitter=5.0, cuts=0.4,
        crashes=0.0, truncations=4.0, absences=0, late=False, safety=False, core_min=0, filed=False, errors=0.0,
        weights={"put": 2, "add": 2, "hput": 2, "increment": 2, "delete": 3, "remove": 3, "reset": 1, "clear": 1},
    )  # fmt: skip


def _crowd(options: Options) -> Options:
    """Six to nine regions, hopping clients, cuts that leave islands and bridges."""
    regions = min(len(REGIONS), options.regions + 4)
    return replace(options, regions=regions, transactions=20, cuts=1.0, hop=0.9, truncations=2.0)


SCENARIOS: Final = {
    "members": _members,
    "mixed": _mixed,
    "crowd": _crowd,
    "ties": _ties,
    "counters": _counters,
    "clears": _clears,
    "relay": _relay,
    "bridge": _bridge,
    "crashes": _crashes,
    "expiry": _expiry,
    "holding": _holding,
    "full": _full,
    "snapshot": _snapshot,
    "removals": _removals,
    "losses": _losses,
    "churn": _churn,
    "disks": _disks,
    "regrets": _regrets,
}
"""What each scenario is biased to; the seed draws the rest."""
