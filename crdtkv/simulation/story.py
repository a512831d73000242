"""A run in words: who wrote what and had seen what, what was cut, who crashed, which rule broke, where states differ.

The narrator only listens: it draws nothing and traces nothing, so a told run is the run that was told of.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from crdtkv.core.causality import EMPTY_VV, Dot, VersionVector
from crdtkv.core.codec import TYPE_NAMES, split_slot
from crdtkv.core.frame import Frame
from crdtkv.core.join import snapshot_of
from crdtkv.core.types.base import decode_entries
from crdtkv.core.types.counter import decode_run
from crdtkv.replication.messages import Chunk, Frames, decode
from crdtkv.simulation.case import Case, CaseWorld
from crdtkv.simulation.following import COUNTER
from crdtkv.simulation.member import Member
from crdtkv.simulation.rules import broken_rule
from crdtkv.simulation.specification import Commit, Slot
from crdtkv.simulation.words import entries_in_words, in_words, named, place_name, seen, short, span
from crdtkv.simulation.world import Outcome

_CUTS: Final = {
    "one_way": "nothing gets from {a} to {b} any more; the other way it does",
    "pair": "{a} and {b} are cut off from each other",
    "island": "{a} is cut off from everybody",
    "bridge": "{a} is cut off from everybody but {b}",
}
_LOSSES: Final = {
    "put_back": "its directory replaced by the last copy",
    "lose_disk": "its disk by an empty one",
    "roll_back": "its log by one of an earlier time",
}

_MET: Final = {
    "session_hopped": "a client goes on at {region}",
    "request_tried_again": "a client tries a request again at {region}, where it was not done yet",
    "retry_was_answered": "a client tries a request again at {region}, and is told that it is done",
    "clock_refused": "{region} refuses a write, as its clock is too far off",
    "held": "{region} keeps commits back that rest on what it lacks",
    "install_finished_at_start": "{region} had begun to take over a snapshot, and finishes that",
}
"""What a step at a replica may have met, by its name in `World.rare`."""
_MET_IDLY: Final = {"session_waited": "a client waits for a region to catch up with what it has seen"}
"""What one may have met that did nothing else."""
_STEPS: Final = {
    "_apply": "applies",
    "serve": "commits what a client asks for",
    "start": "starts",
    "_do": "reads or takes over a snapshot",
    "_housekeep": "does what is due by itself",
}
"""What a replica does, by the method of `Member` in which it does so."""


@dataclass(frozen=True, slots=True)
class Story:
    """A run that was told.

    Attributes:
        events: what happened, in order, a line each, with the virtual time.
        broken: which rule broke and what the check said; empty if none did.
        states: what each replica that does not hold what it should holds instead.
    """

    outcome: Outcome
    events: tuple[str, ...]
    broken: tuple[str, ...]
    states: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((*self.events, *self.broken, *self.states))


def tell(case: Case) -> Story:
    """Run a case and tell it."""
    narrator = Narrator(case)
    outcome = narrator.run()
    rules = [broken_rule(text) for text in outcome.violations]
    broken = tuple(f"Broken: {rule}." for rule in rules)
    # Where no invariant is broken, a step may have ended half-way, and the states be those of half a step.
    states = _differences_or_why_not(narrator) if any(rule.number is not None for rule in rules) else ()
    if not any("it should" in line for line in states):  # else that says it better than the check's own words
        broken += tuple(f"Found: {named(text)}" for text in outcome.violations)
    return Story(outcome, tuple(narrator.lines), broken, states)


SHORT: Final = 6
"""A story of so many lines is told as it is."""
_PROBES: Final = "a second later each region must take a write, to register probe"
_ALWAYS: Final = (" adds a region, ", " joins, with nothing", _PROBES)
"""In lines that belong to each story: who takes part, and whose writes those are that no client asked for."""
_NEVER: Final = (" commits ", " a client ", " begins to send ")
"""In lines of other commits, and of what changes no state."""
_SPAN: Final = re.compile(r"([a-z0-9@-]+):(\d+)(?:-(\d+))?")


def gist(story: Story) -> tuple[str, ...]:
    """The events of a run that broke a rule, without what has nothing to do with the first place where a state is wrong.

    What is left: the operations on that place and on the collection that it is in; of the regions that wrote there, or whose state is
    wrong, how they came by these commits, and their faults since the first of them; who joined, and where clients stop. All events, where
    no place is known to be wrong or there are few.
    """
    # Where the states are right, a check's own words may name the place: of a join, say.
    wrong = next((line for line in (*story.states, *story.broken) if "; it should " in line), None)
    if wrong is None or len(story.events) <= SHORT:
        return story.events
    place = re.split(r" holds | is | shows | reads ", wrong.strip().rpartition(": ")[2])[0]
    about = {at: told for at, line in enumerate(story.events) if (told := _commit_about(place, line))}
    dots = {_dot(told) for told in about.values()}
    regions = {told.split()[2] for told in about.values()} | set(_wrong_regions(story))
    kept: list[str] = []
    for at, line in enumerate(story.events):
        what = line.partition(" ms  ")[2]
        if at in about:
            kept.append(about[at])
        elif " applies " in what or " relays " in what:
            to = what.split()[0 if " applies " in what else -1]
            spans = [(origin, range(int(first), int(last or first) + 1)) for origin, first, last in _SPAN.findall(what)]
            if to in regions and any(seq in seqs for origin, seqs in spans for dotted, seq in dots if dotted == origin):
                kept.append(line)
        elif any(words in line for words in _ALWAYS):
            kept.append(line)
        elif about and at > min(about) and not any(words in line for words in _NEVER):
            named = set(re.findall(r"\w+", what)).intersection(story.outcome.regions)
            if not named or named & regions:
                kept.append(line)
    left_out = len(story.events) - len(kept)
    if not left_out:
        return story.events
    events = f"1 event that does not concern {place} is" if left_out == 1 else f"{left_out:,} events that do not concern {place} are"
    return (*kept, f"{'':>15}({events} left out; --story tells all)")


def _commit_about(place: str, line: str) -> str:
    """The line of a commit, with those of its operations alone that are about a place; empty if none is."""
    head, _, rest = line.partition(": ")
    if " commits " not in head:
        return ""
    operations = rest.split("; ")
    whole = f"clears {place.rpartition(' of ')[2]}"
    about = [operation for operation in operations if place in operation or operation == whole]
    return f"{head}: {'; '.join(about)}{'; …' if len(about) < len(operations) else ''}" if about else ""


def _dot(commit: str) -> tuple[str, int]:
    """Which commit a line is of."""
    origin, seq = commit.split(" commits ")[1].split(",")[0].split(":")
    return origin, int(seq)


def _wrong_regions(story: Story) -> tuple[str, ...]:
    """Whose state is not what it should be; of whom a check speaks, if all are; else any."""
    wrong = tuple(line.split()[0] for line in story.states if line.endswith(", but"))
    found = [region for line in story.broken if line.startswith("Found: ") for region in re.findall(r"\w+", line)]
    return wrong or tuple(region for region in found if region in story.outcome.regions) or story.outcome.regions


class Narrator(CaseWorld):
    """A world that says what happens in it."""

    def __init__(self, case: Case) -> None:
        self.lines: list[str] = []
        self._seen: dict[int, VersionVector] = {}
        self._is_cut = False
        self._installs = False
        """The step that is under way takes over a snapshot."""
        self._met: Counter[str] = Counter()
        """What of `rare` is told."""
        super().__init__(case)

    def _say(self, text: str) -> None:
        self.lines.append(f"{self.now_ms:9.1f} ms  {text}")

    def committed(self, member: Member, commit: Commit) -> None:
        self._say_met(_MET, member.region)
        what = "; ".join(map(in_words, commit.operations)) or "a record of who is a member, or of where an origin ends"
        self._say(f"{member.region} commits {short(commit.dot)}, having seen {seen(commit.past)}: {what}")
        super().committed(member, commit)

    def changed(self, member: Member, *, wholly: bool = False) -> None:
        before, now = self._seen.get(member.index, EMPTY_VV), member.machine.vv()
        self._seen[member.index] = now
        news = [span(o, before.seq(o) + 1, seq) for o, seq in now.items() if o != member.origin and before.seq(o) < seq]
        by = ", by a snapshot" if self._installs else ""
        self._installs = False
        if news:
            self._say(f"{member.region} applies {', '.join(news)}{by}")
        self._say_met(_MET, member.region)
        super().changed(member, wholly=wholly)

    def idle(self) -> None:
        self._say_met(_MET_IDLY)
        super().idle()

    def _say_met(self, words: Mapping[str, str], region: str = "") -> None:
        for name, what in words.items():
            if self.rare[name] > self._met[name]:
                self._met[name] = self.rare[name]
                self._say(what.format(region=region))

    def trace_sent(self, index: int, link: int, data: bytes) -> None:
        super().trace_sent(index, link, data)
        message, to = decode(data), self.network.other_end(link, index)
        if to is not None:
            there = self.members[to].region
            match message:
                case Frames(relayed=True, frames=frames):
                    relayed = [Frame.decode(frame) for frame in frames]
                    spans = ", ".join(span(frame.origin, frame.first_seq, frame.last_seq) for frame in relayed)
                    self._say(f"{self.members[index].region} relays {spans} to {there}")
                case Chunk(number=0):
                    self._say(f"{self.members[index].region} begins to send {there} a snapshot")

    def raised(self, error: Exception) -> None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        step = next((frame for frame in frames if isinstance(frame.f_locals.get("self"), Member)), None)
        what = f"an exception is raised: {type(error).__name__}: {error}"
        if step is None:
            return self._say(what)
        name = step.f_code.co_name
        doing = _STEPS.get(name, f"is at a step ({name.strip('_')})")
        if name == "_apply":
            applied: tuple[Frame, ...] = step.f_locals["frames"]
            doing += " " + ", ".join(span(frame.origin, frame.first_seq, frame.last_seq) for frame in applied)
        self._say(f"{step.f_locals['self'].region} {doing}, and {what}")

    def trace(self, *parts: object) -> None:
        text = self._in_words(parts)
        if text:
            self._say(text)
        super().trace(*parts)

    def _in_words(self, parts: tuple[object, ...]) -> str:
        """A fault in a sentence; nothing for what only the trace is there for."""

        def region(index: int) -> str:
            return self.members[index].region

        match parts:
            case ("cut", str(kind), int(a), int(b)):
                self._is_cut = True
                return _CUTS[kind].format(a=region(a), b=region(b))
            case ("heal cuts",) if self._is_cut:
                self._is_cut = False
                left = f", but for the one between {region(0)} and {region(1)}" if self.options.bridge else ""
                return f"every cut heals{left}"
            case ("flap", int(a), int(b)):
                self._is_cut = True
                return f"the link between {region(a)} and {region(b)} begins to come and go"
            case ("slow", int(index), float(factor)):
                self._is_cut = True
                return f"{region(index)} is slow: everything there takes {factor:g} times as long"
            case ("reset",):
                return "a connection is lost, with what was on its way"
            case ("crash", int(index), bool(power), int(lost)):
                self._seen.pop(index, None)
                gone = f"; {lost} frame{'s' * (lost != 1)} of its log were not synced and are gone" if lost else ""
                return f"{region(index)} {'loses power' if power else 'is killed'}{gone}"
            case ("restart", int(index), str(origin), bool(is_another)):
                self._seen[index] = self.members[index].machine.vv()
                replayed = self.members[index].machine.replayed
                replays = f", and replays {replayed} frame{'s' * (replayed != 1)} of its log" if replayed else ""
                return f"{region(index)} starts again{f', as {origin}' if is_another else ''}{replays}"
            case ("snapshot", int(), "install"):
                self._installs = True
            case ("renew", int(index), str(origin)):
                return f"{region(index)} goes on as {origin}"
            case ("leave", int(index), bool(stops)):
                self._is_cut = self._is_cut or not stops
                return f"{region(index)} is {'stopped' if stops else 'cut off from everybody'} for a while"
            case ("return", int(index)):
                return f"{region(index)} is back; meanwhile the others have dropped their logs"
            case ("late", int(index)):
                return f"{region(index)} joins, with nothing"
            case ("copy", int(index), int(end)):
                return f"the directory of {region(index)} is copied, with {end} frames"
            case ("lose", int(index), str(kind), int(end)):
                return f"{region(index)} is stopped, and {_LOSSES[kind]}: its log now holds {end} frames"
            case ("truncate", int(index), int(start)) if start:
                return f"{region(index)} keeps its log only from frame {start} on"
            case ("full", int(index), bool(engine)):
                return f"the disk of {region(index)} is full" + (", for its engine as well" if engine else "")
            case ("free", int(index)) if self.members[index].log.is_full:
                return f"there is room again on the disk of {region(index)}"
            case ("fail", int(index), str(call)):
                return f"the next {call} of the log of {region(index)} will fail"
            case ("rot", int(index)):
                return f"a bit of what {region(index)} has synced turns over"
            case ("broke", int(index), str(error)):
                return f"the disk of {region(index)} fails it ({error}): it stops"
            case ("replace", int(index)):
                return f"the log of {region(index)} is damaged, and is refused: it gets a new disk"
            case ("jump", int(index), int(by_ms)):
                return f"somebody sets the clock of {region(index)} by {by_ms:+,} ms"
            case ("add", int(index), int(by)):
                return f"{region(by)} adds a region, {region(index)}, which begins with nothing"
            case ("remove", int(index), int(by), bool(forced)):
                return f"{region(by)} {'removes' if forced else 'begins to drain'} {region(index)}"
            case ("take back", int(index), int(by)):
                return f"{region(by)} takes the drain of {region(index)} back"
            case ("add again", int(index), int(by)):
                return f"{region(by)} adds {region(index)} again"
            case ("removed", int(index), int(by)):
                return f"{region(by)} has removed {region(index)}"
            case ("lame", int(index), str(fate)):
                return f"{region(index)} stays {fate} from here on"
            case ("heal", list(lame)):
                return f"{'the other regions heal' if lame else 'no more faults'}, and clients stop; {_PROBES}"
            case ("stop",):
                return "the run ends here, while faults go on"
        return ""


# -- where states differ --------------------------------------------------------------------------------------


def _differences_or_why_not(world: CaseWorld) -> tuple[str, ...]:
    try:
        return tuple(differences(world))
    except Exception as e:  # what broke may have left records that nobody can read
        return (f"The states cannot be read: {type(e).__name__}: {e}",)


def differences(world: CaseWorld) -> list[str]:
    """What each running replica has applied; and where it does not hold what the specification says of that."""
    lines = []
    for member in world.members:
        if not member.is_up:
            lines.append(f"{member.region} is down.")
            continue
        vv = member.machine.vv()
        wanted_slots, wanted_counters, _ = world.history.state(vv)
        found_slots, found_counters = _state(snapshot_of(member.machine.replica).slots)
        wanted = {slot: {live.dot: live.value for live in writes} for slot, writes in wanted_slots.items()}
        wrong = [
            f"    {place_name(slot)} holds {entries_in_words(slot, found_slots.get(slot))}; "
            f"it should hold {entries_in_words(slot, wanted.get(slot))}"
            for slot in sorted(wanted.keys() | found_slots.keys())
            if wanted.get(slot) != found_slots.get(slot)
        ]
        for key in sorted(wanted_counters.keys() | found_counters.keys()):
            is_, should = found_counters.get(key, 0), wanted_counters.get(key, 0)
            if is_ != should:
                wrong.append(f"    counter {key} is {is_}; it should be {should}")
        lines.append(f"{member.region} has applied {seen(vv)}{', but' if wrong else '; its state is what these say.'}")
        lines += wrong
    return lines


def _state(records: Mapping[bytes, bytes]) -> tuple[dict[Slot, dict[Dot, bytes]], dict[str, int]]:
    """Live writes per slot and the value of each counter, out of a replica's records."""
    slots: dict[Slot, dict[Dot, bytes]] = {}
    counters: dict[str, int] = {}
    for slot, record in records.items():
        key, kind, subkey = split_slot(slot)
        if kind == COUNTER:
            counters[key.decode()] = counters.get(key.decode(), 0) + decode_run(record).amount
        else:
            slots[key.decode(), TYPE_NAMES[kind], subkey] = {entry.dot: entry.value for entry in decode_entries(record)}
    return slots, counters
