"""Hypothesis profiles. `ci` (default) is derandomised: one tree gives one outcome. `soak` looks for luck: `make soak`."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import HealthCheck, settings

# A shell that runs this in the background, or nohup, may have Ctrl-C ignored, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Instance tokens of the stores that tests and their children open: not in the home of whoever runs them.
if "CRDTKV_TESTS_STATE" not in os.environ:
    os.environ["CRDTKV_TESTS_STATE"] = tempfile.mkdtemp(prefix="crdtkv-tests-")
    atexit.register(shutil.rmtree, os.environ["CRDTKV_TESTS_STATE"], ignore_errors=True)
os.environ["XDG_STATE_HOME"] = os.environ["CRDTKV_TESTS_STATE"]

settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", settings.get_profile("ci"), derandomize=False, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
