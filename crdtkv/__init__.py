"""crdtkv: an active-active, multi-region key-value store that converges.

Embedded:   `store = crdtkv.open("data")`, then `put`, `get`, `set`, `counter`, `map`, `batch`, `scan`, `watch` …
A cluster:  `client = crdtkv.connect("127.0.0.1:7001")`, or awaited, `crdtkv.aio.connect(…)`; `crdtkv.Node` embeds a node.

`import crdtkv` does not import grpc: what needs it is loaded when it is first used, and says so if it is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crdtkv.errors import (
    ClockSkewError,
    ConfigError,
    CorruptionError,
    CrdtkvError,
    DeadlineExceededError,
    DiskFullError,
    IncompatibleFormatError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyTooLargeError,
    MissingHistoryError,
    NotHomeError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionFailedError,
    RegionRemovedError,
    RegionUnavailableError,
    SessionLostError,
    StorageError,
    StoreClosedError,
    StoreLockedError,
    TokenExpiredError,
    UnauthenticatedError,
    ValueTooLargeError,
    WrongClusterError,
    WrongTypeError,
)
from crdtkv.version import VERSION as __version__

if TYPE_CHECKING:
    from crdtkv import aio
    from crdtkv.client import Client, connect
    from crdtkv.core.causality import Dot, Origin, VersionVector
    from crdtkv.node import Node
    from crdtkv.results import Change, Commit, Conflict, Explanation, MergeResult, Sibling, Status
    from crdtkv.store import Settings, Store
    from crdtkv.store import open_store as open

# Loaded when first used, so that the command line answers at once and `import crdtkv` stays free of grpc.
_EMBEDDED = {
    "open": ("crdtkv.store", "open_store"),
    "Settings": ("crdtkv.store", "Settings"),
    "Store": ("crdtkv.store", "Store"),
    **{name: ("crdtkv.core.causality", name) for name in ("Dot", "Origin", "VersionVector")},
    **{name: ("crdtkv.results", name) for name in ("Change", "Commit", "Conflict", "Explanation", "MergeResult", "Sibling", "Status")},
}
_WITH_GRPC = {
    "connect": ("crdtkv.client", "connect"),
    "Client": ("crdtkv.client", "Client"),
    "Node": ("crdtkv.node", "Node"),
    "aio": ("crdtkv.aio", None),
}


def __getattr__(name: str) -> Any:
    where: tuple[str, str | None] | None = _EMBEDDED.get(name)
    if where is None:
        where = _WITH_GRPC.get(name)
        if where is None:
            raise AttributeError(f"module 'crdtkv' has no attribute {name!r}")
        try:
            importlib.import_module("crdtkv.transport.loading").load_grpc()
            importlib.import_module("grpc")
            importlib.import_module("google.protobuf")
        except ModuleNotFoundError as e:
            raise ImportError(f"crdtkv.{name} needs the extra 'server' ({e.name} is missing): pip install 'crdtkv[server]'") from e
    module, attribute = where
    loaded = importlib.import_module(module)
    found = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Change",
    "Client",
    "ClockSkewError",
    "Commit",
    "ConfigError",
    "Conflict",
    "CorruptionError",
    "CrdtkvError",
    "DeadlineExceededError",
    "DiskFullError",
    "Dot",
    "Explanation",
    "IncompatibleFormatError",
    "InvalidKeyError",
    "InvalidValueError",
    "KeyNotFoundError",
    "KeyTooLargeError",
    "MergeResult",
    "MissingHistoryError",
    "Node",
    "NotHomeError",
    "Origin",
    "OverloadedError",
    "PermissionDeniedError",
    "PreconditionFailedError",
    "RegionRemovedError",
    "RegionUnavailableError",
    "SessionLostError",
    "Settings",
    "Sibling",
    "Status",
    "StorageError",
    "Store",
    "StoreClosedError",
    "StoreLockedError",
    "TokenExpiredError",
    "UnauthenticatedError",
    "ValueTooLargeError",
    "VersionVector",
    "WrongClusterError",
    "WrongTypeError",
    "__version__",
    "aio",
    "connect",
    "open",
]
