"""What a local cluster is to be: regions, the delays between them, where it keeps its files. Parsing and defaults; no I/O.

Delays are one way, in milliseconds. Pairs of regions with published figures get those unless told otherwise.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from crdtkv.core.causality import check_region
from crdtkv.errors import ConfigError

DEFAULT_REGIONS: Final = ("us", "eu", "ap")
DEFAULT_DIRECTORY: Final = Path(".crdtkv-cluster")
REGIONS_MAX: Final = 16
DELAY_MS_MAX: Final = 60_000.0

_CITIES: Final = ("dallas", "toronto", "washington", "frankfurt", "london", "madrid", "osaka", "sydney", "tokyo", "saopaulo")
_ROUND_TRIP_MS: Final = (
    (34, 31, 123, 113, 119, 150, 186, 143, 146),
    (19, 93, 82, 108, 168, 215, 162, 129),
    (91, 75, 87, 172, 214, 164, 118),
    (13, 29, 232, 250, 233, 198),
    (27, 244, 261, 243, 188),
    (257, 275, 258, 209),
    (122, 9, 293),
    (115, 328),
    (284,),
)
"""Average round trips between the regions of one public cloud, 27 Jul to 25 Aug 2024: IBM Cloud VPC documentation, "Network latency"
(repository ibm-cloud-docs/vpc). Row i holds city i to each city after it."""
_ALIASES: Final = {"us": "washington", "eu": "frankfurt", "ap": "tokyo"}

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)?")
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)?bit", re.IGNORECASE)
_BITS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Settings of a local cluster.

    Attributes:
        regions: their names, in the order in which they get ports.
        directory: data, logs, control socket and `cluster.json`.
        delay_ms: (source, target) → one-way delay; every ordered pair.
        jitter_ms: added to each delay, uniform from 0 to this.
        bytes_per_s: of each direction of each pair; None: no limit.
        base_port: the first region's port, the others follow, and after them those of metrics; None: free ones.
        engine, durability: of the nodes; None: their defaults.
        restart_crashed: start a node again that stopped without being asked to.
        config: a TOML file of further settings for the nodes, as of `crdtkv node --config`; what is said here comes before it.
        metrics: nodes serve metrics for Prometheus, each at a port of its own.
        direct: peers dial each other without the WAN emulator: no delays, no partitions, no added latency.
        ready_timeout_s: how long nodes may take until their peer links are up.
        node_command: internal, for tests of the supervisor: the program started instead of `crdtkv node`. Ready means then that the
            address accepts connections.
    """

    regions: tuple[str, ...] = DEFAULT_REGIONS
    directory: Path = DEFAULT_DIRECTORY
    delay_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)
    jitter_ms: float = 0.0
    bytes_per_s: float | None = None
    base_port: int | None = None
    engine: str | None = None
    durability: str | None = None
    config: Path | None = None
    restart_crashed: bool = False
    direct: bool = False
    metrics: bool = False
    ready_timeout_s: float = 30.0
    node_command: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.regions:
            raise ConfigError("regions: name at least one", setting="regions")
        if len(self.regions) > REGIONS_MAX:
            raise ConfigError(f"regions: {len(self.regions)} are more than the {REGIONS_MAX} that a local cluster takes", setting="regions")
        for i, region in enumerate(self.regions):
            check_region(region)
            if region in self.regions[:i]:
                raise ConfigError(f"regions: {region} is named twice", setting="regions")
        last = 65536 - len(self.regions) * (2 if self.metrics else 1)
        if self.base_port is not None and not 1 <= self.base_port <= last:
            raise ConfigError(f"base-port: {self.base_port} is not in 1..{last}", setting="base_port")
        for (a, b), delay in self.delay_ms.items():
            if a not in self.regions or b not in self.regions:
                raise ConfigError(f"latency: {a}-{b}: this cluster has {', '.join(self.regions)}", setting="latency")
            if not 0 <= delay <= DELAY_MS_MAX:
                raise ConfigError(f"latency: {a}-{b}: {delay:g} ms is not in 0..{DELAY_MS_MAX:g}", setting="latency")

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON types."""
        wire = {name: getattr(self, name) for name in self.__slots__}
        wire["directory"] = str(self.directory)
        wire["config"] = None if self.config is None else str(self.config.absolute())
        wire["delay_ms"] = [[a, b, delay] for (a, b), delay in self.delay_ms.items()]
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> ClusterSpec:
        """The inverse of `to_wire`."""
        known = dict(wire)
        known["regions"] = tuple(known["regions"])
        known["directory"] = Path(known["directory"])
        known["config"] = None if known["config"] is None else Path(known["config"])
        known["delay_ms"] = {(a, b): delay for a, b, delay in known["delay_ms"]}
        known["node_command"] = None if known["node_command"] is None else tuple(known["node_command"])
        return cls(**known)


def added(spec: ClusterSpec, region: str, latency: Mapping[str, float] | float | None = None) -> ClusterSpec:
    """The cluster with one region more.

    Args:
        latency: one-way delays to the other regions, by name; a number is all of them. What is not given has its published delay, or none.
    Raises:
        ConfigError: the name is wrong or taken, or there are too many.
    """
    if region in spec.regions:
        raise ConfigError(f"region {region} is in this cluster already: it has {', '.join(spec.regions)}", region=region)
    delays = {pair: delay for pair, delay in default_delays((*spec.regions, region)).items() if region in pair}
    given = dict.fromkeys(spec.regions, float(latency)) if isinstance(latency, int | float) else latency or {}
    for other, delay_ms in given.items():
        delays[region, check_known(other, spec.regions)] = delays[other, region] = float(delay_ms)
    return replace(spec, regions=(*spec.regions, region), delay_ms={**spec.delay_ms, **delays})


def without(spec: ClusterSpec, region: str) -> ClusterSpec:
    """The cluster with one region less."""
    rest = tuple(r for r in spec.regions if r != check_known(region, spec.regions))
    if not rest:
        raise ConfigError(f"region {region} is the only one of this cluster: stop it with `crdtkv cluster down`", region=region)
    return replace(spec, regions=rest, delay_ms={pair: delay for pair, delay in spec.delay_ms.items() if region not in pair})


def published_delay_ms(a: str, b: str) -> float | None:
    """The published one-way delay between two regions (cities, or us, eu, ap), rounded to a ms; None if there is none.

    >>> published_delay_ms("us", "eu"), published_delay_ms("ap", "us"), published_delay_ms("moon", "eu")
    (46.0, 82.0, None)
    """
    cities = sorted(_CITIES.index(city) for r in (a, b) if (city := _ALIASES.get(r, r)) in _CITIES)
    if len(cities) != 2:
        return None
    i, j = cities
    return 0.0 if i == j else float(_ROUND_TRIP_MS[i][j - i - 1] + 1 >> 1)


def default_delays(regions: Iterable[str]) -> dict[tuple[str, str], float]:
    """Published delays where there are some, else none: both directions of every pair."""
    delays: dict[tuple[str, str], float] = {}
    for a, b in combinations(regions, 2):
        delays[a, b] = delays[b, a] = published_delay_ms(a, b) or 0.0
    return delays


def parse_latency(
    text: str | None, regions: tuple[str, ...], before: Mapping[tuple[str, str], float] | None = None
) -> dict[tuple[str, str], float]:
    """`us-eu=40ms,us-ap=75ms` over the delays before, or else the published ones; `none` for no delay; one duration for all pairs.

    >>> parse_latency("us-eu=40ms", ("us", "eu"))
    {('us', 'eu'): 40.0, ('eu', 'us'): 40.0}
    >>> parse_latency("none", ("us", "eu"))
    {('us', 'eu'): 0.0, ('eu', 'us'): 0.0}
    """
    delays = default_delays(regions)
    delays.update((pair, delay) for pair, delay in (before or {}).items() if pair in delays)
    if text is None:
        return delays
    if text == "none":
        return dict.fromkeys(delays, 0.0)
    if "=" not in text:
        return dict.fromkeys(delays, parse_duration_ms(text, "latency"))
    for part in text.split(","):
        pair, equals, duration = part.strip().partition("=")
        if not equals:
            raise ConfigError(f"latency: {part!r} is not R-S=DELAY, for example us-eu=40ms", setting="latency")
        a, b = parse_pair(pair, regions)
        delays[a, b] = delays[b, a] = parse_duration_ms(duration, f"latency {pair}")
    return delays


def parse_delays(text: str) -> dict[str, float] | float:
    """`us=40ms,eu=75ms` by region, or one duration for all; `none` is no delay.

    >>> parse_delays("us=40ms,eu=0.1s"), parse_delays("none")
    ({'us': 40.0, 'eu': 100.0}, 0.0)
    """
    if text == "none":
        return 0.0
    if "=" not in text:
        return parse_duration_ms(text, "latency")
    delays = {}
    for part in text.split(","):
        region, equals, duration = part.strip().partition("=")
        if not equals:
            raise ConfigError(f"latency: {part!r} is not R=DELAY, for example us=40ms", setting="latency")
        delays[region] = parse_duration_ms(duration, f"latency {region}")
    return delays


def parse_duration_ms(text: str, setting: str, *, bare: str = "ms") -> float:
    """`40ms`, `0.5s`, `200us` → milliseconds. A number alone is of the unit `bare`: delays are told in ms, how long something runs in s.

    >>> parse_duration_ms("40", "latency"), parse_duration_ms("5", "duration", bare="s")
    (40.0, 5000.0)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        example, unit = {"ms": ("40ms or 0.2s", "milliseconds"), "s": ("20s or 500ms", "seconds")}[bare]
        raise ConfigError(f"{setting}: {text!r} is not a duration, for example {example}; a number alone is {unit}", setting=setting)
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2] or bare]


