"""Walks through docs/operations.md on a real cluster under load, typing the commands that stand there, and judges the end from outside.

A step counts only if what it is about really happened: a node died with writes on their way, the disk was full and refused, an older
state was put back, the log was dropped beyond a region that was away while its keys were deleted. Else the walk fails, as it does when
a command answers otherwise than documented, or the judge finds anything wrong. The transcript goes to stdout.

    python -m tests.acceptance [--pace SECONDS] [--directory DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from crdtkv import interrupts
from tests.acceptance.judge import Told, connect, judge, read

ROOT = Path(__file__).parents[2]
DISK_BYTES = 256 << 20
PAGE_BYTES = 4096
DEADLINE_S = 120.0
CONFIG = """\
[store]                       # small, so that minutes show what takes days
log_segment_bytes = 262_144
log_keep_bytes = 524_288
log_bytes_max = 2_097_152
"""


class Walk:
    """The cluster, the clients, and what was counted."""

    def __init__(self, directory: Path, stack: ExitStack, pace_s: float) -> None:
        self.directory, self.stack, self.pace_s = directory, stack, pace_s
        self.clients: dict[str, subprocess.Popen[bytes]] = {}
        self.counted: list[tuple[str, str]] = []
        self.began = time.monotonic()
        self.has_disk = False

    # -- what an operator does ------------------------------------------------------------------------------------------

    def type(self, *arguments: str, status: int = 0) -> str:
        """A command as it is typed; its output is shown. Fails unless it ends with `status`."""
        print(f"$ crdtkv {' '.join(arguments)}", flush=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CRDTKV_")} | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        command = [sys.executable, "-m", "crdtkv", *arguments]
        ran = subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        said = ran.stdout + ran.stderr
        for line in said.splitlines():
            print(f"  {line}"[:200], flush=True)
        assert ran.returncode == status, f"crdtkv {' '.join(arguments)}: status {ran.returncode}, not {status}"
        assert "Traceback" not in said
        return said

    def json(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "crdtkv", *arguments, "-o", "json"]
        ran = subprocess.run(command, cwd=self.directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
        return json.loads(ran.stdout) if ran.returncode == 0 else None

    def step(self, title: str) -> None:
        print(f"\n== {title}", flush=True)

    def count(self, what: str, how: str) -> None:
        """A step is done, and this shows it."""
        self.counted.append((what, how))
        print(f"   -> {how}", flush=True)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
            interrupts.check()
            time.sleep(0.3)
        return value

    def addresses(self) -> dict[str, str]:
        found = json.loads(self.cluster_file.read_text())
        return {region: entry["address"] for region, entry in found["regions"].items()}

    @property
    def cluster_file(self) -> Path:
        return self.directory / ".crdtkv-cluster" / "cluster.json"

    @property
    def data(self) -> Path:
        return self.directory / ".crdtkv-cluster" / "data"

    def status(self, region: str) -> Any:
        return self.json("status", "--region", region) or {}

    # -- load -----------------------------------------------------------------------------------------------------------

    def start_client(self, name: str, kind: str, *regions: str) -> None:
        at = ",".join(self.addresses()[region] for region in regions)
        file = self.directory / f"{name}.notes"
        file.touch()
        command = [sys.executable, "-m", "tests.acceptance.client", name, str(file), kind, at]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)  # Ctrl-C is the walk's
        self.clients[name] = process
        self.stack.callback(process.kill)

    def end_client(self, name: str) -> None:
        process = self.clients.pop(name)
        assert process.poll() is None, f"client {name} ended by itself, with status {process.returncode}"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0

    def told(self) -> Told:
        return read(sorted(self.directory.glob("*.notes")))

    def rest(self, factor: float = 1.0) -> None:
        """Let the load go on."""
        end = time.monotonic() + self.pace_s * factor
        while (left := end - time.monotonic()) > 0:
            interrupts.check()
            time.sleep(min(left, 0.2))

    # -- the walk -------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        self.step("A cluster under load")
        disk = self.data / "us"
        disk.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
        assert subprocess.run(mount, check=False).returncode == 0, "the walk needs a small tmpfs: run it where it may be mounted (as root)"
        self.stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        (self.directory / "nodes.toml").write_text(CONFIG)
        self.stack.callback(self.down)
        self.type("cluster", "up", "--latency", "5ms", "--config", "nodes.toml", "--detach")
        for region in ("us", "eu", "ap"):
            self.start_client(f"own-{region}", "own", region)
        for regions in (("us", "eu"), ("eu", "ap"), ("ap", "us")):
            self.start_client(f"shared-{regions[0]}", "shared", *regions)
        self.rest(0.5)
        self.type("backup", "create", "backups", "--region", "us")
        self.rest()

    def down(self) -> None:
        if (self.directory / ".crdtkv-cluster" / "cluster.json").exists():
            self.type("cluster", "down")

    def kill_each(self) -> None:
        for region in ("us", "eu", "ap"):
            self.step(f"kill -9 {region}")
            in_flight = 0
            for _ in range(10):
                pid = json.loads(self.cluster_file.read_text())["regions"][region]["pid"]
                print(f"$ kill -9 {pid}", flush=True)
                os.kill(pid, signal.SIGKILL)
                at = time.time()
                self.rest(0.2)
                self.type("cluster", "status")
                self.type("cluster", "restart", region)
                self.rest(0.5)
                in_flight = read(self.directory / f"{kind}-{region}.notes" for kind in ("own", "shared")).under_way(at)
                if in_flight:
                    break
            assert in_flight, f"no write was on its way when {region} was killed"
            origin = self.status(region)["origin"]
            assert f"{region}@1-" in origin, "SIGKILL never takes a new incarnation"
            self.count(f"kill -9 {region}", f"{in_flight} of its 2 clients had writes on their way; back as {origin}")

    def fill_the_disk(self) -> None:
        self.step("Fill the disk under us, and free it")
        filler = self.data / "us" / "filler"
        at = time.time()
        with filler.open("wb") as file:
            while (room := os.statvfs(self.data / "us").f_bavail) > 16:
                with suppress(OSError):  # the node takes of the room, too
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, (room - room // 16) * PAGE_BYTES)
        status = self.until(lambda: (s := self.status("us")) and s["read_only"] and s, "us is read-only")
        assert not status["ready"], "a region that takes no writes is not ready"
        self.type("put", "refused", "1", "--region", "us", status=1)
        self.type("status", "--region", "us")
        self.rest()
        filler.unlink()
        self.until(lambda: not self.status("us").get("read_only", True), "us takes writes again")
        self.type("put", "taken", "1", "--region", "us")
        self.rest(0.5)
        told = self.told()
        refused = told.between(at, time.time(), "refused", "own-us")
        assert refused, "no client was refused"
        elsewhere = told.between(at, time.time(), "shared", "shared-us")
        assert elsewhere, "a client that knows another region went nowhere"
        self.count("full disk", f"{refused} bursts refused in us; its client that knows eu made {elsewhere} writes meanwhile")

    def restore_an_old_backup(self) -> None:
        self.step("Restore an old backup over eu's directory")
        before = self.status("eu")["origin"]
        self.type("cluster", "stop", "eu")
        (self.data / "eu").rename(self.directory / "eu-moved-aside")
        self.type("backup", "restore", "backups", "--data", ".crdtkv-cluster/data/eu", "--as", "eu")
        self.type("cluster", "restart", "eu")
        status = self.status("eu")
        assert status["origin"] != before, "the old identity came back"
        self.until(lambda: self.caught_up("eu", before), f"eu has what it had written as {before}")
        self.type("status", "--region", "eu")
        self.until(lambda: self.ended("eu", before), f"{before} is ended")
        self.type("region", "status", "eu", "--region", "us")
        self.count("old backup over eu", f"goes on as {status['origin']}, and has all that it had written as {before}")

    def caught_up(self, region: str, origin: str) -> bool:
        """Whether it has of an origin as much as us has, or the origin is closed and out of its vector."""
        here, there = self.status(region), self.status("us")
        return bool(here and there) and here["vv"].get(origin, 0) >= there["vv"].get(origin, 0)

    def ended(self, region: str, origin: str) -> Any:
        reply = self.json("region", "list", "--region", "us")
        return reply and any(origin in row["closed"] for row in reply["regions"] if row["region"] == region)

    def cut_off(self) -> None:
        self.step("Cut ap off, delete keys and truncate the log meanwhile, let it write, bring it back")
        at = time.time()
        self.type("cluster", "partition", "ap")
        had, installed = self.status("ap")["vv"], self.status("ap")["last_install"]
        self.type("put", "alone", "by ap", "--region", "ap")

        def truncated() -> bool:
            floors = [self.status(region).get("log_floor", {}) for region in ("us", "eu")]
            return all(any(f.get(o, 0) > seq for o, seq in had.items() if not o.startswith("ap@")) for f in floors)

        self.until(truncated, "the logs of us and eu are dropped beyond what ap has")
        self.type("status", "--region", "us")
        self.type("region", "status", "ap", "--region", "us")
        for region in ("us", "eu"):  # else each still has in memory what it wrote itself, and ap may get by without a snapshot
            self.type("cluster", "restart", region)
        self.rest()
        end = time.time()
        self.type("cluster", "heal")
        told = self.told()
        deleted = told.between(at, end, "del", "own-us", "own-eu")
        wrote = told.between(at, end, "put", "own-ap")
        assert deleted > 50 and wrote > 50, (deleted, wrote)
        self.until(lambda: self.status("ap").get("last_install", installed) != installed, "ap was given a snapshot")
        log = (self.directory / ".crdtkv-cluster" / "logs" / "ap.log").read_text()  # status has the last one only, and there may be two
        removed = max((int(n.replace(",", "")) for n in re.findall(r"is installed: .*?, ([\d,]+) removed here", log)), default=0)
        assert removed, "no snapshot removed from ap what the others had deleted"
        self.type("status", "--region", "ap")
        self.until(lambda: self.has("us", "alone"), "what ap wrote alone is in us")
        self.count(
            "cut off", f"{deleted} keys deleted, and the log dropped, while ap wrote {wrote}; its snapshot removed {removed:,} keys there"
        )

    def has(self, region: str, key: str) -> bool:
        found = self.json("get", key, "--region", region)
        return bool(found and found["found"])

    def add_and_remove(self) -> None:
        self.step("Add a fourth region, and remove the first")
        self.type("cluster", "add", "sa", "--latency", "8ms")
        self.start_client("own-sa", "own", "sa")
        self.until(lambda: self.has("sa", "alone"), "sa has what was there")
        self.type("region", "list", "--region", "sa")
        self.type("verify", "--wait", "90")
        at = time.time()
        self.type("region", "drain", "us", "--region", "eu")
        self.type("put", "late", "1", "--region", "us", status=3)
        self.type("region", "remove", "us", "--region", "eu")
        self.until(lambda: self.told().between(at, time.time(), "shared", "shared-us"), "the client of us that knows eu goes on there")
        assert self.told().between(at, time.time(), "refused", "own-us"), "us refused nobody"
        self.end_client("own-us")
        self.type("cluster", "remove", "us")
        self.type("region", "list", "--region", "eu")
        self.count("fourth in, first out", "sa joined, us drained, removed, and its clients refused or gone on elsewhere")

    def removed_returns(self) -> None:
        self.step("A region that was removed by force returns")
        self.end_client("own-sa")
        self.type("cluster", "partition", "sa")
        for n in range(5):
            self.type("put", f"only sa/{n}", str(n), "--region", "sa")
        self.type("cluster", "kill", "sa")
        self.type("region", "remove", "sa", "--force", "--region", "eu")
        origin = self.until(lambda: self.closed("sa"), "sa's origin is ended")
        self.type("region", "status", "sa", "--region", "eu")
        self.type("cluster", "heal")
        assert "removed" in self.type("cluster", "restart", "sa", status=1), "sa is told that it was removed"
        self.type("status", "--region", "sa")
        assert "crdtkv recover export" in self.type("put", "late", "1", "--region", "sa", status=1)
        self.type("cluster", "stop", "sa")
        self.type("recover", "export", ".crdtkv-cluster/data/sa", "--since", origin, "--out", "sa.jsonl")
        (self.data / "sa").rename(self.directory / "sa-moved-aside")
        self.type("cluster", "remove", "sa")
        self.type("cluster", "add", "sa")
        self.type("recover", "reissue", "sa.jsonl", "--region", "sa")
        for region in ("eu", "ap"):
            self.until(lambda region=region: self.has(region, "only sa/4"), f"{region} has what sa wrote alone")  # type: ignore[misc]
        self.count("removed returns", "refused with the way out; what it wrote alone was exported, re-issued, and is everywhere")

    def closed(self, region: str) -> str:
        """`ORIGIN:SEQ` where its last incarnation ended, or nothing yet."""
        reply = self.json("region", "list", "--region", "eu")
        ends = next((row["closed"] for row in reply["regions"] if row["region"] == region), {}) if reply else {}
        return max((f"{origin}:{seq}" for origin, seq in ends.items()), default="")

    def end(self) -> list[str]:
        self.step("The end: equal digests, everything acknowledged, nothing deleted")
        for name in list(self.clients):
            self.end_client(name)
        said = self.type("verify", "--wait", "90")
        assert "agree" in said
        digests = {self.type("digest", "--region", region) for region in self.addresses()}
        assert len(digests) == 1, digests
        told = self.told()
        clients = connect(self.addresses())
        wrong, fates = judge(told, clients)
        for client in clients.values():
            client.close()
        assert fates.get("journalled"), "no write met a concurrent one and lost: the cut cannot have been real"
        became = ", ".join(f"{n:,} {fate}" for fate, n in fates.items())
        self.count("judged", f"{told.acknowledged:,} acknowledged writes in {len(clients)} regions: {became}")
        unknown = len(told.perhaps_put) + len(told.perhaps_deleted) + sum(map(len, told.unknown_shared.values()))
        self.count("not answered", f"{unknown:,} writes of unknown outcome; refusals seen: {dict(told.refusals)}")
        return wrong

    def report(self, wrong: list[str]) -> None:
        print(f"\n{'step':<22}what shows that it happened ({time.monotonic() - self.began:.0f} s in all)")
        for what, how in self.counted:
            print(f"{what:<22}{how}")
        for line in wrong[:50]:
            print(f"WRONG: {line}")
        print("FAILED" if wrong else "passed", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance")
    parser.add_argument("--pace", type=float, default=5.0, help="seconds of load between steps")
    parser.add_argument("--directory", type=Path, help="where to work; kept. Default: a temporary one, kept if it fails")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="crdtkv-acceptance-"))
    directory.mkdir(parents=True, exist_ok=True)
    with interrupts.noted(*interrupts.ENDED_BY) as signals:
        try:
            wrong = _walk(directory.resolve(), options.pace)
        except (Exception, KeyboardInterrupt):
            if not signals.received:
                raise
            print("stopped: the cluster is down, and nothing was judged", file=sys.stderr)
            if options.directory is None:
                shutil.rmtree(directory)
            return 128 + signals.received[0]
    if not wrong and options.directory is None:
        shutil.rmtree(directory)
    return 1 if wrong else 0


def _walk(directory: Path, pace_s: float) -> list[str]:
    with ExitStack() as stack:
        walk = Walk(directory, stack, pace_s)
        walk.up()
        walk.kill_each()
        walk.fill_the_disk()
        walk.restore_an_old_backup()
        walk.cut_off()
        walk.add_and_remove()
        walk.removed_returns()
        wrong = walk.end()
        walk.report(wrong)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
