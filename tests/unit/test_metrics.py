"""Metrics: what a scrape shows is what the page says there is, is true, is unknown rather than zero, and stops nobody."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_fd_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics

import crdtkv
from crdtkv.errors import ConfigError, WrongTypeError
from crdtkv.node import NodeConfig
from crdtkv.node import metrics as metrics_module
from crdtkv.node.config import Tls
from crdtkv.node.metrics import METRICS, REGIONS_MAX, table
from tests.certificates import CERTIFICATE, KEY
from tests.unit.documents import ROOT

DEADLINE_S = 60.0
NAMES = {row.shown for rows in METRICS.values() for row in rows}
LOOPBACK = "127.0.0.1:0"


def scrape(node: crdtkv.Node, *, accept: str = "") -> str:
    request = urllib.request.Request(f"http://{node.metrics_address}/metrics", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        return str(answer.read().decode())


def series(text: str) -> dict[str, float]:
    """`name{label="value"}` → value, for all series but those of Python and the process."""
    found = {}
    for family in text_metrics(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def value(node: crdtkv.Node, name: str) -> float:
    return series(scrape(node))[name]


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[crdtkv.Store]:
    with crdtkv.open(tmp_path / "us", region="us", settings=crdtkv.Settings(instance_dir="trust", watch_changes_max=4)) as opened:
        yield opened


@pytest.fixture
def node(store: crdtkv.Store) -> Iterator[crdtkv.Node]:
    with crdtkv.Node(store, metrics=LOOPBACK) as running:
        yield running


def test_the_page_names_what_a_scrape_shows(node: crdtkv.Node) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert table().rstrip() in page, "docs/metrics.md is written by crdtkv.node.metrics.table"
    text = scrape(node)
    declared = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    own = {name for name in declared if name.startswith("crdtkv")}
    assert own == NAMES
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= declared
    helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")}
    assert declared == helped


def test_names_keep_the_conventions() -> None:
    for row in (row for rows in METRICS.values() for row in rows):
        assert not row.name.endswith(("_total", "_info", "_ms", "_count")), row
        assert not row.help.endswith("."), row
        assert all(label in ("peer", "region", "state", "code", "kind", "rule") for label in row.labels) or row.kind == "info", row


def test_open_metrics_are_valid(node: crdtkv.Node, store: crdtkv.Store) -> None:
    store.put("k", 1)
    text = scrape(node, accept="application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    names = {family.name for family in open_metrics(iter(text.splitlines(keepends=True)))}
    assert {row.name for rows in METRICS.values() for row in rows} <= names


def test_requests_are_told_by_what_became_of_them(node: crdtkv.Node, store: crdtkv.Store) -> None:
    with crdtkv.connect(node.address) as client:
        for i in range(10):
            client.put(f"k{i}", i)
        assert client.get("k1") == 1
        assert client.get("nothing") is None
        for _ in range(3):
            with pytest.raises(WrongTypeError):
                client.set("k1").add("x")
        found = series(scrape(node))
        assert found["crdtkv_sessions"] == 1
    assert found["crdtkv_requests_total"] == 15
    assert found["crdtkv_reads_total"] == 2
    assert found["crdtkv_writes_total"] == 10
    assert found['crdtkv_request_errors_total{code="WrongTypeError"}'] == 3
    assert found['crdtkv_applied_commits_total{region="us"}'] == 10
    store.put("embedded", 1)
    assert value(node, "crdtkv_writes_total") == 11


def test_disk_and_memory_are_told(node: crdtkv.Node, store: crdtkv.Store) -> None:
    for i in range(20):
        store.put(f"k{i}", "x" * 100)
    store.counter("c").increment()
    store.counter("c").reset()
    store.delete("k1")
    found = series(scrape(node))
    assert found["crdtkv_log_frames_total"] == found["crdtkv_log_frames_kept"] == 23
    assert found["crdtkv_log_bytes"] > 2_000
    assert found["crdtkv_log_segments"] == 1
    assert found["crdtkv_log_unsynced_frames"] == 0
    assert 0 < found["crdtkv_log_fsync_seconds_count"] <= 23
    assert found['crdtkv_log_fsync_seconds_bucket{le="+Inf"}'] == found["crdtkv_log_fsync_seconds_count"]
    assert found["crdtkv_overlay_records"] > 0
    assert found["crdtkv_overlay_bytes"] > 2_000
    assert "crdtkv_state_digest" not in found, "it is not at hand while something waits for the engine"
    assert found["crdtkv_removals"] == 2, "of the key, and of the counter's runs"
    assert found["crdtkv_disk_free_bytes"] > 1 << 20
    digest = store.digest()  # writes the engine
    found = series(scrape(node))
    assert found["crdtkv_overlay_records"] == found["crdtkv_overlay_bytes"] == 0
    assert found["crdtkv_fold_step_seconds_count"] >= 1
    assert found["crdtkv_state_digest"] == int(digest[:12], 16)


def test_removals_that_went_for_want_of_room_are_counted() -> None:
    with crdtkv.open(region="us", settings=crdtkv.Settings(removals_max=2)) as store:
        for i in range(5):
            store.put(f"k{i}", i)
            store.delete(f"k{i}")
        with crdtkv.Node(store, metrics=LOOPBACK) as node:
            found = series(scrape(node))
    assert (found["crdtkv_removals"], found["crdtkv_removals_evicted_total"]) == (2, 3)


def test_spent_counter_runs_are_counted_once_a_minute(store: crdtkv.Store) -> None:
    store.counter("c").increment()
    store.counter("c").reset()
    store.digest()  # writes the engine
    with crdtkv.Node(store, metrics=LOOPBACK) as node:
        assert value(node, "crdtkv_spent_counter_runs") == 1
        store.counter("d").increment()
        store.counter("d").reset()
        store.digest()
        assert value(node, "crdtkv_spent_counter_runs") == 1


def test_conflicts_are_told_by_rule_and_outlive_the_journal(tmp_path: Path) -> None:
    settings = crdtkv.Settings(instance_dir="trust", journal_records_max=2)
    with crdtkv.open(tmp_path / "us", region="us", settings=settings) as us, crdtkv.open(region="eu") as eu:
        for i in range(5):
            us.put(f"k{i}", "us")
            eu.put(f"k{i}", "eu")
        us.merge(eu.delta_since(us.vv()))
        with crdtkv.Node(us, metrics=LOOPBACK) as node:
            found = series(scrape(node))
    assert found['crdtkv_conflicts_total{rule="lww"}'] == 5
    assert found["crdtkv_conflict_journal_records"] == 2
    assert found["crdtkv_conflict_journal_trimmed_total"] == 3
    assert found["crdtkv_conflict_journal_bytes"] > 0


def test_a_peer_that_is_away_is_unknown_and_not_up_to_date(node: crdtkv.Node, store: crdtkv.Store) -> None:
    names = [row.name for row in METRICS["Replication, by peer"] if row.labels == ("peer",) and row.kind == "gauge"]
    unknown = [name for name in names if name not in ("crdtkv_peer_connected",)]
    with crdtkv.open(region="eu") as other, crdtkv.Node(other, peers={"us": node.address}) as eu:
        eu.wait_ready()
        store.put("k", 1)
        eventually(lambda: other.get("k") == 1, "replicated")
        eventually(lambda: not math.isnan(value(node, 'crdtkv_peer_lag_seconds{peer="eu"}')), "measured")
        found = series(scrape(node))
        assert found['crdtkv_peer_connected{peer="eu"}'] == 1
        assert found['crdtkv_peer_sent_bytes_total{peer="eu"}'] > 0
        assert found['crdtkv_member{region="eu",state="active"}'] == 1
        assert found['crdtkv_replication_events_total{kind="live"}'] >= 1
        missing = [name for name in names if f'{name}{{peer="eu"}}' not in found]
        assert not missing
    eventually(lambda: value(node, 'crdtkv_peer_connected{peer="eu"}') == 0, "told that it is gone")
    found = series(scrape(node))
    known = {name: at for name in unknown if not math.isnan(at := found.get(f'{name}{{peer="eu"}}', math.nan))}
    assert not known, "nothing is known of who is not there"


def test_a_peer_that_was_never_there_is_unknown(store: crdtkv.Store) -> None:
    with crdtkv.Node(store, metrics=LOOPBACK, peers={"ap": "127.0.0.1:9"}) as node:
        found = series(scrape(node))
    assert found['crdtkv_peer_connected{peer="ap"}'] == 0
    assert math.isnan(found['crdtkv_peer_lag_seconds{peer="ap"}'])
    assert math.isnan(found['crdtkv_peer_ahead_commits{peer="ap"}'])


def test_watchers_that_are_cut_are_counted(node: crdtkv.Node, store: crdtkv.Store) -> None:
    feed = store.subscribe("")
    assert value(node, "crdtkv_watchers") == 1
    for i in range(6):
        store.put(f"k{i}", i)
    assert value(node, "crdtkv_watchers_cut_total") == 1
    assert feed.overflowed
    feed.close()
    assert value(node, "crdtkv_watchers") == 0


def test_a_busy_store_costs_a_scrape_its_numbers_and_nobody_else_anything(
    node: crdtkv.Node, store: crdtkv.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a snapshot is installed: the store's lock is held, and the page is there all the same."""
    monkeypatch.setattr(metrics_module, "BUSY_S", 0.2)
    with store._lock:
        found = series(scrape(node))
        assert found["crdtkv_complete"] == 0
        assert found["crdtkv_ready"] == 1
        assert found["crdtkv_event_loop_stop_max_seconds"] < 10
        assert "crdtkv_log_bytes" not in found
    found = series(scrape(node))
    assert found["crdtkv_complete"] == 1
    assert found["crdtkv_log_bytes"] >= 0


