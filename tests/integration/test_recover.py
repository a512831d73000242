"""The way out of a fork: what the branch that was given up had written is told, and written anew under another name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import crdtkv
from crdtkv import Settings
from crdtkv.cli.main import main
from tests.waiting import until

TRUSTING = Settings(instance_dir="trust")


def opened(path: Path) -> crdtkv.Store:
    return crdtkv.open(path, region="us", durability="async", settings=TRUSTING)


def test_two_branches_of_one_replica_become_one_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two copies of a directory, each trusting itself, write on under one id. One branch reaches the cluster, the other is refused."""
    with opened(tmp_path / "us") as us:
        us.put("common", 1)
        us.counter("c").increment(10)
        origin, common = us.origin, us.vv().seq(us.origin)
    shutil.copytree(tmp_path / "us", tmp_path / "clone")
    with crdtkv.open(region="eu") as eu, crdtkv.Node(eu, replication="loopback") as there:
        with opened(tmp_path / "us") as us, crdtkv.Node(us, peers={"eu": there.address}, replication="loopback"):
            us.put("by us", "kept")
            until(lambda: eu.vv().seq(origin) == common + 1, "the chosen branch is in eu")
        with opened(tmp_path / "clone") as clone:
            clone.put("by the clone", b"\x00\xff")
            clone.put("expired", 1, ttl=0.001)
            clone.set("s").add("a", 2)
            clone.set("s").discard(2)
            clone.map("m").put("f", {"x": [1, None]})
            clone.counter("c").increment(5)
            clone.counter("c").decrement(2)
            with clone.batch() as batch:
                batch.put("both", 1)
                batch.delete("common")
            assert clone.origin == origin
            with crdtkv.Node(clone, peers={"eu": there.address}, replication="loopback") as node:
                until(lambda: any("quarantined" in peer.state for peer in node.peers()), "the fork is found")
            assert eu.get("by the clone") is None
        file = tmp_path / "branch.jsonl"
        assert main(["recover", "export", str(tmp_path / "clone"), "--since", f"{origin}:{common}", "-o", str(file)]) == 0
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["seq"] for line in lines] == list(range(common + 1, common + 9)) and {line["origin"] for line in lines} == {origin}
        assert lines[5]["operations"] == [{"name": "increment", "key": "c", "amount": 5}]
        # A replica that starts from nothing: it fetches everything, and writes the branch anew.
        with crdtkv.open(tmp_path / "new", region="us", durability="async", settings=TRUSTING) as us:
            with crdtkv.Node(us, peers={"eu": there.address}, replication="loopback") as node:
                until(lambda: us.vv() == eu.vv(), "the new replica has everything")
                for _ in range(2):
                    assert main(["recover", "reissue", str(file), "--at", node.address]) == 0
                until(lambda: us.vv() == eu.vv(), "they are equal")
                assert us.digest() == eu.digest() and us.origin != origin
            known: dict[str, Any] = {"by us": "kept", "by the clone": b"\x00\xff", "s": ["a"], "c": 13, "both": 1}
            assert dict(eu.scan()) == {**known, "m": {"f": {"x": [1, None]}}}
    assert "8 commits re-issued" in capsys.readouterr().out


def test_what_cannot_be_told_or_done_is_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["recover", "export", str(tmp_path / "empty")]) == 1
    assert "is not a data directory" in capsys.readouterr().err
    assert main(["recover", "export", str(tmp_path / "empty"), "--since", "us"]) == 2
    assert main(["recover", "export", str(tmp_path / "empty"), "--since", "us:3"]) == 2
    assert "not an origin: 'us'; it names a replica, for example us@1-" in capsys.readouterr().err
    with opened(tmp_path / "us") as us:
        us.put("k", 1)
        assert main(["recover", "export", str(tmp_path / "us")]) != 0
        assert "in use" in capsys.readouterr().err
        with crdtkv.Node(us) as node:
            for text in ("{", "[]", '{"origin": "x", "seq": 1, "operations": [{"name": "drop", "key": "k"}]}',
                         '{"origin": "x", "seq": 1, "operations": [{"name": "increment", "key": "k", "amount": null}]}'):  # fmt: skip
                file = tmp_path / "file"
                file.write_text('{"origin": "x", "seq": 1, "operations": [{"name": "put", "key": "k", "value": 2}]}\n' + text)
                assert main(["recover", "reissue", str(file), "--at", node.address]) == 2
                error = capsys.readouterr().err
                assert "line 2" in error and error.count("\n") == 1
        assert us["k"] == 1
