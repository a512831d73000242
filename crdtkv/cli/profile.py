"""`crdtkv profile`: a flame graph of a running node, or of a workload that is started for it. By py-spy, from outside, at full speed."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from crdtkv.bench.schedule import parse_seconds
from crdtkv.bench.ycsb import WORKLOADS
from crdtkv.cli.errors import DONE
from crdtkv.cli.output import JSON, emit, emit_json, output_option
from crdtkv.cli.place import Place, where_options_if_any
from crdtkv.cluster.spec import DEFAULT_REGIONS
from crdtkv.errors import ConfigError, CrdtkvError

SAMPLES_PER_S: Final = 250
LOAD_MARGIN_S: Final = 60.0
"""A workload that is started for it goes on so much longer than it is looked at, and is then stopped."""
STOP_S: Final = 20.0


@click.command()
@click.argument("workload", type=click.Choice(tuple(WORKLOADS)), default="a", metavar="[WORKLOAD]")
@click.option("--target", type=click.Choice(["embedded", "node", "cluster"]), default="embedded", show_default=True, help="What is loaded.")
@click.option("--duration", default="10s", show_default=True, metavar="DURATION", help="How long; a number alone is seconds.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("profile.svg"), show_default=True, help="Where the graph goes."
)
@output_option
@where_options_if_any
def profile(workload: str, target: str, duration: str, out: Path, place: Place | None, output: str) -> int:
    """Draw where the time goes: wide is slow.

    With --at or --region: of that node, which must run on this machine, doing what it does. Else of the
    workload, as `bench load` does it, and of the nodes that are started for it if --target has any.
    """
    seconds = parse_seconds(duration, "duration")
    if seconds < 1:
        raise ConfigError(f"duration: must be at least 1s, got {duration}", setting="duration")
    spy = _py_spy()
    with _loading(workload, target, seconds) if place is None else contextlib.nullcontext(_pid(place)) as pid:
        recording = ["record", "--pid", str(pid), "--subprocesses", "--nonblocking", "--rate", str(SAMPLES_PER_S)]
        command = [spy, *recording, "--duration", str(round(seconds)), "--output", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise CrdtkvError(f"py-spy could not look into process {pid}: {said[-1] if said else 'it gave no reason'}")
    if output == JSON:
        emit_json({"graph": str(out), "pid": pid, "seconds": seconds})
    else:
        emit(f"graph: {out}")
    return DONE


def _py_spy() -> str:
    found = shutil.which(str(Path(sys.executable).with_name("py-spy"))) or shutil.which("py-spy")
    if found is None:
        raise ConfigError("profile needs py-spy: pip install py-spy", setting="profile")
    return found


def _pid(place: Place) -> int:
    with place.connect() as client:
        return client.status().pid


@contextlib.contextmanager
def _loading(workload: str, target: str, seconds: float) -> Iterator[int]:
    """A process that does the workload, once it measures; its pid."""
    command = [sys.executable, "-m", "crdtkv.cli.profile", workload, target, str(seconds + LOAD_MARGIN_S)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        if not process.stdout.readline():  # a line comes when it measures; none, if it ends before that
            said = process.stderr.read().strip().splitlines()
            raise CrdtkvError(f"the workload ended before it began: {said[-1] if said else f'status {process.wait()}'}")
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)  # its nodes end with it
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _load(workload: str, target: str, seconds: float) -> None:
    """What that process does: as `bench load`, and says when it measures."""
    from crdtkv.bench import load_run
    from crdtkv.bench.load import LoadSettings

    said = False

    def tell(now_s: float) -> None:
        nonlocal said
        if now_s >= 0 and not said:
            said = True
            print("measuring", flush=True)

    callers = 1 if target == "embedded" else 64
    settings = LoadSettings(
        workload=WORKLOADS[workload], records=10_000, size=100, callers=callers, rate=None, duration_s=seconds, warmup_s=1.0, seed=1
    )
    if target == "embedded":
        load_run.load_embedded(settings, engine=None, durability=None, on_progress=tell)
    else:
        regions = ("local",) if target == "node" else DEFAULT_REGIONS
        load_run.load_cluster(settings, regions, {}, {}, tell, engine=None, durability=None)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _load(sys.argv[1], sys.argv[2], float(sys.argv[3]))
