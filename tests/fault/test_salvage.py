"""A commit log that is damaged in the middle is filled again from a peer, byte for byte, or not touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

import crdtkv
from crdtkv.audit import repair_log
from crdtkv.core.causality import VersionVector
from crdtkv.core.frame import Frame
from crdtkv.errors import ConfigError, CorruptionError, StoreLockedError
from crdtkv.store import Settings, Store
from crdtkv.store.view import StateView, frames
from tests.stores import stores, sync

SETTINGS = Settings(log_segment_bytes=3000, instance_dir="trust", fold_records_max=1)


def fetch_from(peer: Store, vv: VersionVector) -> tuple[VersionVector, Iterable[Frame]] | None:
    with StateView(peer) as view:
        found = frames(view, vv)
        return None if found is None else (view.moment.vv, list(found))


def written(path: Path, peer: Store, settings: Settings = SETTINGS) -> tuple[dict[str, object], str]:
    """A directory with several segments of own and received frames, which the peer has too."""
    with crdtkv.open(path, region="us", durability="sync", settings=settings) as us:
        for n in range(60):
            us.put(f"k/{n}", "x" * 50)
            us.counter("hits").increment()
            if n % 5 == 0:
                peer.merge(us.delta_since(peer.vv()))
                peer.put(f"eu/{n}", n)
                us.merge(peer.delta_since(us.vv()))
        peer.merge(us.delta_since(peer.vv()))
        return dict(us.scan()), us.digest()


def segments(path: Path) -> list[Path]:
    return sorted((path / "log").glob("*.log"))


def harm(path: Path, at: int, data: bytes = b"\x00" * 150) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])


def reads_whole(path: Path, peer: Store, wanted: tuple[dict[str, object], str]) -> None:
    """The store opens, has everything, and its log serves an empty peer from its first frame."""
    with crdtkv.open(path, region="us", settings=SETTINGS) as us, stores("ap") as (ap,):
        assert (dict(us.scan()), us.digest()) == wanted
        assert not us.origin.startswith("us@2")
        ap.merge(us.delta_since(None))
        assert ap.digest() == us.digest()
        us.put("after", 1)
        peer.merge(us.delta_since(peer.vv()))
        assert peer["after"] == 1


@pytest.mark.parametrize("where", [0, 1, 3, -1])
@pytest.mark.parametrize("kind", ["zeros", "flip", "two holes", "cut out"])
def test_a_damaged_segment_is_filled_from_a_peer(tmp_path: Path, where: int, kind: str) -> None:
    with stores("eu") as (eu,):
        wanted = written(tmp_path / "us", eu)
        names = segments(tmp_path / "us")
        assert len(names) > 5
        victim = names[where]
        before = victim.read_bytes()
        middle = len(before) // 2
        if kind == "cut out":
            victim.write_bytes(before[: middle - 200] + before[middle:])
        else:
            harm(victim, middle, bytes([before[middle] ^ 1]) if kind == "flip" else b"\x00" * 150)
        if kind == "two holes":
            harm(victim, middle - 900, b"\xff" * 40)
        done = repair_log(tmp_path / "us", lambda vv: fetch_from(eu, vv))
        assert done.refilled and not done.given_up and str(victim) in done.damage[0]
        assert [p.read_bytes() for p in done.kept] != [before]
        assert not repair_log(tmp_path / "us").damage
        reads_whole(tmp_path / "us", eu, wanted)


def test_a_segment_with_a_damaged_header_or_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    with stores("eu") as (eu,):
        wanted = written(tmp_path / "us", eu)
        harm(segments(tmp_path / "us")[2], 0, b"\x00" * 30)
        assert repair_log(tmp_path / "us", lambda vv: fetch_from(eu, vv)).refilled == 0
        segments(tmp_path / "us")[3].unlink()
        done = repair_log(tmp_path / "us", lambda vv: fetch_from(eu, vv))
        assert done.refilled > 3
        reads_whole(tmp_path / "us", eu, wanted)


@pytest.mark.parametrize("segment_bytes", [3000, 1 << 20], ids=["many segments", "one segment"])
@pytest.mark.parametrize("damage", [b"\x00" * 30, b"\x00" * 400], ids=["header", "header and a frame"])
def test_a_first_segment_without_a_header_is_made_anew_from_the_engine(tmp_path: Path, damage: bytes, segment_bytes: int) -> None:
    """Nothing before it tells the vector at which it began: it was given up, with a sound engine beside it."""
    with stores("eu") as (eu,):
        settings = Settings(log_segment_bytes=segment_bytes, instance_dir="trust", fold_records_max=1)
        wanted = written(tmp_path / "us", eu, settings)
        first = segments(tmp_path / "us")[0]
        harm(first, 0, damage)
        with pytest.raises(CorruptionError, match=r"damaged at offset 0: not a segment of a commit log\. `crdtkv repair"):
            crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS)
        done = repair_log(tmp_path / "us")
        assert (done.refilled, done.given_up) == (0, len(damage) > 30)
        assert not repair_log(tmp_path / "us").damage
        if not done.given_up:
            reads_whole(tmp_path / "us", eu, wanted)
            return
        with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as us:
            assert (dict(us.scan()), us.digest()) == wanted
            us.put("after", 1)
            eu.merge(us.delta_since(eu.vv()))
            assert eu["after"] == 1 and eu.digest() == us.digest()


def test_a_first_segment_without_a_header_that_the_engine_cannot_replace_says_what_else_to_do(tmp_path: Path) -> None:
    """Opening named `crdtkv repair`, and that said nothing of what to do instead."""
    with stores("eu") as (eu,):
        written(tmp_path / "us", eu)
        shutil.rmtree(tmp_path / "us" / "state")
        harm(segments(tmp_path / "us")[0], 0)
        before = {path: path.read_bytes() for path in segments(tmp_path / "us")}
        with pytest.raises(CorruptionError, match="what is missing is needed: move the data directory aside"):
            repair_log(tmp_path / "us", lambda vv: fetch_from(eu, vv))
        assert {path: path.read_bytes() for path in segments(tmp_path / "us")} == before


def test_without_a_peer_the_beginning_goes_if_the_engine_has_it_all(tmp_path: Path) -> None:
    with stores("eu") as (eu,):
        wanted = written(tmp_path / "us", eu)
        harm(segments(tmp_path / "us")[2], 1500)
        done = repair_log(tmp_path / "us")
        assert done.given_up and len(done.kept) == 3 and all(path.exists() for path in done.kept)
        with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as us:
            assert (dict(us.scan()), us.digest()) == wanted
            assert us._machine.log.floor()
            us.put("after", 1)
            eu.merge(us.delta_since(eu.vv()))
            assert eu["after"] == 1 and eu.digest() == us.digest()


def test_what_the_engine_lacks_and_no_peer_has_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    with stores("eu", "ap") as (eu, ap):
        written(tmp_path / "us", eu, Settings(log_segment_bytes=3000, instance_dir="trust"))
        names = segments(tmp_path / "us")
        harm(names[2], 1500)
        shutil.rmtree(tmp_path / "us" / "state")  # the engine has nothing
        before = {path: path.read_bytes() for path in segments(tmp_path / "us")}
        for fetch in (None, lambda vv: fetch_from(ap, vv)):
            with pytest.raises(CorruptionError, match="name a peer that has them"):
                repair_log(tmp_path / "us", fetch)
        assert {path: path.read_bytes() for path in segments(tmp_path / "us")} == before
        assert repair_log(tmp_path / "us", lambda vv: fetch_from(eu, vv)).refilled
        with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS) as us:
            sync(us, eu)


def test_a_sound_log_is_left_alone_and_what_is_open_or_no_directory_is_refused(tmp_path: Path) -> None:
    with stores("eu") as (eu,):
        written(tmp_path / "us", eu)
        assert repair_log(tmp_path / "us").damage == ()
        whole = segments(tmp_path / "us")[-1].read_bytes()
        segments(tmp_path / "us")[-1].write_bytes(whole + b"torn")
        assert repair_log(tmp_path / "us").damage == ()  # a torn end is cut when it is opened
        with crdtkv.open(tmp_path / "us", region="us", settings=SETTINGS), pytest.raises(StoreLockedError):
            repair_log(tmp_path / "us")
        with pytest.raises(ConfigError, match="no data directory"):
            repair_log(tmp_path / "nothing")
