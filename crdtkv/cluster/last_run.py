"""What the local cluster of a directory last was: the regions, the network between them and the engine, for `up` to go on with.

`last-run.json` is replaced atomically when a cluster is ready, and whenever a region joins or leaves it. Unlike `cluster.json`, which
says where a cluster runs, it stays when the cluster stops. Faults ordered while it ran (`shape`, `partition`) are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from crdtkv.cluster.control import replace_text
from crdtkv.cluster.spec import DEFAULT_REGIONS, ClusterSpec
from crdtkv.errors import StorageError

FILE_NAME: Final = "last-run.json"
FILE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class LastRun:
    """Attributes as of `ClusterSpec`; the defaults are those of a directory where nothing ran yet."""

    regions: tuple[str, ...] = DEFAULT_REGIONS
    delay_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)
    jitter_ms: float = 0.0
    bytes_per_s: float | None = None
    engine: str | None = None

    @classmethod
    def of(cls, spec: ClusterSpec) -> Self:
        """What is to be known of a cluster when it runs no more."""
        return cls(spec.regions, spec.delay_ms, spec.jitter_ms, spec.bytes_per_s, spec.engine)

    def write(self, directory: Path) -> None:
        """Replace the file in one step."""
        document = {
            "version": FILE_VERSION,
            "regions": self.regions,
            "delay_ms": [[source, target, delay] for (source, target), delay in self.delay_ms.items()],
            "jitter_ms": self.jitter_ms,
            "bytes_per_s": self.bytes_per_s,
            "engine": self.engine,
        }
        replace_text(directory / FILE_NAME, json.dumps(document) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the file of a directory; the defaults if there is none.

        Raises:
            StorageError: it cannot be read or is not what this version writes.
        """
        path = directory / FILE_NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != FILE_VERSION:
                raise StorageError(f"{path} has version {found['version']}; this crdtkv knows version {FILE_VERSION}", path=str(path))
            delay_ms = {(str(source), str(target)): float(delay) for source, target, delay in found["delay_ms"]}
            regions = tuple(str(region) for region in found["regions"])
            rate = found["bytes_per_s"]
            return cls(regions, delay_ms, float(found["jitter_ms"]), None if rate is None else float(rate), found["engine"])
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise StorageError(f"{path} cannot be read: {e}; delete it, and give `cluster up` the --regions", path=str(path)) from e