def test_a_scrape_waits_outside_the_event_loop(node: crdtkv.Node, store: crdtkv.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "BUSY_S", DEADLINE_S)
    found: list[dict[str, float]] = []
    with store._lock:
        scraping = threading.Thread(target=lambda: found.append(series(scrape(node))))
        scraping.start()
        eventually(lambda: _loop_answers(node), "the loop turns while the scrape waits")
        assert not found
    scraping.join(DEADLINE_S)
    assert found[0]["crdtkv_complete"] == 1


def _loop_answers(node: crdtkv.Node) -> bool:
    turned = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, True), node._loop)
    return bool(turned.result(DEADLINE_S))


def test_a_loop_that_stands_still_is_told(node: crdtkv.Node) -> None:
    node._loop.call_soon_threadsafe(time.sleep, 0.3)
    eventually(lambda: value(node, "crdtkv_event_loop_stop_max_seconds") > 0.25, "the stop was seen")


def test_a_node_that_opens_its_store_has_a_page(store: crdtkv.Store) -> None:
    from crdtkv.node.server import NodeServer

    async def early() -> dict[str, float]:
        server = NodeServer(listen=LOOPBACK, peers={}, metrics=LOOPBACK)
        await server.start()
        try:
            return series(await asyncio.to_thread(_get, f"http://{server.metrics_address}/metrics"))
        finally:
            await server.stop()

    found = asyncio.run(early())
    assert found["crdtkv_ready"] == found["crdtkv_complete"] == 0


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        return str(answer.read().decode())


