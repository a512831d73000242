"""`transport.loading`: gRPC is loaded with direct polling, and nothing else of the process changes.

Each case is a process of its own: gRPC reads its flags once.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from crdtkv.transport import loading

SEEN = """
import os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            seen.append(os.environ.get("GRPC_EXPERIMENTS"))
sys.meta_path.insert(0, Watch())
import {module}
print(seen[0], os.environ.get("GRPC_EXPERIMENTS"))
"""


def flags_seen(module: str, **environment: str) -> list[str]:
    """What gRPC found in the environment as it was loaded, and what is there afterwards."""
    clean = {name: value for name, value in os.environ.items() if name != loading.VARIABLE}
    code = SEEN.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr  # gRPC would name a flag that it does not know there
    return done.stdout.split()


@pytest.mark.parametrize("module", ["crdtkv.client", "crdtkv.aio"])
def test_grpc_is_loaded_to_poll_directly_and_the_environment_is_as_it_was(module: str) -> None:
    assert flags_seen(module) == [loading.POLL_DIRECTLY, "None"]


def test_what_the_user_set_is_left_alone() -> None:
    assert flags_seen("crdtkv.client", GRPC_EXPERIMENTS="event_engine_client") == ["event_engine_client", "event_engine_client"]


THREADS = """
import os, sys, threading
import crdtkv
sys.setswitchinterval(1e-6)
begin = threading.Barrier(8)
def connect():
    begin.wait()
    crdtkv.connect
threads = [threading.Thread(target=connect) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(os.environ.get("GRPC_EXPERIMENTS"))
"""


def test_threads_that_connect_at_once_load_it_once() -> None:
    """Each found it not loaded yet, and all but one failed to put the environment back: `crdtkv.connect` raised KeyError."""
    clean = {name: value for name, value in os.environ.items() if name != loading.VARIABLE}
    done = subprocess.run([sys.executable, "-c", THREADS], env=clean, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.parametrize(("release", "known"), [("1.76.0", True), ("1.85.1", True), ("1.86.0", False), ("2.0.0", False), ("dev", False)])
def test_a_release_that_was_not_looked_at_keeps_its_own_choice(monkeypatch: pytest.MonkeyPatch, release: str, known: bool) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: release)
    assert loading._has_flags() is known
