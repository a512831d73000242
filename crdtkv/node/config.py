"""What a node is told at start: one frozen dataclass, from a TOML file, the environment and flags.

Precedence rises in that order, setting by setting; a list of peers in a higher layer replaces the one below as a
whole. Every setting is checked here, before anything is opened: a wrong one is one `ConfigError` that names it and
says where it came from, an unknown key of the file is refused with the name it was probably meant to be.

The file:

    region = "us"
    listen = "127.0.0.1:7001"
    data = "/var/lib/crdtkv/us"
    instance_dir = "/var/lib/crdtkv-instances"
    durability = "sync"

    [peers]
    eu = "10.0.0.2:7001"
    ap = "10.0.0.3:7001"

    [tls]                       # cert and key: serve TLS; ca: ask whoever connects for a certificate it signed
    cert = "node.pem"
    key = "node.key"
    ca = "ca.pem"

    [log]
    level = "info"
    format = "logfmt"

    [limits]
    requests_queued_max = 65536

    [store]                     # of the store: any number of `crdtkv.Settings`
    log_keep_bytes = 4294967296

The environment has the same names in capitals, sections joined by `_`: `CRDTKV_REGION`, `CRDTKV_TLS_CERT`,
`CRDTKV_PEERS="eu=10.0.0.2:7001,ap=10.0.0.3:7001"`. Other variables that begin with `CRDTKV_` belong to other
commands and are left alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from crdtkv.core.causality import check_region
from crdtkv.errors import ConfigError
from crdtkv.replication.settings import COMPRESSIONS, PRESETS, ReplicationSettings, preset
from crdtkv.store.settings import Settings

FOLD_RECORDS_MAX: Final = 16384
"""A node's `fold_records_max`: what is put over and over is written to the engine once in so many. RocksDB takes a batch without letting go
of the interpreter, 0.2 to 0.6 µs a record, and the loop waits: as long in all as for smaller ones, more rarely."""
ENGINES: Final = ("rocksdb", "lmdb", "memory")
DURABILITIES: Final = ("memory", "async", "sync")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("logfmt", "json")
READY_FORMATS: Final = ("text", "json")
STORE_SETTINGS: Final = tuple(f.name for f in fields(Settings) if f.name not in ("cluster", "shard", "instance_dir", "watch_changes_max"))
"""What a node may be told of its store in the section `store`; `watch_changes_max` is the node's `watch_queue_max`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what a node holds in memory for others. Each has a typed error or stops reading; none drops silently.

    Attributes:
        requests_queued_max: requests of all clients waiting for the storage worker; one more: `OverloadedError`.
        session_window_max: requests of one client stream not yet answered; beyond it the node stops reading the stream.
        watch_queue_max: changes waiting for one watcher; one more: it is cut with an error that holds its last token. Of an
            embedded node the store's own `watch_changes_max` counts.
        watch_stall_ms: how long one page may wait for a watcher or reader that does not read before it is cut.
        streams_max: scans and watches open at once; one more: `OverloadedError`.
        message_bytes_max: greatest gRPC message, sent or received.
        shutdown_grace_ms: how long a stopping node waits for what is in flight.
    """

    requests_queued_max: int = 65_536
    session_window_max: int = 16_384
    watch_queue_max: int = 8_192
    watch_stall_ms: int = 30_000
    streams_max: int = 1_024
    message_bytes_max: int = 32 << 20
    shutdown_grace_ms: int = 5_000


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. `cert` and `key` belong together; `ca` asks whoever connects for a certificate that it signed."""

    cert: Path
    key: Path
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings of one node; build it with `load`, or directly and call `validate`.

    Attributes:
        region: the region's name; the replica keeps its origin `region@generation-nonce` in the data directory.
        listen: `host:port`; port 0 takes a free one (the ready line says which).
        data: the data directory; None: everything in memory, gone at exit.
        instance_dir: where the data directory's instance token is kept, by which a restored or copied one is noticed; "trust": nowhere;
            None: below the home (`crdtkv.Settings.instance_dir`). In a container: a volume that stays, and is not the data directory's.
        peers: region → `host:port` of the other nodes. Each pair keeps one stream, whoever dials.
        metrics: `host:port` where metrics are served to Prometheus over HTTP, over HTTPS if TLS is configured; None: nowhere.
        cluster: name that peers must share; None: what the store says (or takes at its first meeting).
        engine, durability: as in `crdtkv.open`; None: its defaults.
        insecure: allow a listen address that is not loopback without TLS.
        replication: preset of the replication's limits and times: loopback, lan or wan (`crdtkv.replication.settings`).
        compression: of messages to other nodes: auto, on or off (`ReplicationSettings.compression`).
        ready_format: of the one line on stdout that says that the node takes requests.
        store: settings of the store that are not its defaults, by name (`STORE_SETTINGS`).
    """

    region: str
    listen: str
    data: Path | None = None
    instance_dir: Path | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    metrics: str | None = None
    cluster: str | None = None
    engine: str | None = None
    durability: str | None = None
    insecure: bool = False
    replication: str = "lan"
    compression: str = "auto"
    tls: Tls | None = None
    log_level: str = "info"
    log_format: str = "logfmt"
    ready_format: str = "text"
    limits: Limits = Limits()
    store: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(
        cls, file: str | Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
    ) -> NodeConfig:
        """Merge the three sources and check the result.

        Args:
            file: path of a TOML file, or None.
            env: the process's environment (or a part of it); only known `CRDTKV_*` names are read.
            flags: setting → value with the names of the fields here (`tls_cert`, `log_level`, a limit's own name);
                a value of None means not given. `peers` may be a mapping or `R=HOST:PORT` texts.
        Raises:
            ConfigError: names the first wrong setting and its source.
        """
        merged: dict[str, Any] = {}
        sources: dict[str, str] = {}

        def take(settings: Iterable[tuple[str, Any, str]]) -> None:
            for name, value, source in settings:
                merged[name] = _READERS[name](value, source)
                sources[name] = source

        if file is not None:
            take(_from_file(Path(file)))
        take(_from_env(env or {}))
        take(_from_flags(flags or {}))

        for name in ("region", "listen"):
            if name not in merged:
                raise ConfigError(f"{name} is not set: give --{name}, {_env_name(name)} or {name} = … in the file", setting=name)
        limits = {f.name: merged.pop(f.name) for f in fields(Limits) if f.name in merged}
        store = {name: merged.pop(name) for name in STORE_SETTINGS if name in merged}
        tls = _tls(*(merged.pop(name, None) for name in ("tls_cert", "tls_key", "tls_ca")))
        config = cls(**merged, tls=tls, limits=Limits(**limits), store=store)
        config.validate(sources)
        return config

    @property
    def replication_settings(self) -> ReplicationSettings:
        """The preset, with what is set beside it."""
        return dataclasses.replace(preset(self.replication), compression=self.compression).validate()

    def validate(self, sources: Mapping[str, str] | None = None) -> None:
        """Check what involves more than one setting; raises `ConfigError`."""
        where = sources or {}
        self.store_settings().validate()
        check_region(self.region)
        _ = self.replication_settings
        host, _ = parse_address(self.listen, where.get("listen", "listen"), port_min=0)
        for region, address in self.peers.items():
            check_region(region)
            if region == self.region:
                raise ConfigError(f"peers: {region} is this node's own region; name only the other regions", setting="peers")
            parse_address(address, f"peers: {region}")
        if self.engine not in (None, "memory") and self.data is None:
            raise ConfigError(f"data is not set: engine {self.engine!r} needs a directory; give --data", setting="data")
        if self.engine == "memory" and self.data is not None:
            raise ConfigError("data: engine 'memory' keeps nothing in a directory; leave one of the two out", setting="data")
        if self.metrics is not None:
            metrics_host, _ = parse_address(self.metrics, where.get("metrics", "metrics"), port_min=0)
            if self.tls is None and not self.insecure and not is_loopback(metrics_host):
                raise ConfigError(
                    f"metrics: {self.metrics} is not a loopback address and TLS is not configured: anyone who reaches it could read how"
                    " the cluster is; set tls.cert and tls.key, serve on 127.0.0.1, or say --insecure",
                    setting="metrics",
                )
        if self.tls is None and not self.insecure and not is_loopback(host):
            raise ConfigError(
                f"listen: {self.listen} is not a loopback address and TLS is not configured: anyone who reaches it could read and"
                " write; set tls.cert and tls.key, listen on 127.0.0.1, or say --insecure",
                setting="listen",
            )

    def store_settings(self) -> Settings:
        """What the store is opened with."""
        given: dict[str, Any] = {"fold_records_max": FOLD_RECORDS_MAX, **dict(self.store)}
        settings = Settings(watch_changes_max=self.limits.watch_queue_max, **given)
        if self.instance_dir is not None:
            settings = replace(settings, instance_dir=str(self.instance_dir))
        return settings if self.cluster is None else replace(settings, cluster=self.cluster)


def parse_address(text: str, setting: str, *, port_min: int = 1) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`; anything else is a `ConfigError` naming `setting`."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{setting}: {text!r}: write an IPv6 address as [address]:port", setting=setting)
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{setting}: {text!r} is not HOST:PORT, for example 127.0.0.1:7001", setting=setting)
    if not port_min <= int(port) <= 65535:
        raise ConfigError(f"{setting}: port {port} is not in {port_min}..65535", setting=setting)
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost may resolve to anything, so it is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_peers(texts: Iterable[str], setting: str) -> dict[str, str]:
    """`R=HOST:PORT` texts → region → address."""
    peers: dict[str, str] = {}
    for text in texts:
        region, equals, address = text.strip().partition("=")
        if not equals:
            raise ConfigError(f"{setting}: {text!r} is not REGION=HOST:PORT, for example eu=10.0.0.2:7001", setting="peers")
        if region in peers:
            raise ConfigError(f"{setting}: region {region} is named twice", setting="peers")
        parse_address(address, f"{setting}: {region}")
        peers[check_region(region)] = address
    return peers


# -- one reader per setting: from what a source holds to the field's type -----------------------------------------

_Reader = Callable[[Any, str], Any]


def _text(value: Any, source: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{source}: expected a text that is not empty, got {value!r}", setting=source)
    return value


def _path(value: Any, source: str) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, source)).expanduser()


def _region(value: Any, source: str) -> str:
    try:
        return check_region(value)
    except ConfigError as e:
        raise ConfigError(f"{source}: {e}", setting=source) from e


def _listen(value: Any, source: str) -> str:
    parse_address(_text(value, source), source, port_min=0)
    return str(value)


def _choice(*choices: str) -> _Reader:
    def read(value: Any, source: str) -> str:
        if value not in choices:
            raise ConfigError(f"{source}: {value!r} is not one of {', '.join(choices)}", setting=source)
        return str(value)

    return read


def _flag(value: Any, source: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        return value.lower() in ("1", "true", "yes", "on")
    raise ConfigError(f"{source}: {value!r} is not true or false", setting=source)


def _positive(value: Any, source: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or value <= 0:
        raise ConfigError(f"{source}: {value!r} is not a whole number above 0", setting=source)
    return value


def _peers(value: Any, source: str) -> dict[str, str]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        value = [f"{region}={_text(address, f'{source}.{region}')}" for region, address in value.items()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{source}: expected REGION=HOST:PORT for each peer, got {value!r}", setting="peers")
    return parse_peers(value, source)


_READERS: Final[dict[str, _Reader]] = {
    "region": _region,
    "listen": _listen,
    "data": _path,
    "instance_dir": _path,
    "peers": _peers,
    "metrics": _listen,
    "cluster": _text,
    "engine": _choice(*ENGINES),
    "durability": _choice(*DURABILITIES),
    "insecure": _flag,
    "replication": _choice(*PRESETS),
    "compression": _choice(*COMPRESSIONS),
    "tls_cert": _path,
    "tls_key": _path,
    "tls_ca": _path,
    "log_level": _choice(*LOG_LEVELS),
    "log_format": _choice(*LOG_FORMATS),
    "ready_format": _choice(*READY_FORMATS),
    **{name: _positive for name in (*(f.name for f in fields(Limits)), *STORE_SETTINGS)},
}
_SECTIONS: Final[dict[str, dict[str, str]]] = {
    "tls": {"cert": "tls_cert", "key": "tls_key", "ca": "tls_ca"},
    "log": {"level": "log_level", "format": "log_format"},
    "limits": {f.name: f.name for f in fields(Limits)},
    "store": {name: name for name in STORE_SETTINGS},
}
_TOP: Final = (
    "region",
    "listen",
    "data",
    "instance_dir",
    "peers",
    "metrics",
    "cluster",
    "engine",
    "durability",
    "insecure",
    "replication",
    "compression",
    "ready_format",
)


def _env_name(name: str) -> str:
    return "CRDTKV_" + name.upper()


def _from_file(path: Path) -> Iterable[tuple[str, Any, str]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"config file {path}: {e.strerror or e}", setting="config") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"config file {path}: {e}", setting="config") from e
    for key, value in document.items():
        section = _SECTIONS.get(key)
        if section is None:
            _known(key, (*_TOP, *_SECTIONS), path, "")
            yield key, value, f"{path.name}: {key}"
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{path.name}: {key} is a section: write [{key}] and its settings below it", setting=key)
        for name, inner in value.items():
            _known(name, tuple(section), path, f"{key}.")
            yield section[name], inner, f"{path.name}: {key}.{name}"


def _known(key: str, names: tuple[str, ...], path: Path, prefix: str) -> None:
    if key in names:
        return
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(names)}"
    raise ConfigError(f"{path.name}: unknown setting {prefix}{key}; {hint}", setting=prefix + key)


def _from_env(env: Mapping[str, str]) -> Iterable[tuple[str, Any, str]]:
    for name in _READERS:
        if (value := env.get(_env_name(name))) is not None:
            yield name, value, _env_name(name)


def _from_flags(flags: Mapping[str, Any]) -> Iterable[tuple[str, Any, str]]:
    for name, value in flags.items():
        if name not in _READERS:
            raise ConfigError(f"unknown setting {name}", setting=name)
        # An option that may be repeated and was not given is an empty list, not None.
        if value is not None and value != () and value != []:
            yield name, value, "--peer" if name == "peers" else "--" + name.replace("_", "-")


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        missing = "tls.cert" if cert is None else "tls.key"
        raise ConfigError(f"{missing} is not set: TLS needs a certificate and its key", setting=missing)
    for name, path in (("tls.cert", cert), ("tls.key", key), ("tls.ca", ca)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{name}: no such file: {path}", setting=name)
    return Tls(cert, key, ca)
