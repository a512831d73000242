"""The peers' one interface: a fake proves the contract's check, and every peer that is installed passes it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.peers.base import EmbeddedPeer, ServedPeer, Store, daemon
from bench.peers.redis import Redis
from bench.peers.registry import EMBEDDED, PEERS, SERVED


class FakeStore(Store):
    def __init__(self, *, forgets: bool) -> None:
        self.kept: dict[str, str] = {}
        self._forgets = forgets

    def put(self, key: str, value: str) -> None:
        self.kept[key] = value

    def get(self, key: str) -> str | None:
        return self.kept.get(key)

    def put_many(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.kept.update(pairs[1:] if self._forgets else pairs)


class Fake(EmbeddedPeer):
    name, durability, modules = "fake", "none", ("json",)
    forgets = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[FakeStore]:
        yield FakeStore(forgets=cls.forgets)


def check_store(store: Store) -> None:
    """What every adapter promises."""
    assert store.get("absent") is None
    store.put("a/1", "x")
    assert store.get("a/1") == "x"
    store.put("a/1", "y" * 100)
    assert store.get("a/1") == "y" * 100
    store.put_many([(f"b/{n}", str(n)) for n in range(10)])
    assert store.get_many([f"b/{n}" for n in range(10)]) == [str(n) for n in range(10)]


@pytest.mark.parametrize("peer", [Fake, *EMBEDDED], ids=lambda p: p.name)
def test_embedded(peer: type[EmbeddedPeer], tmp_path: Path) -> None:
    assert peer.missing() is None, "make setup installs all peers"
    with peer.open(tmp_path / "store") as store:
        check_store(store)


def test_the_check_sees_an_adapter_that_loses_a_write(tmp_path: Path) -> None:
    class Forgetful(Fake):
        forgets = True

    with Forgetful.open(tmp_path) as store, pytest.raises(AssertionError):
        check_store(store)


@pytest.mark.parametrize("peer", SERVED, ids=lambda p: p.name)
def test_served_with_its_replica(peer: type[ServedPeer], tmp_path: Path) -> None:
    assert peer.missing() is None, "make setup installs all peers"
    with peer.start(tmp_path / "server", replicated=True) as server:
        with server.blocking() as store:
            store.put("k1", "v1")
            store.put_many([("k2", "v2"), ("k3", "v3")])
            assert store.get_many(["k1", "k2", "k3"]) == ["v1", "v2", "v3"]

        async def watched() -> set[str]:
            heard = server.arrivals("w")
            async with asyncio.timeout(20), server.awaited() as client:
                assert await anext(heard) == "", "the first item says that it listens"
                await asyncio.gather(*(client.put(f"w{n}", "x") for n in range(3)))
                assert await client.get("w1") == "x"
                keys = {await anext(heard) for _ in range(3)}
            await heard.aclose()
            return keys

        assert asyncio.run(watched()) == {"w0", "w1", "w2"}


def test_a_peer_that_is_not_installed_says_what_to_do() -> None:
    class Absent(Fake):
        modules = ("json", "a_module_that_is_not_there")

    assert Absent.missing() == "not installed (a_module_that_is_not_there): pip install crdtkv[bench]"


def test_a_server_that_ends_at_once_is_told_with_what_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such option')"]
    with pytest.raises(RuntimeError, match="no such option"), daemon(command, log=tmp_path / "log", ready=lambda: False):
        pass


def test_a_server_is_gone_when_its_block_ends_by_an_error(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(ZeroDivisionError), Redis.start(tmp_path) as server:
        pid = server.primary_pid
        raise ZeroDivisionError
    assert subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode != 0


def test_each_peer_says_its_name_and_what_an_answered_write_survives() -> None:
    assert len(PEERS) == len(EMBEDDED) + len(SERVED), "names are distinct"
    assert all(peer.durability for peer in PEERS.values())
