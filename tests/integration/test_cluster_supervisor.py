"""The supervisor with a stub for a node: processes, ports, files and faults, without gRPC; and that nothing is ever left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crdtkv.cluster import ClusterError, ClusterNotRunningError, LocalCluster, control
from crdtkv.cluster.control import ClusterFile, socket_path
from crdtkv.cluster.last_run import LastRun
from crdtkv.cluster.local import down, launch
from crdtkv.cluster.spec import ClusterSpec, added, default_delays, without
from crdtkv.errors import ConfigError, CrdtkvError

DEADLINE_S = 60.0

STUB = """
import os, socket, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
region = flags["--region"]
if os.path.exists(os.path.join(os.path.dirname(flags["--data"]), region + ".broken")):
    sys.exit("crdtkv: the data directory of " + region + " is corrupt")
listener = socket.create_server(("127.0.0.1", int(flags["--listen"].rpartition(":")[2])))
while True:
    listener.accept()[0].close()
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that nobody reaped yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(path) == 0


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def pids(directory: Path) -> list[int]:
    return [int(region["pid"]) for region in ClusterFile.read(directory).regions.values()]


@pytest.fixture
def stub(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    return (sys.executable, "-I", "-S", str(script))


@pytest.fixture
def cluster(tmp_path: Path, stub: tuple[str, ...]) -> Iterator[LocalCluster]:
    with LocalCluster(("us", "eu", "ap"), directory=tmp_path / "c", node_command=stub) as started:
        yield started


def state(cluster: LocalCluster, region: str) -> str:
    return str(cluster.status()["regions"][region]["state"])


def test_start_writes_the_file_and_stop_leaves_nothing(tmp_path: Path, stub: tuple[str, ...]) -> None:
    cluster = LocalCluster(("us", "eu"), directory=tmp_path / "c", node_command=stub)
    cluster.start()
    file = ClusterFile.read(tmp_path / "c")
    assert {region: entry["address"] for region, entry in file.regions.items()} == cluster.addresses()
    assert all(accepts(address) for address in cluster.addresses().values())
    running = [*pids(tmp_path / "c"), file.supervisor_pid]
    assert all(is_running(pid) for pid in running)
    cluster.stop()
    assert not any(is_running(pid) for pid in running)
    assert not any(accepts(address) for address in cluster.addresses().values())
    assert not (tmp_path / "c" / "cluster.json").exists()
    assert not socket_path(tmp_path / "c").exists()
    cluster.stop()


def test_kill_restart_pause_resume(cluster: LocalCluster) -> None:
    address = cluster.address("us")
    cluster.kill("us")
    assert state(cluster, "us") == "killed"
    assert not accepts(address)
    with pytest.raises(ClusterError, match="does not run: it was killed by SIGKILL"):
        cluster.kill("us")
    cluster.restart("us")
    assert accepts(address) and state(cluster, "us") == "running"
    first = ClusterFile.read(cluster.directory).regions["us"]["pid"]
    cluster.restart("us")
    assert ClusterFile.read(cluster.directory).regions["us"]["pid"] != first
    cluster.stop_node("us")
    assert state(cluster, "us") == "stopped" and not accepts(address)
    cluster.restart("us")
    cluster.pause("eu")
    assert state(cluster, "eu") == "paused"
    assert Path(f"/proc/{ClusterFile.read(cluster.directory).regions['eu']['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    cluster.resume("eu")
    assert state(cluster, "eu") == "running"
    with pytest.raises(ClusterError, match="not paused"):
        cluster.resume("eu")


def test_partitions_and_shapes_reach_the_links(cluster: LocalCluster) -> None:
    def links() -> dict[tuple[str, str], str]:
        return {(link["source"], link["target"]): link["state"] for link in cluster.status()["links"]}

    cluster.partition("us")
    assert {pair for pair, state in links().items() if state == "cut"} == {("us", "eu"), ("eu", "us"), ("us", "ap"), ("ap", "us")}
    cluster.heal("us", "eu")
    assert links()["us", "eu"] == "open" and links()["ap", "us"] == "cut"
    cluster.heal()
    cluster.partition("us", "eu", one_way=True)
    assert (links()["us", "eu"], links()["eu", "us"]) == ("held", "open")
    cluster.partition("us", "eu", half_open=True)
    assert links()["eu", "us"] == "held"
    cluster.heal("eu")
    assert set(links().values()) == {"open"}
    cluster.shape("us", "ap", delay_ms=7, bytes_per_s=1000)
    shaped = {(x["source"], x["target"]): (x["delay_ms"], x["bytes_per_s"]) for x in cluster.status()["links"]}
    assert shaped["us", "ap"] == shaped["ap", "us"] == (7, 1000)
    assert shaped["us", "eu"] == (46, None)


def test_a_region_is_added_and_removed_with_its_links(cluster: LocalCluster) -> None:
    def call(op: str, **args: Any) -> Any:
        return control.call(cluster.directory, op, **args)

    before = ClusterFile.read(cluster.directory).regions
    address = call("add", region="sa", latency={"us": 9})
    assert accepts(address) and state(cluster, "sa") == "running"
    links = {(link["source"], link["target"]): (link["delay_ms"], link["state"]) for link in cluster.status()["links"]}
    assert links["sa", "us"] == links["us", "sa"] == (9, "open") and len(links) == 12
    with pytest.raises(ConfigError, match="in this cluster already: it has us, eu, ap, sa"):
        call("add", region="sa")
    call("partition", region="sa", other="eu")
    call("remove", region="eu")
    assert list(ClusterFile.read(cluster.directory).regions) == ["us", "ap", "sa"]
    assert not accepts(str(before["eu"]["address"])) and not is_running(int(before["eu"]["pid"]))
    assert {x["source"] for x in cluster.status()["links"]} == {"us", "ap", "sa"}
    cluster.kill("us")
    cluster.restart("us")  # with what it is told now: the others as they are
    call("remove", region="us")
    call("remove", region="ap")
    with pytest.raises(ConfigError, match="the only one of this cluster"):
        call("remove", region="sa")


def test_what_ran_last_stays_when_the_cluster_stops(cluster: LocalCluster) -> None:
    assert LastRun.read(cluster.directory) == LastRun.of(cluster.spec)
    spec = without(added(cluster.spec, "sa", {"us": 9}), "eu")
    control.call(cluster.directory, "add", region="sa", latency={"us": 9})
    control.call(cluster.directory, "remove", region="eu")
    cluster.shape("us", "ap", delay_ms=1)
    (cluster.directory / "data").mkdir(exist_ok=True)
    (cluster.directory / "data" / "moon.broken").touch()
    with pytest.raises(ClusterError):
        control.call(cluster.directory, "add", region="moon")
    cluster.stop()
    last = LastRun.read(cluster.directory)
    assert last == LastRun.of(spec) and last.regions == ("us", "ap", "sa")
    assert last.delay_ms["sa", "us"] == 9 and last.delay_ms["us", "ap"] == 82, "a fault is not gone on with"


def test_a_cluster_that_was_never_ready_did_not_run(tmp_path: Path, stub: tuple[str, ...]) -> None:
    with LocalCluster(("us", "eu"), directory=tmp_path / "c", node_command=stub):
        pass
    (tmp_path / "c" / "data").mkdir(exist_ok=True)
    (tmp_path / "c" / "data" / "moon.broken").touch()
    with pytest.raises(ClusterError):
        LocalCluster(("us", "moon"), directory=tmp_path / "c", node_command=stub).start()
    assert LastRun.read(tmp_path / "c").regions == ("us", "eu")


def test_a_region_that_does_not_start_is_not_in_the_cluster(cluster: LocalCluster) -> None:
    (cluster.directory / "data").mkdir(exist_ok=True)
    (cluster.directory / "data" / "sa.broken").touch()
    with pytest.raises(ClusterError, match="the node of sa ended with exit status 1: the data directory of sa is corrupt"):
        control.call(cluster.directory, "add", region="sa")
    assert list(cluster.status()["regions"]) == ["us", "eu", "ap"]
    (cluster.directory / "data" / "sa.broken").unlink()
    assert accepts(control.call(cluster.directory, "add", region="sa"))


def test_unknown_regions_are_named_with_the_known_ones(cluster: LocalCluster) -> None:
    for request in (cluster.kill, cluster.restart, cluster.pause, cluster.resume, cluster.partition, cluster.heal):
        with pytest.raises(ConfigError, match=r"unknown region 'moon': this cluster has us, eu, ap"):
            request("moon")
    with pytest.raises(ConfigError, match="twice"):
        cluster.partition("us", "us")


def test_a_crash_is_reported_and_the_node_restarted_if_so_set(tmp_path: Path, stub: tuple[str, ...]) -> None:
    with LocalCluster(("us", "eu"), directory=tmp_path / "c", node_command=stub, restart_crashed=True) as cluster:
        crashed = pids(tmp_path / "c")[0]
        os.kill(crashed, signal.SIGSEGV)
        eventually(lambda: ClusterFile.read(tmp_path / "c").regions["us"]["pid"] not in (crashed, None), "it runs again")
        eventually(lambda: "us runs again" in (tmp_path / "c" / "supervisor.log").read_text(), "and that is reported")
        assert "us was killed by SIGSEGV" in (tmp_path / "c" / "supervisor.log").read_text()
        assert accepts(cluster.address("us"))


@pytest.mark.parametrize("watchdog", ["", "1"])
def test_nothing_outlives_a_killed_supervisor(
    tmp_path: Path, stub: tuple[str, ...], watchdog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRDTKV_LAUNCHER_WATCHDOG", watchdog)  # the way of systems whose kernel does not tell children
    cluster = LocalCluster(("us", "eu"), directory=tmp_path / "c", node_command=stub)
    cluster.start()
    cluster.pause("eu")  # a stopped process cannot notice anything by itself
    supervisor = ClusterFile.read(tmp_path / "c").supervisor_pid
    running = [*pids(tmp_path / "c"), supervisor]
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not any(is_running(pid) for pid in running), "the nodes died with it")
    eventually(lambda: not listens(ClusterFile.read(tmp_path / "c").control), "its threads let go of the socket")
    with pytest.raises(ClusterNotRunningError, match="not running any more"):
        cluster.kill("us")
    with pytest.raises(ClusterNotRunningError):
        cluster.stop()


def test_an_owned_cluster_ends_with_its_owner(tmp_path: Path, stub: tuple[str, ...]) -> None:
    program = f"""
import os, sys
from crdtkv.cluster import LocalCluster
cluster = LocalCluster(("us",), directory={str(tmp_path / "c")!r}, node_command={stub!r}).start()
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        running = [*pids(tmp_path / "c"), ClusterFile.read(tmp_path / "c").supervisor_pid]
        owner.kill()
    eventually(lambda: not any(is_running(pid) for pid in running), "all of it ended")
    eventually(lambda: not (tmp_path / "c" / "cluster.json").exists(), "in an orderly way")


def test_an_owner_that_asks_and_ends_leaves_its_nodes_their_time(tmp_path: Path) -> None:
    """Ctrl-C while a cluster starts sends SIGTERM and closes the pipe: taken for someone who asks twice, nodes were killed on their way
    down, and left their sockets' directories behind."""
    script = tmp_path / "stub.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.5)\n    pathlib.Path(__file__).with_name('in-order').touch()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n" + STUB
    )
    spec = ClusterSpec(("us",), tmp_path / "c", default_delays(("us",)), node_command=(sys.executable, "-I", "-S", str(script)))
    supervisor, _ = launch(spec, owned=True)
    supervisor.terminate()
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    assert supervisor.wait(DEADLINE_S) == 0
    assert (tmp_path / "in-order").exists()


def test_a_detached_cluster_goes_on_until_down(tmp_path: Path, stub: tuple[str, ...]) -> None:
    spec = ClusterSpec(("us", "eu"), tmp_path / "c", default_delays(("us", "eu")), node_command=stub)
    supervisor, addresses = launch(spec, owned=False)
    try:
        assert all(accepts(address) for address in addresses.values())
        running = pids(tmp_path / "c")
        with pytest.raises(ClusterError, match=r"a cluster runs in .* already"):
            launch(spec, owned=False)
        assert all(is_running(pid) for pid in running)
    finally:
        down(tmp_path / "c")
        assert supervisor.wait(DEADLINE_S) == 0
    assert not any(is_running(pid) for pid in running)
    with pytest.raises(ClusterNotRunningError):
        down(tmp_path / "c")


def test_a_port_in_use_is_named_and_nothing_is_left(tmp_path: Path, stub: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(for region us\) is in use.*--base-port"):
            LocalCluster(("us",), directory=tmp_path / "c", base_port=port, node_command=stub).start()
    assert not (tmp_path / "c").exists()


def test_a_node_that_does_not_start_is_quoted_and_the_others_are_stopped(tmp_path: Path, stub: tuple[str, ...]) -> None:
    (tmp_path / "c" / "data").mkdir(parents=True)
    (tmp_path / "c" / "data" / "eu.broken").touch()
    with pytest.raises(ClusterError, match="the node of eu ended with exit status 1: the data directory of eu is corrupt") as caught:
        LocalCluster(("us", "eu"), directory=tmp_path / "c", node_command=stub).start()
    assert "\n" not in str(caught.value)
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "c") not in processes
    assert not (tmp_path / "c" / "cluster.json").exists()


def test_wrong_settings_are_refused_before_anything_starts() -> None:
    for wrong, text in (
        ({"regions": ()}, "at least one"),
        ({"regions": ("us", "us")}, "twice"),
        ({"regions": ("US!",)}, "not a valid name"),
        ({"latency_ms": {("us", "moon"): 1}}, "this cluster has"),
        ({"latency_ms": -1}, "not in 0"),
        ({"base_port": 70000}, "base-port"),
    ):
        with pytest.raises(ConfigError, match=text):
            LocalCluster(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_hostile_requests_get_an_answer_and_change_nothing(cluster: LocalCluster) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(ClusterFile.read(cluster.directory).control)
        with connection.makefile("rwb") as stream:
            requests = (b"garbage", b"[]", b'{"op": "explode", "args": {}}', b'{"op": "kill", "args": {"planet": 1}}', b'{"op": "kill"}')
            for request in requests:
                stream.write(request + b"\n")
                stream.flush()
                assert json.loads(stream.readline())["error"]["code"] == "ConfigError"
    assert all(state(cluster, region) == "running" for region in cluster.regions)


def test_an_error_keeps_its_class_across_the_control_socket(cluster: LocalCluster) -> None:
    with pytest.raises(CrdtkvError) as caught:
        cluster.partition("us", "eu", one_way=True, half_open=True)
    assert type(caught.value) is ConfigError


def test_a_temporary_directory_whose_path_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    path = control.socket_path(long)
    assert len(os.fsencode(path)) <= 100 and path != control.socket_path(tmp_path / ("y" * 120))
