"""`crdtkv verify` against nodes that serve: certificates under load, damage found, refusals on one line."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import crdtkv
from crdtkv.audit import comparing
from crdtkv.cli.main import main
from crdtkv.client.views import NodeSide
from crdtkv.core.codec import register_slot_of
from crdtkv.errors import StoreClosedError
from crdtkv.pb.v1 import admin_pb2
from crdtkv.results import Status
from crdtkv.store.view import FIRST, LAST, records
from tests.integration.test_node import Regions
from tests.waiting import until


@pytest.fixture
def regions() -> Iterator[Regions]:
    with ExitStack() as stack:
        made = Regions(stack)
        made.ready()
        yield made


def addresses(regions: Regions) -> str:
    return ",".join(node.address for node in regions.nodes.values())


def settled(regions: Regions) -> None:
    until(lambda: len({store.vv() for store in regions.stores.values()}) == 1)


@contextmanager
def under_load(regions: Regions) -> Iterator[None]:
    """Every region writes without a pause."""
    stop = threading.Event()

    def write(region: str) -> None:
        store, n = regions.stores[region], 0
        while not stop.wait(0.0005):
            n += 1
            store.put(f"load/{n % 500}", [region, n])
            store.counter("writes").increment()
            store.set("recent").add(n % 20)
            store.set("recent").discard((n + 7) % 20)

    threads = [threading.Thread(target=write, args=(region,)) for region in regions.stores]
    for thread in threads:
        thread.start()
    try:
        until(lambda: regions.stores["ap"].counter("writes").value > 100)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_verify_certifies_regions_while_all_of_them_write(regions: Regions, capsys: pytest.CaptureFixture[str]) -> None:
    with under_load(regions):
        assert main(["verify", "--at", addresses(regions), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agree"] and [r["region"] for r in found["regions"]] == ["us", "eu", "ap"]
    assert all(r["digest"] == r["kept_digest"] for r in found["regions"])
    settled(regions)
    assert main(["verify", "--at", addresses(regions)]) == 0
    text = capsys.readouterr().out
    assert "us, eu, ap agree" in text and regions.stores["us"].digest() in text and str(regions.stores["us"].vv()) in text


def test_verify_names_the_key_that_differs_and_the_region_whose_records_were_changed(
    regions: Regions, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(200):
        regions.stores["us"].put(f"k/{n}", n)
    settled(regions)
    eu = regions.stores["eu"]
    eu.digest()
    eu._machine.engine.write({register_slot_of("k/77"): None})
    with under_load(regions):
        assert main(["verify", "--at", addresses(regions)]) == 1
    out = capsys.readouterr().out
    assert "k/77 (register): eu and us differ" in out and "ap differ" not in out
    assert "eu: its records give digest" in out and "crdtkv repair" in out


def test_verify_refuses_in_one_line(regions: Regions, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    us = regions.nodes["us"].address
    assert main(["verify", "--at", f"{us},{us}"]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main(["verify", "--at", "127.0.0.1:1"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    regions.nodes["ap"].close()
    regions.stores["us"].put("k", 1)
    with crdtkv.open(region="sa") as store, crdtkv.Node(store) as alone:
        assert main(["verify", "--at", f"{us},{alone.address}", "--wait", "0.1"]) == 3
        assert "sa lacks 1 commit that" in capsys.readouterr().err
        monkeypatch.setattr(comparing, "TELL_S", 0.0)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert main(["verify", "--at", f"{us},{alone.address}", "--wait", "0.1"]) == 3
        told, refused = capsys.readouterr().err.splitlines()
        assert told == "waits up to 0.1 s for sa to get what it lacks: 1 commit" and "sa lacks 1 commit that" in refused


def test_every_field_of_a_status_has_its_place_in_the_reply() -> None:
    """A field without one makes every status of the Admin service fail."""
    fields = {field.name for field in dataclasses.fields(Status)} - {"path"}
    assert fields <= {field.name for field in admin_pb2.StatusReply.DESCRIPTOR.fields}


def test_a_view_over_grpc_is_that_of_the_store_and_ends_when_it_is_closed(regions: Regions) -> None:
    us = regions.stores["us"]
    for n in range(300):
        us.put(f"k/{n}", n)
    with NodeSide(regions.nodes["us"].address) as side:
        view = side.view(us.vv())
        us.put("later", 1)
        held = dict(records(view))
        assert len(held) == 300 and view.moment.vv.seq(us.origin) == 300
        parts = view.parts(FIRST, LAST, 50)
        assert sum(part.slots for part in parts) == 300
        assert view.digests(FIRST, [part.end for part in parts]) == parts
        page = view.frame_page(view.moment.vv)
        assert page == ([], None)
        number = view._number
        view.close()
        view._number = number
        with pytest.raises(StoreClosedError, match="not held here"):
            view.parts(FIRST, LAST, 50)


def test_repair_mends_a_damaged_region_while_all_of_them_write(regions: Regions, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(200):
        regions.stores["us"].put(f"k/{n}", n)
    settled(regions)
    eu = regions.stores["eu"]
    eu.digest()
    record = eu._machine.engine.get(register_slot_of("k/77"))
    assert record is not None
    eu._machine.engine.write({register_slot_of("k/77"): record[:-2] + bytes([record[-2] ^ 1]) + record[-1:], register_slot_of("k/9"): None})
    assert main(["repair", "--at", addresses(regions), "--dry-run"]) == 0
    assert "2 records would be taken over; nothing was changed" in capsys.readouterr().out
    with under_load(regions):
        assert main(["repair", "--at", addresses(regions), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(m["slot"], m["region"]) for m in found["mended"]} == {("k/77 (register)", "eu"), ("k/9 (register)", "eu")}
    assert found["certificate"]["agree"] and list(found["settled"]) == ["eu"]
    assert (eu["k/77"], eu["k/9"]) == (77, 9)
    settled(regions)
    assert len({store.digest() for store in regions.stores.values()}) == 1
    assert {c.key for c in eu.conflicts("k/")} == {"k/77", "k/9"}


def test_a_damaged_log_is_filled_from_a_peer_by_the_command(regions: Regions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = crdtkv.Settings(log_segment_bytes=5000, instance_dir="trust")
    peer = regions.stores["us"]
    with crdtkv.open(tmp_path / "sa", region="sa", settings=settings) as sa:
        for n in range(100):
            sa.put(f"k/{n}", n)
        peer.merge(sa.delta_since(None))
    victim = sorted((tmp_path / "sa" / "log").glob("*.log"))[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:2000] + bytes(100) + whole[2100:])
    where = ["repair", "--data", str(tmp_path / "sa")]
    assert main([*where, "--from", regions.nodes["us"].address]) == 0
    out = capsys.readouterr().out
    assert f"damaged: {victim} at offset" in out and "frames were filled in from the peer" in out and f"kept: {victim}.damaged" in out
    assert main(where) == 0
    assert "the log is sound" in capsys.readouterr().out
    assert main([*where, "--dry-run"]) == 2
    with crdtkv.open(tmp_path / "sa", region="sa", settings=settings) as sa, crdtkv.open(region="x") as empty:
        empty.merge(sa.delta_since(None))
        assert len(dict(empty.scan())) == 100
