"""The command line as a user types it, against real nodes: up, write, cut, conflict, heal, explain, kill, restart, down."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import crdtkv

DEADLINE_S = 90.0
CRDTKV = (sys.executable, "-m", "crdtkv")
REGIONS = ("us", "eu", "ap")


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


def environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRDTKV_")}
    return {**kept, "PYTHONPATH": str(root), "NO_COLOR": "1"}


class Shell:
    """Types commands in a directory."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.directory = directory
        self.environment = environment(root)

    def __call__(self, *args: str, status: int = 0, stdin: bytes | None = None) -> str:
        ran = subprocess.run([*CRDTKV, *args], cwd=self.directory, env=self.environment, input=stdin, capture_output=True, timeout=90)
        assert ran.returncode == status, f"crdtkv {' '.join(args)}: status {ran.returncode}\n{ran.stdout.decode()}{ran.stderr.decode()}"
        if status in (1, 2, 3):
            assert ran.stderr.startswith(b"crdtkv: ") and ran.stderr.count(b"\n") == 1, ran.stderr
            return ran.stderr.decode()
        return ran.stdout.decode()

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "-o", "json"))

    @contextmanager
    def start(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        pipe = subprocess.PIPE
        with subprocess.Popen([*CRDTKV, *args], cwd=self.directory, env=self.environment, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()  # of no effect if the test has seen it end

    def read(self, region: str, question: Callable[[crdtkv.Client], Any]) -> Any:
        """Ask a region from this process, for what is asked again and again."""
        file = json.loads((self.directory / ".crdtkv-cluster" / "cluster.json").read_text())
        with crdtkv.connect(file["regions"][region]["address"]) as client:
            return question(client)

    def has(self, region: str, key: str) -> bool:
        return bool(self.read(region, lambda client: client.exists(key)))

    def converged(self) -> bool:
        return len({self.read(region, lambda client: client.digest()) for region in REGIONS}) == 1

    def cluster_pids(self, cluster: str = ".crdtkv-cluster") -> list[int]:
        file = json.loads((self.directory / cluster / "cluster.json").read_text())
        return [file["supervisor_pid"], *(entry["pid"] for entry in file["regions"].values())]


def gone(pids: list[int]) -> bool:
    """None runs; a zombie that its parent has not reaped yet does not."""
    stats = [Path(f"/proc/{pid}/stat") for pid in pids]
    return all(not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z" for stat in stats)


@pytest.fixture(scope="module")
def root(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Shell]:
    """A detached cluster with a small delay."""
    shell = Shell(tmp_path_factory.mktemp("cli"), root)
    shell("cluster", "up", "--detach", "--latency", "5ms", "--engine", "memory", "--metrics")
    pids = shell.cluster_pids()
    yield shell
    shell("cluster", "down")
    assert gone(pids)


def test_what_is_put_in_one_region_is_read_in_another(shell: Shell) -> None:
    shell("put", "greeting", "hello", "--region", "us")
    eventually(lambda: shell.has("eu", "greeting") and shell.has("ap", "greeting"), "replicated")
    assert shell("get", "greeting", "--region", "eu") == "hello\n"
    address = json.loads((shell.directory / ".crdtkv-cluster/cluster.json").read_text())["regions"]["ap"]["address"]
    assert shell.json("get", "greeting", "--at", address) == {"key": "greeting", "found": True, "type": "register", "value": "hello"}
    shell("put", "blob", "-", "--region", "us", stdin=b"\xff\x00")
    assert shell.json("get", "blob", "--region", "us")["value"] == {"$bytes": "/wA="}


def test_each_node_has_metrics_and_keeps_their_port(shell: Shell) -> None:
    def metrics(region: str) -> str:
        file = json.loads((shell.directory / ".crdtkv-cluster" / "cluster.json").read_text())
        with urllib.request.urlopen(f"http://{file['regions'][region]['metrics']}/metrics", timeout=DEADLINE_S) as answer:
            return str(answer.read().decode())

    for region in REGIONS:
        text = metrics(region)
        assert f'region="{region}"' in text
        assert text.count("crdtkv_peer_connected{") == 2
    shell("cluster", "restart", "ap")
    assert "crdtkv_ready 1.0" in metrics("ap")


def test_partition_conflict_heal_explain(shell: Shell) -> None:
    shell("put", "story", "before", "--region", "us")
    eventually(lambda: shell.converged(), "one state before the cut")
    shell("cluster", "partition", "us")
    shell("put", "story", "from us", "--region", "us")
    shell("put", "story", "from eu", "--region", "eu")
    shell("sadd", "both", "one", "--region", "us")
    shell("sadd", "both", "two", "--region", "ap")
    eventually(lambda: shell.has("eu", "both"), "the others still talk to each other")
    assert not shell.converged()
    assert shell("smembers", "both", "--region", "us") == "one\n"
    assert "us → eu" in shell("cluster", "status") and "cut" in shell("cluster", "status")
    vectors = [region["node"]["vv"] for region in shell.json("cluster", "status")["regions"].values()]
    assert vectors[0] and all(type(seq) is int for vv in vectors for seq in vv.values()), "as everywhere in JSON: seqs by origin"
    shell("cluster", "heal")
    eventually(lambda: shell.converged(), "one state after the heal")
    values = {shell.read(region, lambda client: client["story"]) for region in REGIONS}
    assert len(values) == 1 and values <= {"from us", "from eu"}
    assert sorted(shell("smembers", "both", "--region", "us").split()) == ["one", "two"]
    story = shell("explain", "story", "--region", "eu")
    assert "from us" in story and "from eu" in story and "us@" in story and "eu@" in story
    assert any(conflict["key"] == "story" for conflict in map(json.loads, shell("conflicts", "-o", "json", "--region", "eu").splitlines()))


@pytest.mark.parametrize("kind", ["--one-way", "--half-open"])
def test_silent_cuts_heal_too(shell: Shell, kind: str) -> None:
    shell("cluster", "partition", "us-eu", kind)
    shell("cluster", "partition", "us-ap", kind)
    shell("put", f"silent{kind}", "x", "--region", "us")
    assert shell.json("get", f"silent{kind}", "--region", "us")["found"]
    held = [link for link in shell.json("cluster", "status")["links"] if link["state"] == "held"]
    assert len(held) == (2 if kind == "--one-way" else 4)
    shell("cluster", "heal")
    eventually(lambda: shell.has("eu", f"silent{kind}"), "arrived after the heal")
    eventually(lambda: shell.converged(), "one state")


def test_a_region_comes_and_goes(shell: Shell) -> None:
    shell("put", "before", "1", "--region", "us")
    shell("region", "drain", "us", "--region", "eu")
    assert "us is being drained: it takes no writes and no changes of regions" in shell("region", "add", "sa", "--region", "us", status=3)
    assert shell("cluster", "add", "sa", "--latency", "2ms").startswith("sa is a member, at 127.0.0.1:"), "another node records it"
    shell("region", "add", "us", "--region", "eu")
    eventually(lambda: shell.has("sa", "before"), "the newcomer has what was there")
    shell("put", "from sa", "1", "--region", "sa")
    assert "in this cluster already: it has us, eu, ap, sa" in shell("cluster", "add", "sa", status=2)
    shell("cluster", "restart", "eu")
    told = shell("region", "drain", "sa", "--region", "eu").splitlines()
    again = "sa takes no more writes (crdtkv region add sa --region eu: it does again); waits for "
    assert all(line.startswith(again) for line in told[:-1])
    assert told[-1] == "sa is drained: crdtkv region remove sa --region eu"
    shell(*told[-1].split()[4:])
    shell("cluster", "remove", "sa")
    shell("cluster", "restart", "ap")
    assert shell("verify").startswith("us, eu, ap agree")
    assert all(shell.has(region, "from sa") for region in REGIONS)


def test_a_region_is_listed_where_the_cluster_says_it_is(shell: Shell) -> None:
    """Of regions whose address is not recorded there was none, of others the port of the emulator's link from whom was asked."""
    addresses = {region: row["address"] for region, row in shell.json("cluster", "status")["regions"].items()}

    def listed(*where: str) -> dict[str, str]:
        return {row["region"]: row["address"] for row in shell.json("region", "list", *where)["regions"]}

    assert {region: listed("--region", "us")[region] for region in REGIONS} == addresses
    dialled = listed("--at", addresses["us"])
    assert all(dialled[region] for region in REGIONS)
    shell("region", "drain", "eu", "--region", "us", "--no-wait")
    assert listed("--region", "us")["eu"] == addresses["eu"]
    assert shell("region", "add", "eu", "--region", "us") == f"eu is a member again, at {addresses['eu']}, and takes writes\n"


def test_kill_and_restart_and_pause(shell: Shell) -> None:
    shell("cluster", "kill", "ap")
    shell("get", "greeting", "--region", "ap", "--timeout", "1", status=3)
    shell("put", "while-away", "x", "--region", "us")
    assert "not run" in shell("cluster", "kill", "ap", status=1)
    shell("cluster", "restart", "ap")
    eventually(lambda: shell.has("ap", "while-away"), "caught up")
    shell("cluster", "pause", "eu")
    shell("get", "greeting", "--region", "eu", "--timeout", "0.5", status=3)
    shell("cluster", "resume", "eu")
    eventually(lambda: shell.converged(), "one state")


def test_wrong_input_against_a_node(shell: Shell) -> None:
    shell("put", "text", "v", "--region", "us")
    before = shell("digest", "--region", "us")
    shell("incr", "text", "--region", "us", status=2)
    shell("put", "k" * 2000, "v", "--region", "us", status=2)
    shell("put", "big", "--json", "18446744073709551616", "--region", "us", status=2)
    shell("get", "absent", "--region", "us", status=1)
    assert "us, eu, ap" in shell("get", "text", "--region", "moon", status=2)
    assert "us, eu, ap" in shell("cluster", "kill", "moon", status=2)
    assert "already" in shell("cluster", "up", "--detach", status=1)
    assert shell("digest", "--region", "us") == before


def test_watch_prints_changes_until_ctrl_c(shell: Shell) -> None:
    with shell.start("watch", "w/", "-o", "json", "--region", "eu") as watching:
        assert watching.stdout is not None and watching.stderr is not None

        eventually(lambda: shell.read("eu", lambda client: client.status().watchers) == 1, "the watch is open")
        shell("incr", "w/n", "--region", "eu")
        change = json.loads(watching.stdout.readline())
        assert (change["key"], change["type"]) == ("w/n", "counter")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(DEADLINE_S) == 130
        assert "Traceback" not in watching.stderr.read()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_foreground_stops_everything_on_a_signal(tmp_path: Path, root: Path, number: signal.Signals, status: int) -> None:
    shell = Shell(tmp_path, root)
    with shell.start("cluster", "up", "--regions", "us,eu", "--latency", "none") as foreground:
        assert foreground.stdout is not None
        lines = [foreground.stdout.readline() for _ in range(3)]
        assert lines[1].startswith("us ") and lines[2].startswith("eu ")
        pids = shell.cluster_pids()
        shell("put", "k", "v", "--region", "us")
        foreground.send_signal(number)
        assert foreground.wait(DEADLINE_S) == status
    assert gone(pids)
    shell("cluster", "status", status=1)


def test_data_survives_down_and_up_and_a_sigkill_of_the_supervisor(tmp_path: Path, root: Path) -> None:
    shell = Shell(tmp_path, root)
    up = ("cluster", "up", "--detach", "--regions", "us,eu", "--latency", "none", "--durability", "sync")
    shell(*up)
    shell("put", "k", "v", "--region", "us")
    pids = shell.cluster_pids()
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: gone(pids[1:]), "the nodes died with the supervisor")
    assert "not running any more" in shell("cluster", "status", status=1)
    shell(*up)
    assert shell("get", "k", "--region", "us") == "v\n"
    eventually(lambda: shell.has("eu", "k"), "replicated")
    pids = shell.cluster_pids()
    shell("cluster", "down")
    assert gone(pids)


def test_up_goes_on_with_what_ran_last_as_the_hint_says(tmp_path: Path, root: Path) -> None:
    """It started an empty us, eu and ap beside the regions that had been there, and the hint of every other command led there."""
    shell, at = Shell(tmp_path, root), ("--dir", "my cluster")

    def regions() -> list[str]:
        return list(json.loads((tmp_path / "my cluster" / "cluster.json").read_text())["regions"])

    def up_as_told(*args: str) -> str:
        command = re.fullmatch(r".*start .*with `crdtkv (.*)`\n", shell("cluster", "status", *at, status=1))
        assert command is not None
        return shell(*shlex.split(command[1]), "--detach", *args)

    shell("cluster", "up", *at, "--detach", "--regions", "a,b", "--latency", "7ms", "--engine", "lmdb", "--durability", "sync")
    shell("put", "k", "v", "--region", "a", *at)
    shell("cluster", "add", "c", "--latency", "2ms", *at)
    supervisor, *nodes = shell.cluster_pids("my cluster")
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: gone(nodes), "the nodes died with the supervisor")
    told = up_as_told().splitlines()
    assert [line.split()[0] for line in told[1:4]] == regions() == ["a", "b", "c"]
    assert told[3].endswith("  2 ms  2 ms") and told[2].split()[2:4] == ["7", "ms"]
    assert shell("get", "k", "--region", "a", *at) == "v\n"
    shell("region", "drain", "c", "--region", "a", *at)
    shell("region", "remove", "c", "--region", "a", *at)
    shell("cluster", "down", *at)
    assert "c runs, alone: " in (refused := shell("cluster", "up", *at, "--detach", status=1))
    assert refused.endswith("; leave it out: --regions a,b\n")
    up_as_told("--regions", "a,b")
    shell("cluster", "down", *at)
    up_as_told()
    assert regions() == ["a", "b"]
    shell("cluster", "remove", "b", *at)
    shell("cluster", "down", *at)
    up_as_told()
    assert regions() == ["a"]
    shell("cluster", "down", *at)


def test_regions_that_are_named_run_and_others_are_told_of(tmp_path: Path, root: Path) -> None:
    shell = Shell(tmp_path, root)
    shell("cluster", "up", "--detach", "--regions", "us,eu", "--latency", "3ms", "--jitter", "1ms")
    shell("put", "k", "v", "--region", "us")
    eventually(lambda: shell.has("eu", "k"), "replicated")
    shell("cluster", "down")
    with shell.start("cluster", "up", "--regions", "ap,us") as foreground:
        assert foreground.stdout is not None and foreground.stderr is not None
        assert foreground.stderr.readline() == "left out: eu, which ran here last; their data stays in .crdtkv-cluster/data\n"
        eventually(lambda: foreground.stdout is not None and "Ctrl-C" in foreground.stdout.readline(), "ready")
        eventually(lambda: shell.has("ap", "k"), "a region that is new gets everything")
        foreground.send_signal(signal.SIGINT)
        assert foreground.wait(DEADLINE_S) == 130
    told = shell("cluster", "up", "--detach", "--regions", "us,eu,ap").splitlines()
    assert [line.split()[0] for line in told[1:4]] == ["us", "eu", "ap"]
    assert told[3].endswith("82 ms  117 ms"), "of the pairs that did not run last, the published delays"
    shell("cluster", "down")


def test_a_wrong_file_of_settings_is_bad_input_and_nothing_is_made(tmp_path: Path, root: Path) -> None:
    """It was status 1, with the words of a node that had been started with it, and directories of the cluster stayed."""
    shell = Shell(tmp_path, root)
    (tmp_path / "nodes.toml").write_text("[store]\nlog_keep_byte = 1\n")
    refused = shell("cluster", "up", "--regions", "us", "--config", "nodes.toml", status=2)
    assert refused == "crdtkv: nodes.toml: unknown setting store.log_keep_byte; did you mean store.log_keep_bytes?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["nodes.toml"]


def test_a_port_in_use_and_a_second_owner_are_named(tmp_path: Path, root: Path) -> None:
    shell = Shell(tmp_path, root)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in shell("cluster", "up", "--regions", "us", "--base-port", port, status=2)
        shell("node", "--region", "us", "--listen", f"127.0.0.1:{port}", status=2)
    assert list(tmp_path.iterdir()) == []
    with shell.start("node", "--region", "us", "--listen", "127.0.0.1:0", "--data", "d") as first:
        assert first.stdout is not None
        assert "listening" in first.stdout.readline()
        refused = shell("node", "--region", "us", "--listen", "127.0.0.1:0", "--data", "d", "--log-level", "error", status=1)
        assert f"process {first.pid}" in refused
        first.terminate()
        assert first.wait(DEADLINE_S) == 0