def test_labels_are_bounded() -> None:
    assert len(metrics_module._labelled({f"r{i:03}": i for i in range(1_000)})) == REGIONS_MAX


def test_nothing_is_served_unless_asked_for(store: crdtkv.Store) -> None:
    with crdtkv.Node(store) as node:
        assert node.metrics_address == ""


def test_a_port_in_use_is_one_line_and_nothing_is_left(store: crdtkv.Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics: cannot listen on 127.0.0.1:{port}"):
            crdtkv.Node(store, metrics=f"127.0.0.1:{port}")
    with crdtkv.Node(store, metrics=f"127.0.0.1:{port}") as node:
        assert node.metrics_address.endswith(str(port))


def test_settings_come_from_everywhere_and_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('region = "us"\nlisten = "127.0.0.1:0"\nmetrics = "127.0.0.1:9101"\n')
    assert NodeConfig.load(file).metrics == "127.0.0.1:9101"
    assert NodeConfig.load(file, {"CRDTKV_METRICS": "127.0.0.1:9102"}).metrics == "127.0.0.1:9102"
    assert NodeConfig.load(file, flags={"metrics": "127.0.0.1:9103"}).metrics == "127.0.0.1:9103"
    with pytest.raises(ConfigError, match=r"metrics: 0\.0\.0\.0:1 is not a loopback address"):
        NodeConfig.load(file, flags={"metrics": "0.0.0.0:1"})
    assert NodeConfig.load(file, flags={"metrics": "0.0.0.0:1", "insecure": True}).metrics == "0.0.0.0:1"
    with pytest.raises(ConfigError, match="not HOST:PORT"):
        NodeConfig.load(file, flags={"metrics": "9101"})


def test_with_tls_the_page_is_https(store: crdtkv.Store, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(CERTIFICATE)
    key.write_text(KEY)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with crdtkv.Node(store, metrics=LOOPBACK, tls=Tls(cert, key)) as node:
        with urllib.request.urlopen(f"https://{node.metrics_address}/metrics", timeout=DEADLINE_S, context=context) as answer:
            assert b"crdtkv_ready 1.0" in answer.read()
        with pytest.raises(OSError):
            scrape(node)
    with crdtkv.Node(store, metrics=LOOPBACK, tls=Tls(cert, key, ca=cert)) as node, pytest.raises(OSError):
        urllib.request.urlopen(f"https://{node.metrics_address}/metrics", timeout=DEADLINE_S, context=context).read()
