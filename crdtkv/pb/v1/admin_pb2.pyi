from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OriginSeq(_message.Message):
    __slots__ = ("origin", "seq")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    origin: str
    seq: int
    def __init__(self, origin: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class VersionVector(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[OriginSeq]
    def __init__(self, entries: _Optional[_Iterable[_Union[OriginSeq, _Mapping]]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("region", "origin", "cluster", "shard", "version", "engine", "durability", "pid", "uptime_ms", "ready", "listen", "vv", "durable_vv", "digest", "hlc", "wall_ms", "log_start", "log_end", "log_bytes", "state_bytes", "held_frames", "conflicts", "watchers", "sessions", "requests", "peers", "warnings", "log_floor", "read_only", "last_install", "log_kept_for")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    VV_FIELD_NUMBER: _ClassVar[int]
    DURABLE_VV_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HLC_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    LOG_START_FIELD_NUMBER: _ClassVar[int]
    LOG_END_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HELD_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    WATCHERS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    LOG_FLOOR_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    LAST_INSTALL_FIELD_NUMBER: _ClassVar[int]
    LOG_KEPT_FOR_FIELD_NUMBER: _ClassVar[int]
    region: str
    origin: str
    cluster: str
    shard: int
    version: str
    engine: str
    durability: str
    pid: int
    uptime_ms: int
    ready: bool
    listen: str
    vv: VersionVector
    durable_vv: VersionVector
    digest: str
    hlc: int
    wall_ms: int
    log_start: int
    log_end: int
    log_bytes: int
    state_bytes: int
    held_frames: int
    conflicts: int
    watchers: int
    sessions: int
    requests: int
    peers: _containers.RepeatedCompositeFieldContainer[PeerLag]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    log_floor: VersionVector
    read_only: str
    last_install: str
    log_kept_for: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, region: _Optional[str] = ..., origin: _Optional[str] = ..., cluster: _Optional[str] = ..., shard: _Optional[int] = ..., version: _Optional[str] = ..., engine: _Optional[str] = ..., durability: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., ready: bool = ..., listen: _Optional[str] = ..., vv: _Optional[_Union[VersionVector, _Mapping]] = ..., durable_vv: _Optional[_Union[VersionVector, _Mapping]] = ..., digest: _Optional[str] = ..., hlc: _Optional[int] = ..., wall_ms: _Optional[int] = ..., log_start: _Optional[int] = ..., log_end: _Optional[int] = ..., log_bytes: _Optional[int] = ..., state_bytes: _Optional[int] = ..., held_frames: _Optional[int] = ..., conflicts: _Optional[int] = ..., watchers: _Optional[int] = ..., sessions: _Optional[int] = ..., requests: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[PeerLag, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., log_floor: _Optional[_Union[VersionVector, _Mapping]] = ..., read_only: _Optional[str] = ..., last_install: _Optional[str] = ..., log_kept_for: _Optional[_Iterable[str]] = ...) -> None: ...

class DigestRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DigestReply(_message.Message):
    __slots__ = ("digest", "vv")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VV_FIELD_NUMBER: _ClassVar[int]
    digest: str
    vv: VersionVector
    def __init__(self, digest: _Optional[str] = ..., vv: _Optional[_Union[VersionVector, _Mapping]] = ...) -> None: ...

class VersionVectorRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VersionVectorReply(_message.Message):
    __slots__ = ("applied", "durable")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    applied: VersionVector
    durable: VersionVector
    def __init__(self, applied: _Optional[_Union[VersionVector, _Mapping]] = ..., durable: _Optional[_Union[VersionVector, _Mapping]] = ...) -> None: ...

class LagRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LagReply(_message.Message):
    __slots__ = ("region", "peers")
    REGION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    region: str
    peers: _containers.RepeatedCompositeFieldContainer[PeerLag]
    def __init__(self, region: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[PeerLag, _Mapping]]] = ...) -> None: ...

class PeerLag(_message.Message):
    __slots__ = ("region", "address", "origin", "connected", "state", "lag_ms", "commits_behind", "bytes_behind", "commits_ahead", "bytes_ahead", "rtt_ms", "clock_offset_ms", "last_heard_ms", "acknowledged", "acknowledged_durable", "error", "sent_bytes", "sent_wire_bytes", "compression")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    BYTES_BEHIND_FIELD_NUMBER: _ClassVar[int]
    COMMITS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    BYTES_AHEAD_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARD_MS_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_DURABLE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    region: str
    address: str
    origin: str
    connected: bool
    state: str
    lag_ms: float
    commits_behind: int
    bytes_behind: int
    commits_ahead: int
    bytes_ahead: int
    rtt_ms: float
    clock_offset_ms: float
    last_heard_ms: int
    acknowledged: VersionVector
    acknowledged_durable: VersionVector
    error: str
    sent_bytes: int
    sent_wire_bytes: int
    compression: str
    def __init__(self, region: _Optional[str] = ..., address: _Optional[str] = ..., origin: _Optional[str] = ..., connected: bool = ..., state: _Optional[str] = ..., lag_ms: _Optional[float] = ..., commits_behind: _Optional[int] = ..., bytes_behind: _Optional[int] = ..., commits_ahead: _Optional[int] = ..., bytes_ahead: _Optional[int] = ..., rtt_ms: _Optional[float] = ..., clock_offset_ms: _Optional[float] = ..., last_heard_ms: _Optional[int] = ..., acknowledged: _Optional[_Union[VersionVector, _Mapping]] = ..., acknowledged_durable: _Optional[_Union[VersionVector, _Mapping]] = ..., error: _Optional[str] = ..., sent_bytes: _Optional[int] = ..., sent_wire_bytes: _Optional[int] = ..., compression: _Optional[str] = ...) -> None: ...

class OpenViewRequest(_message.Message):
    __slots__ = ("covers", "wait_ms")
    COVERS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    covers: VersionVector
    wait_ms: int
    def __init__(self, covers: _Optional[_Union[VersionVector, _Mapping]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class ViewReply(_message.Message):
    __slots__ = ("view", "origin", "cluster", "shard", "vv", "hashes", "digest", "hlc", "position", "floor", "control")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    VV_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HLC_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    view: int
    origin: str
    cluster: str
    shard: int
    vv: VersionVector
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    digest: str
    hlc: int
    position: int
    floor: VersionVector
    control: bytes
    def __init__(self, view: _Optional[int] = ..., origin: _Optional[str] = ..., cluster: _Optional[str] = ..., shard: _Optional[int] = ..., vv: _Optional[_Union[VersionVector, _Mapping]] = ..., hashes: _Optional[_Iterable[bytes]] = ..., digest: _Optional[str] = ..., hlc: _Optional[int] = ..., position: _Optional[int] = ..., floor: _Optional[_Union[VersionVector, _Mapping]] = ..., control: _Optional[bytes] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("end", "slots", "digest")
    END_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    end: bytes
    slots: int
    digest: bytes
    def __init__(self, end: _Optional[bytes] = ..., slots: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class PartsRequest(_message.Message):
    __slots__ = ("view", "start", "end", "size")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    view: int
    start: bytes
    end: bytes
    size: int
    def __init__(self, view: _Optional[int] = ..., start: _Optional[bytes] = ..., end: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class DigestsRequest(_message.Message):
    __slots__ = ("view", "start", "ends")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    view: int
    start: bytes
    ends: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, view: _Optional[int] = ..., start: _Optional[bytes] = ..., ends: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PartsReply(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class RecordsRequest(_message.Message):
    __slots__ = ("view", "start", "end", "bytes_max")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    view: int
    start: bytes
    end: bytes
    bytes_max: int
    def __init__(self, view: _Optional[int] = ..., start: _Optional[bytes] = ..., end: _Optional[bytes] = ..., bytes_max: _Optional[int] = ...) -> None: ...

class RecordsReply(_message.Message):
    __slots__ = ("rows", "next")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    next: bytes
    def __init__(self, rows: _Optional[bytes] = ..., next: _Optional[bytes] = ...) -> None: ...

class FramesRequest(_message.Message):
    __slots__ = ("view", "after", "position")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    view: int
    after: VersionVector
    position: int
    def __init__(self, view: _Optional[int] = ..., after: _Optional[_Union[VersionVector, _Mapping]] = ..., position: _Optional[int] = ...) -> None: ...

class FramesReply(_message.Message):
    __slots__ = ("available", "frames", "next")
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    available: bool
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    next: int
    def __init__(self, available: bool = ..., frames: _Optional[_Iterable[bytes]] = ..., next: _Optional[int] = ...) -> None: ...

class CloseViewRequest(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: int
    def __init__(self, view: _Optional[int] = ...) -> None: ...

class CloseViewReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdoptRequest(_message.Message):
    __slots__ = ("donor", "vv", "rows")
    DONOR_FIELD_NUMBER: _ClassVar[int]
    VV_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    donor: str
    vv: VersionVector
    rows: bytes
    def __init__(self, donor: _Optional[str] = ..., vv: _Optional[_Union[VersionVector, _Mapping]] = ..., rows: _Optional[bytes] = ...) -> None: ...

class AdoptReply(_message.Message):
    __slots__ = ("adopted", "touched")
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    TOUCHED_FIELD_NUMBER: _ClassVar[int]
    adopted: _containers.RepeatedScalarFieldContainer[bytes]
    touched: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, adopted: _Optional[_Iterable[bytes]] = ..., touched: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SettleReply(_message.Message):
    __slots__ = ("kept", "scanned", "beside")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    SCANNED_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    kept: str
    scanned: str
    beside: int
    def __init__(self, kept: _Optional[str] = ..., scanned: _Optional[str] = ..., beside: _Optional[int] = ...) -> None: ...

class StateChunk(_message.Message):
    __slots__ = ("data", "link", "end")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    link: bytes
    end: bool
    def __init__(self, data: _Optional[bytes] = ..., link: _Optional[bytes] = ..., end: bool = ...) -> None: ...

class MergeStateReply(_message.Message):
    __slots__ = ("applied", "changed")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    applied: int
    changed: int
    def __init__(self, applied: _Optional[int] = ..., changed: _Optional[int] = ...) -> None: ...

class RegionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegionsReply(_message.Message):
    __slots__ = ("region", "regions")
    REGION_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    region: str
    regions: _containers.RepeatedCompositeFieldContainer[RegionStanding]
    def __init__(self, region: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[RegionStanding, _Mapping]]] = ...) -> None: ...

class RegionStanding(_message.Message):
    __slots__ = ("region", "state", "address", "member", "connected", "applied", "announced", "closed", "waits_for", "drained")
    REGION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    region: str
    state: str
    address: str
    member: bool
    connected: bool
    applied: _containers.RepeatedCompositeFieldContainer[OriginSeq]
    announced: _containers.RepeatedCompositeFieldContainer[OriginSeq]
    closed: _containers.RepeatedCompositeFieldContainer[OriginSeq]
    waits_for: _containers.RepeatedScalarFieldContainer[str]
    drained: bool
    def __init__(self, region: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., member: bool = ..., connected: bool = ..., applied: _Optional[_Iterable[_Union[OriginSeq, _Mapping]]] = ..., announced: _Optional[_Iterable[_Union[OriginSeq, _Mapping]]] = ..., closed: _Optional[_Iterable[_Union[OriginSeq, _Mapping]]] = ..., waits_for: _Optional[_Iterable[str]] = ..., drained: bool = ...) -> None: ...

class ChangeRegionsRequest(_message.Message):
    __slots__ = ("change", "regions", "address")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    change: str
    regions: _containers.RepeatedScalarFieldContainer[str]
    address: str
    def __init__(self, change: _Optional[str] = ..., regions: _Optional[_Iterable[str]] = ..., address: _Optional[str] = ...) -> None: ...