def parse_rate(text: str) -> float:
    """`10mbit` → bytes per second; `none` → 0, which stands for no limit."""
    if text == "none":
        return 0.0
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"rate: {text!r} is not a rate, for example 10mbit or none", setting="rate")
    return float(match[1]) * _BITS[(match[2] or "").lower()] / 8


def dir_flag(directory: Path) -> str:
    """How a command line names a cluster's directory; nothing for the default one.

    >>> dir_flag(DEFAULT_DIRECTORY), dir_flag(Path("my cluster"))
    ('', " --dir 'my cluster'")
    """
    return "" if directory == DEFAULT_DIRECTORY else f" --dir {shlex.quote(str(directory))}"


def check_known(region: str, regions: Iterable[str]) -> str:
    """Return `region` if the cluster has it, else a `ConfigError` that names those it has."""
    known = tuple(regions)
    if region not in known:
        raise ConfigError(f"unknown region {region!r}: this cluster has {', '.join(known)}", region=region, known=list(known))
    return region


def parse_pair(text: str, regions: tuple[str, ...]) -> tuple[str, str]:
    """`us-eu` → two regions. Names may hold `-` themselves, so each place to split is tried.

    >>> parse_pair("us-east-eu", ("us-east", "eu"))
    ('us-east', 'eu')
    """
    splits = [(text[:i], text[i + 1 :]) for i, c in enumerate(text) if c == "-"]
    for a, b in splits:
        if a in regions and b in regions and a != b:
            return a, b
    for a, b in splits:
        if a in regions and a == b:
            raise ConfigError(f"{text!r} names one region twice", region=a)
        if a in regions or b in regions:
            check_known(b if a in regions else a, regions)
    raise ConfigError(f"{text!r} is not R-S, two regions of {', '.join(regions)}", known=list(regions))


def parse_target(text: str, regions: tuple[str, ...]) -> tuple[str, str | None]:
    """`us` → ("us", None); `us-eu` → ("us", "eu")."""
    if text in regions:
        return text, None
    if "-" not in text:
        check_known(text, regions)
    return parse_pair(text, regions)
