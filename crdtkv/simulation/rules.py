"""What each violation means: from the message of a check to the invariant of the design that broke, in words.

Messages name places, dots and vectors, which differ from seed to seed; the rule stays the same while a failing case is shrunk.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Final, NamedTuple


class Violation(AssertionError):
    """An invariant does not hold."""


def must(holds: bool, text: str) -> None:
    """Raise a `Violation` unless something holds. Where a step's checks are many, the message is made only if it is needed: by `raise`."""
    if not holds:
        raise Violation(text)


def raised_text(error: Exception) -> str:
    """The violation that an exception is: what it says, and the line of crdtkv that raised it, or called what did."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(_PACKAGE))]
    place = (ours or frames)[-1]
    file = Path(place.filename).relative_to(_PACKAGE.parent).as_posix() if ours else Path(place.filename).name
    return f"{type(error).__name__}: {error}, raised at {file}:{place.lineno} in {place.name}"


class Rule(NamedTuple):
    """An invariant: its number in the design (None: it is about the run itself), and what it says."""

    number: int | None
    text: str

    def __str__(self) -> str:
        return self.text if self.number is None else f"invariant {self.number}: {self.text}"


_PACKAGE: Final = Path(__file__).parents[1]

_STATE: Final = Rule(5, "replicas that have applied the same commits have the same state, and it is what those commits say")
_DIGEST: Final = Rule(5, "equal version vectors have equal digests, and a digest is that of the state")
_JOIN: Final = Rule(6, "a state reached by joining snapshots is the state reached by the log, whatever the order")
_DURABLE: Final = Rule(7, "nothing is sent, promised or acknowledged before it is applied, and durable at its level")
_MONOTONE: Final = Rule(8, "vectors, stamps, sequence numbers and the clock's mark never go back, and clocks follow others so far only")
_REPLAY: Final = Rule(3, "everything that belongs together changes in one batch, so a crash and its replay change nothing")
_JOURNAL: Final = Rule(10, "every update that lost against one it had not seen is in the journal")
_CLOSED: Final = Rule(1, "an origin ends where all members agreed, everybody who closes it has it up to there, and nobody takes more")
_FLOOR: Final = Rule(8, "floors rise only for origins that jumped, to where a frame ends")
_CONVERGE: Final = Rule(11, "once healed, with nobody writing, all replicas become equal within a bounded time")

_CLIENTS: Final = Rule(6, "a client sees what was promised: its own writes, no step back, whole batches, causes before effects")
_ONCE: Final = Rule(3, "a request is done once where it is known to be done, and its retry is told the same commit")
_LOG: Final = Rule(7, "the log gives back what was appended: all that was synced, and of the rest a part of its beginning")

_RULES: Final[tuple[tuple[str, Rule], ...]] = (
    (r"^clients saw what may not be", _CLIENTS),
    (r"^the request of .* was (done again|answered)", _ONCE),
    (r"^the log (was found|gives|finds|ends|says)|^the log's floor|^what .* lacks begins|^cut at ", _LOG),
    (r"takes no writes|waits for .* in vain", Rule(11, "a healthy region takes writes, and lets no session wait for ever")),
    (r"the journal does not say so|the journal counts", _JOURNAL),
    (r"^the join of|^a snapshot's bytes", _JOIN),
    (r"replay made|the request of", _REPLAY),
    (r"says it has applied", Rule(3, "a replica's version vector is what its log amounts to")),
    (r"which rests on", Rule(1, "a commit is applied only after everything that its writer had seen")),
    (r" applied .* after ", Rule(1, "each origin's commits are applied in order, each exactly once")),
    (r"^two contents of", Rule(2, "a commit has one content, everywhere and for ever")),
    (r" goes on as .*, which has written", Rule(2, "whoever may have lost commits of its own takes a new id")),
    (r" is closed at .* and at | has closed .* without having it|, which was closed at | was frozen, and after a restart", _CLOSED),
    (r" shows .* as ", Rule(8, "what is shown without closed origins says what the full vector does")),
    (r": the floor of | installed .*, where no frame ends", _FLOOR),
    (r" sent .* above the sent bound", _DURABLE),
    (r"does not follow the last frame", Rule(2, "each frame names the one before it by its hash")),
    (r"is not covered by|not even covered", Rule(4, "every dot in a state is covered by its version vector")),
    (r" holds .*; it should hold|: counter .* is .*; it should be", _STATE),
    (r"its digest is|: digest .* elsewhere|ended differently", _DIGEST),
    (r": heads are|: the head of", Rule(3, "the bookkeeping beside a collection counts its slots and names its runs")),
    (r"shows .* it should show|reads .* it should read", Rule(9, "readers are shown the winner by stored stamp and origin")),
    (r" sent .* durable up to| acknowledged | told .* it has applied|was lost at .* has it", _DURABLE),
    (r"the clock's mark (went|is)|: run .* became|^\S+ follows |its stamp is not greater", _MONOTONE),
    (r"lacks what was acknowledged", Rule(10, "what was acknowledged to a client is in every replica, once healed")),
    (r"^not equal .* after everything healed|^still going on after", _CONVERGE),
    (r"a frame could not be applied", Rule(None, "a frame from a replica that keeps the rules can be applied")),
    (r"a snapshot could not be taken over", Rule(None, "a snapshot from a replica that keeps the rules can be taken over")),
    (r"a message that came over .* was forgotten", Rule(None, "what came over a link that lives on is dealt with, or waits")),
)
_RAISED: Final = re.compile(r"(?P<error>\w+): .*, raised at \S+ in (?P<function>\S+)$", re.DOTALL)
"""What `raised_text` makes. The class and the function stay from run to run."""


def all_rules() -> tuple[Rule, ...]:
    """Every rule that a violation may be about, but for exceptions and alarms, whose rules name their kind."""
    return tuple(dict.fromkeys(rule for _, rule in _RULES))


def broken_rule(violation: str) -> Rule:
    """The rule that a violation's message is about."""
    if (raised := _RAISED.match(violation)) is not None:  # first: an exception may say anything
        return Rule(None, f"no step raises an exception ({raised['error']} in {raised['function']})")
    for pattern, rule in _RULES:
        if re.search(pattern, violation):
            return rule
    alarm = violation.partition(": ")[2].partition(": ")[0]
    return Rule(None, f"replicas that all keep the rules give no alarm ({alarm})")
