"""The demo as a user runs it, on real nodes, with less data and less time; and how it ends when it is interrupted."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("grpc")
pytest.importorskip("airportsdata")

from crdtkv.demo.cluster import demo_cluster
from crdtkv.demo.dataset import load_airports
from crdtkv.demo.findings import Findings
from crdtkv.demo.narrator import Narrator
from crdtkv.demo.records import Observation
from crdtkv.demo.regions import ClientRegion
from crdtkv.demo.report import build_report, write_report
from crdtkv.demo.run import Demo, DemoSettings

pytestmark = pytest.mark.slow

REDUCED = DemoSettings(airports_max=400, load_in_flight=64, pulse_hz=20, edit_hz=20, edit_s=1.5, cut_s=1.5, after_heal_s=0.5)
DEADLINE_S = 60.0


class Tampering(ClientRegion):
    """A client of one region that reports another state than it read: one commit dropped, or another digest."""

    drop_commit = False
    other_digest = False

    async def observe(self, keys: Sequence[str] | None = None) -> Observation:
        """The region's state, falsified if so asked, and only at the end."""
        seen = await super().observe(keys)
        if keys is None and self.drop_commit:
            key = min(k for k, v in seen.values.items() if k.startswith("airport/") and "edited" not in v)  # as it was loaded
            values = {k: v for k, v in seen.values.items() if k != key}
            seen = dataclasses.replace(seen, values=values, registers={k: v for k, v in seen.registers.items() if k != key})
        if keys is None and self.other_digest:
            seen = dataclasses.replace(seen, digest=seen.digest[::-1])
        return seen


def run_demo(region: str = "", **tampering: bool) -> tuple[Findings, str]:
    out = io.StringIO()
    with demo_cluster(keep=False) as cluster:

        async def run() -> Findings:
            async with cluster.regions() as clients:
                for client in clients:
                    if client.name == region:
                        client.__class__ = Tampering
                        for name, value in tampering.items():
                            setattr(client, name, value)
                narrator = Narrator(Console(file=out, width=120))
                return await Demo(clients, cluster, cluster.geography(), load_airports(REDUCED.airports_max), REDUCED, narrator).run()

        findings = asyncio.run(run())
    assert not cluster.directory.exists()
    return findings, out.getvalue()


def failed(findings: Findings) -> list[str]:
    return [c.name for c in findings.all_checks() if not c.ok]


def test_real_nodes_converge_and_every_write_is_accounted_for(tmp_path: Path) -> None:
    findings, said = run_demo()
    assert findings.ok, [v for c in findings.all_checks() for v in c.violations] + [said]
    verdict, cut = findings.verdict, findings.cut
    assert verdict is not None and cut is not None
    for region in ("us", "eu", "ap"):
        assert sum(verdict.fates[region].values()) == verdict.acknowledged == len(findings.writes) > 2000
    assert len(set(cut.digests.values())) == 2 and cut.digests["us"] == cut.digests["eu"]
    assert len({o.digest for o in findings.observations}) == 1
    edits = findings.phase("edits")
    for pair in findings.meter.pairs():
        lag = findings.meter.summary(pair, edits.start_s, edits.end_s)
        assert lag.p50_ms is not None and lag.p50_ms >= findings.geography.delay_ms(*pair) - 1
    report = build_report(findings, "test")
    assert {s["key"].partition("/")[0] for s in report["staged"]} == {"airport", "status", "country", "movements", "tz"}
    assert report["conflicts"]["adds_that_beat_removes"] >= 2
    page = write_report(report, tmp_path)
    assert page.stat().st_size > 50_000


@pytest.mark.parametrize(
    ("tampering", "check", "named"),
    [
        ("drop_commit", "every acknowledged write is accounted for", "put of airport/"),
        ("other_digest", "the digests are equal", "eu has"),
    ],
)
def test_a_falsified_region_is_found(tampering: str, check: str, named: str) -> None:
    findings, said = run_demo("eu", **{tampering: True})
    assert not findings.ok
    assert check in failed(findings), failed(findings)
    violations = next(c for c in findings.all_checks() if c.name == check).violations
    assert any(named in v and ("in eu" in v or "eu has" in v) for v in violations), violations
    assert check in said


def test_interrupted_it_exits_130_and_leaves_nothing_running(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "crdtkv", "demo", "--airports", "2000", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        pids: list[int] = []
        deadline = time.monotonic() + DEADLINE_S
        while not pids:
            assert demo.poll() is None and time.monotonic() < deadline, "the cluster did not come up"
            for file in temporary.glob("crdtkv-demo-*/cluster.json"):
                document = json.loads(file.read_text())
                pids = [document["supervisor_pid"], *(r["pid"] for r in document["regions"].values())]
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=DEADLINE_S)
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    assert demo.returncode == 130, err
    assert "Traceback" not in err
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not list(temporary.glob("crdtkv-demo-*"))
