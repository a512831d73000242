"""Loading gRPC with the I/O engine that suits one connection with many small messages.

Since 1.7x gRPC's core reads sockets in threads of its own ("event engine") and hands each event on to the thread that polls
for the application. Under asyncio that is a third thread between the socket and the event loop. Without it the polling
thread reads the socket itself. Measured in one run on 2 cores, a bare stream at 1,000 messages/s: 278 → 211 µs and 269 →
153 µs from one process to the other, 231 → 145 and 234 → 119 µs of the receiver's CPU per message.

The choice is an experiment flag, read once, when the library is loaded; so the environment is as it was afterwards, and children
inherit nothing. A user's own `GRPC_EXPERIMENTS`, and a gRPC that is already loaded, are left alone; so is a release of which it
is not known that it has these flags, because it would complain about them on stderr.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import threading
from typing import Final

VARIABLE: Final = "GRPC_EXPERIMENTS"
POLL_DIRECTLY: Final = "-event_engine_client,-event_engine_listener"
KNOWN_BELOW: Final = (1, 86)
"""The first release that was not looked at."""

_loading = threading.Lock()


def load_grpc() -> None:
    """Import grpc, as the module says. To be called before anything else imports it; a missing grpc is left for that to report.

    Any thread, and several at once: programs connect in threads.
    """
    with _loading:
        if "grpc" in sys.modules or VARIABLE in os.environ or not _has_flags():
            return
        os.environ[VARIABLE] = POLL_DIRECTLY
        try:
            importlib.import_module("grpc")
        finally:
            del os.environ[VARIABLE]


def _has_flags() -> bool:
    try:
        major, minor, *_ = importlib.metadata.version("grpcio").split(".")
        return (int(major), int(minor)) < KNOWN_BELOW
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
