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
        assert main(["recover", "export", str(tmp_path / "clone"), "--since", f"{origin}:{common}", "--out", str(file)]) == 0
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["seq"] for line in lines] == list(range(common + 1, common + 9)) and {line["origin"] for line in lines} == {origin}
        assert lines[5]["operations"] == [{"name": "increment", "key": "c", "amount": 5}]
        # A replica that starts from nothing: it fetches everything, and writes the branch anew.
        with crdtkv.open(tmp_path / "new", region="us", durability="async", settings=TRUSTING) as us:
            with crdtkv.Node(us, peers={"eu": there.address}, replication="loopback") as node:
                until(lambda: us.vv() == eu.vv(), "the new replica has everything")
                for told in (f"7 commits re-issued at {node.address}; ", f"0 commits re-issued at {node.address}; 7 done before; "):
                    capsys.readouterr()
                    assert main(["recover", "reissue", str(file), "--at", node.address]) == 0
                    assert capsys.readouterr().out == told + "1 without effect\n"
                until(lambda: us.vv() == eu.vv(), "they are equal")
                assert us.digest() == eu.digest() and us.origin != origin
            known: dict[str, Any] = {"by us": "kept", "by the clone": b"\x00\xff", "s": ["a"], "c": 13, "both": 1}
            assert dict(eu.scan()) == {**known, "m": {"f": {"x": [1, None]}}}


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
            for text in ("{", "[]", '{"origin": "x", "seq": 2, "operations": [{"name": "drop", "key": "k"}]}',
                         '{"origin": "x", "seq": 2, "operations": [{"name": "increment", "key": "k", "amount": null}]}'):  # fmt: skip
                file = tmp_path / "file"
                file.write_text('{"origin": "x", "seq": 1, "operations": [{"name": "put", "key": "k", "value": 2}]}\n' + text)
                assert main(["recover", "reissue", str(file), "--at", node.address]) == 2
                error = capsys.readouterr().err
                assert "line 2" in error and error.count("\n") == 1
            put = {"name": "put", "key": "k", "value": 2}
            for seq, operation, why in (
                (2, {"name": "put", "value": 2}, "'key' is missing"),
                (2, {"name": "add", "key": 7, "value": 2}, "key"),
                (2, {**put, "expires_ms": "x"}, "expires_ms"),
                (1, put, "commit x:1 stands in line 1 already"),
            ):
                commits = [{"origin": "x", "seq": 1, "operations": [put]}, {"origin": "x", "seq": seq, "operations": [operation]}]
                file.write_text("\n".join(map(json.dumps, commits)))
                assert main(["recover", "reissue", str(file), "--at", node.address]) == 2
                error = capsys.readouterr().err
                assert "line 2" in error and why in error and error.count("\n") == 1
        assert us["k"] == 1


def test_a_point_that_the_directory_does_not_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a slip in `--since`, more would be told than asked for, and then written twice, or nothing at all."""
    with opened(tmp_path / "us") as us:
        origin = us.origin
        us.counter("n").increment(5)
        us.counter("n").increment(7)
    here, file = tmp_path / "us", tmp_path / "file"
    file.write_text("as it was")
    export = ["recover", "export", str(here), "--out", str(file)]
    for points, why in (
        (["us@1-deadbeef:1"], f"--since: us@1-deadbeef wrote nothing in {here}; what was written there is of {origin} (up to 2)"),
        (["us@1-deadbeef:0"], "--since: us@1-deadbeef wrote nothing"),
        (["zz@1-00000000:3"], "--since: zz@1-00000000 wrote nothing"),
        ([f"{origin}:1", "us@2-00000000:3"], "--since: us@2-00000000 wrote nothing"),
        ([f"{origin}:3"], f"--since: {here} has {origin} only up to 2, not up to 3"),
        ([f"{origin}:{'9' * 5000}"], "is not ORIGIN:SEQ"),
        ([f"{origin}:0", f"{origin}:1"], f"--since: {origin} is named twice, up to 0 and up to 1"),
    ):
        assert main([*export, *(part for point in points for part in ("--since", point))]) == 2
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1
        assert file.read_text() == "as it was"
    assert main([*export, "--since", f"{origin}:1"]) == 0
    assert capsys.readouterr().out == f"1 commit written to {file}\n"
    assert [json.loads(line)["seq"] for line in file.read_text().splitlines()] == [2]
    assert main([*export, "--since", f"{origin}:2"]) == 0
    assert capsys.readouterr().out == f"0 commits written to {file}\n"
    assert file.read_text() == ""


def test_an_export_to_stdout_says_on_stderr_how_much_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path / "us") as us:
        us.put("k", 1)
        us.put("k", 2)
    assert main(["recover", "export", str(tmp_path / "us")]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2 and told.err == "2 commits written\n"


def test_a_directory_that_has_written_nothing_yet_knows_its_own_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path / "us") as us:
        origin = us.origin
    assert main(["recover", "export", str(tmp_path / "us"), "--since", f"{origin}:0"]) == 0
    assert capsys.readouterr().err == "0 commits written\n"
    assert main(["recover", "export", str(tmp_path / "us"), "--since", f"{origin}:1"]) == 2
    assert "only up to 0" in capsys.readouterr().err
