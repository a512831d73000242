"""A run in a few lines: what went wrong in it, how regions got over that, what clients did, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from crdtkv.simulation.options import SCENARIOS
from crdtkv.simulation.world import Outcome

_FAULTS: Final = {
    "region_away": "a region was stopped, or cut off from all, for a while",
    "crashed": "a process or machine died",
    "cut_pair": "a link was cut",
    "cut_one_way": "a link was cut one way",
    "cut_island": "a region was cut off from all",
    "cut_bridge": "a region was cut off from all but one",
    "link_flapped": "a link came and went",
    "connection_lost": "a connection broke",
    "slow_region": "a region was slow",
    "clock_jumped_ahead": "a clock jumped ahead",
    "clock_jumped_back": "a clock jumped back",
    "log_truncated": "a log forgot its beginning",
    "commit_undone": "a write found no room on the disk",
    "disk_error": "a disk was to fail a call",
    "bit_rot": "a bit on a disk turned over",
    "put_back": "a directory was put back to an earlier state",
    "roll_back": "a log was rolled back",
    "lose_disk": "a disk was lost",
    "region_removed": "a region was removed",
    "region_added": "a region was added",
    "drain_taken_back": "a drain was taken back",
    "region_added_again": "a region was added again after it had been removed",
    "lame_region": "a region never healed",
}
_CURES: Final = {
    "replayed": "a log was replayed",
    "relayed_frames": "commits of a third region were relayed",
    "snapshot_installed": "a snapshot was installed",
    "install_finished_at_start": "an install was finished after a crash",
    "new_incarnation": "a region went on under a new id",
    "damage_found": "damage was found, and the disk replaced",
    "held": "commits waited for what they rest on",
}
_CLIENTS: Final = {
    "session_hopped": "a session went on in another region",
    "session_waited": "a session waited for a region to catch up with it",
    "retry_was_answered": "a retry was told of its first try",
    "request_tried_again": "a request was done at its second try",
    "clock_refused": "a write was refused by a clock too far off",
}


def recap(outcome: Outcome) -> list[str]:
    """The run in short, a paragraph each: who took part, what went wrong, how they got over it, what clients did, how it ended. What did
    not happen is not named."""
    bias = " ".join((SCENARIOS[outcome.scenario].__doc__ or "Everything, as the seed draws it.").split())
    who = f"{len(outcome.regions)} regions ({', '.join(outcome.regions)})"
    lines = [
        f"Who: {who}, each with its own clock, disk and clients, made {outcome.commits:,} commits, and replicated them over one "
        "network, all of it simulated. Everything that follows was drawn from the seed.",
        f"Bias, by the scenario {outcome.scenario}: {bias}",
    ]
    lines += [
        f"{title}: {text}." for title, words in (("Faults", _FAULTS), ("Repairs", _CURES), ("Clients", _CLIENTS))
        if (text := ", ".join(_counted(words, outcome.rare)))
    ]  # fmt: skip
    if outcome.violations:
        return lines
    if outcome.rare.get("stopped_in_the_middle"):
        return [*lines, "End: in the middle of the faults (safety mode); after every step of every region all invariants held."]
    everybody = "all members" if outcome.rare.get("region_removed") else "all regions"
    who = "the healthy regions" if outcome.rare.get("lame_region") else everybody
    return [
        *lines,
        f"End: the faults stopped, and {who} became equal by themselves. Nothing is missing that a client was told was done, every write "
        "that lost against a concurrent one is in the journal, and after every step of every region all invariants held.",
    ]


def _counted(words: Mapping[str, str], rare: Mapping[str, int]) -> Iterable[str]:
    for name, text in words.items():
        if count := rare.get(name, 0):
            yield text if count == 1 else f"{text} ({'twice' if count == 2 else f'{count:,} times'})"
