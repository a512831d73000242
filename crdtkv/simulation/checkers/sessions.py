"""The four session guarantees, each by itself, so that a failure has the name under which users know it.

"Older" is by causal order: of two concurrent writes neither is older, and either may be shown after the other. A session may
wander from region to region; the guarantees are about it, not about the places.

    read your writes      a session never reads what is older than its own write
    monotonic reads       nor what is older than what it has read
    monotonic writes      who has read a session's later write never reads what is older than its earlier one
    writes follow reads   who has read a session's write never reads what is older than what the session had read before

Source: Terry, Demers, Petersen, Spreitzer, Theimer, Welch, "Session guarantees for weakly consistent replicated data" (PDIS 1994).
"""

from __future__ import annotations

from collections.abc import Iterator

from crdtkv.simulation.checkers.history import INITIAL, Anomaly, History, holds


def session_guarantees(history: History) -> list[Anomaly]:
    """Every breach of one of the four; each read is held against the nearest thing that forbids it."""
    found = []
    for numbers in history.sessions.values():
        for at, number in enumerate(numbers):
            for key, writer in history.reads[number].items():
                if _is_outdated(history, number, key, writer):
                    anomaly = next(_breaches(history, numbers[:at], number, key, writer), None)
                    if anomaly is not None:
                        found.append(anomaly)
    return found


def _is_outdated(history: History, number: int, key: str, writer: int) -> bool:
    """Whether anything in a transaction's causal past is newer than what it read: without that no guarantee is broken. O(writers)."""
    return any(
        other not in (writer, number) and holds(history.co, other, number) and history.precedes(writer, other)
        for other in history.writers(key)
    )


def _breaches(history: History, earlier: list[int], number: int, key: str, writer: int) -> Iterator[Anomaly]:
    def breach(name: str, newer: int, why: str) -> Anomaly:
        old = "nothing" if writer == INITIAL else f"the value of {history.say(writer)}"
        return Anomaly(name, (newer, number), f"{history.say(number)} read {old} at {key} {why}: {history.say(newer)}")

    def older(newer: int) -> bool:
        return newer != writer and newer >= 0 and key in history.writes[newer] and history.precedes(writer, newer)

    for before in reversed(earlier):
        if older(before):
            yield breach("read your writes", before, "after its own session wrote")
        if older(newer := history.reads[before].get(key, INITIAL)):
            yield breach("monotonic reads", newer, "after its own session had read")
    for known in (w for before in [*earlier, number] for w in history.reads[before].values() if w >= 0 and w != number):
        own = history.sessions[history.transactions[known].session]
        for before in own[: own.index(known) + 1]:
            if before != known and older(before):
                yield breach("monotonic writes", before, f"after having seen {history.say(known)}, which the same session wrote later than")
            if older(newer := history.reads[before].get(key, INITIAL)):
                yield breach("writes follow reads", newer, f"after having seen {history.say(known)}, whose session had read")
