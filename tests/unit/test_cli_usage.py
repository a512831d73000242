"""The command line as typed: exit statuses, one line on stderr, forms of output, a quick help. Data commands run on an embedded store."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import crdtkv
from crdtkv.cli import main as main_module
from crdtkv.cli.errors import exit_status
from crdtkv.cli.main import main
from crdtkv.cli.output import from_json, to_json
from crdtkv.cli.place import Place, where_options
from crdtkv.cli.region import next_command
from crdtkv.cluster.control import ClusterError, ClusterFile, ClusterNotRunningError
from crdtkv.errors import (
    ConfigError,
    CorruptionError,
    CrdtkvError,
    DeadlineExceededError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyTooLargeError,
    OverloadedError,
    RegionUnavailableError,
    StorageError,
    StoreLockedError,
    ValueTooLargeError,
    WrongTypeError,
)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CRDTKV_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[crdtkv.Store]:
    """What data commands talk to, instead of a node."""
    with crdtkv.open() as opened:
        monkeypatch.setattr(Place, "connect", lambda self: nullcontext(opened))
        monkeypatch.setenv("CRDTKV_AT", "127.0.0.1:1")
        yield opened


class Ran:
    def __init__(self, status: int, out: bytes, err: str) -> None:
        self.status = status
        self.raw = out
        self.err = err

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run(*args: str, status: int = 0) -> Ran:
        found = main(args)
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        ran = Ran(found, out, err.decode())
        assert found == status, f"{args} ended with {found}: {ran.err}"
        if status in (1, 2, 3) and "-o" not in args:
            assert ran.err.startswith("crdtkv: ") and ran.err.count("\n") == 1, ran.err
        return ran

    return run


# -- statuses and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidKeyError, 2),
        (KeyTooLargeError, 2),
        (InvalidValueError, 2),
        (ValueTooLargeError, 2),
        (WrongTypeError, 2),
        (ConfigError, 2),
        (KeyNotFoundError, 1),
        (StorageError, 1),
        (StoreLockedError, 1),
        (CorruptionError, 1),
        (ClusterError, 1),
        (ClusterNotRunningError, 1),
        (CrdtkvError, 1),
        (RegionUnavailableError, 3),
        (DeadlineExceededError, 3),
        (OverloadedError, 3),
    ],
)
def test_each_error_has_its_exit_status(error: type[CrdtkvError], status: int) -> None:
    assert exit_status(error("text")) == status


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["--nonsense"],
        ["put"],
        ["put", "k", "v"],  # no node named
        ["put", "k", "--at", "127.0.0.1:1"],  # no value
        ["put", "k", "v", "--json", "1", "--at", "127.0.0.1:1"],
        ["put", "k", "--json", "{", "--at", "127.0.0.1:1"],
        ["get", "k", "--at", "127.0.0.1:1", "--region", "us"],
        ["get", "k", "-o", "yaml"],
        ["incr", "k", "many", "--at", "127.0.0.1:1"],
        ["sadd", "k", "--at", "127.0.0.1:1"],
        ["cluster", "up", "--regions", ","],
        ["cluster", "up", "--regions", "us,us"],
        ["cluster", "up", "--latency", "us-moon=4ms"],
        ["cluster", "up", "--latency", "us-eu=soon"],
        ["cluster", "up", "--base-port", "70000"],
        ["cluster", "shape", "us"],
        ["cluster", "partition", "us-eu", "--one-way", "--half-open"],
        ["node"],
        ["node", "--region", "us", "--listen", "0.0.0.0:7000"],
        ["node", "--region", "US!", "--listen", "127.0.0.1:7000"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_status_2(run: Any, args: list[str], tmp_path: Path) -> None:
    ran = run(*args, status=2)
    assert "Traceback" not in ran.err
    assert ran.raw == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "down", "kill us", "restart us", "pause us", "resume us", "partition us-eu", "heal"])
def test_no_cluster_there_is_status_1(run: Any, command: str) -> None:
    assert "crdtkv cluster up" in run("cluster", *command.split(), status=1).err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 2}', '{"version": 1, "regions": 7, "delay_ms": []}'])
def test_a_damaged_file_of_what_ran_last_is_named_and_nothing_starts(run: Any, tmp_path: Path, text: str) -> None:
    directory = tmp_path / ".crdtkv-cluster"
    directory.mkdir()
    (directory / "last-run.json").write_text(text)
    assert ".crdtkv-cluster/last-run.json" in run("cluster", "up", "--detach", status=1).err
    assert [path.name for path in directory.iterdir()] == ["last-run.json"]


@pytest.mark.parametrize("command", ["get n", "incr n", "put k v", "scan", "watch", "smembers s", "digest", "region list"])
def test_who_does_not_answer_is_named_with_the_time_that_was_given(run: Any, command: str) -> None:
    """A process that is paused takes connections and says nothing. Calls were named by words nobody typed: `type`, `counter.increment`."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        told = run(*command.split(), "--at", at, "--timeout", "0.05", status=3).err
    assert told == f"crdtkv: no answer from {at} within 0.05 s\n"


def test_the_next_command_goes_where_this_one_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was printed without the place, and did not run when pasted."""
    found: list[Place] = []

    @click.command()
    @where_options
    def command(place: Place) -> None:
        found.append(place)

    command.main(["--at", "a:1,b:2", "--tls-ca", "my ca.pem"], standalone_mode=False)
    monkeypatch.setenv("CRDTKV_AT", "c:3")
    command.main([], standalone_mode=False)
    reply = SimpleNamespace(region="us")
    told = [next_command("remove", "eu", place, reply) for place in found]
    assert told == ["crdtkv region remove eu --at a:1,b:2 --tls-ca 'my ca.pem'", "crdtkv region remove eu"]
    assert next_command("remove", "us", found[0], reply) == "crdtkv region remove us --at HOST:PORT of a region that stays"


def test_an_unknown_region_names_the_known_ones(run: Any, tmp_path: Path) -> None:
    regions = {"us": {"address": "127.0.0.1:1"}, "eu": {"address": "127.0.0.1:2"}}
    (tmp_path / ".crdtkv-cluster").mkdir()
    ClusterFile(regions, 1, str(tmp_path / "nobody.sock")).write(tmp_path / ".crdtkv-cluster")
    assert "us, eu" in run("get", "k", "--region", "moon", status=2).err
    assert "us, eu" in run("cluster", "partition", "us-moon", status=2).err
    assert "us, eu" in run("get", "k", status=2).err
    assert "not running any more" in run("cluster", "kill", "us", status=1).err


def test_an_unreachable_node_is_status_3(run: Any) -> None:
    run("get", "k", "--at", "127.0.0.1:1", "--timeout", "0.5", status=3)


def test_the_unforeseen_is_one_line_and_debug_shows_the_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Place) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Place, "connect", broken)
    assert "Traceback" not in run("get", "k", "--at", "127.0.0.1:1", status=1).err
    monkeypatch.setenv("CRDTKV_DEBUG", "1")
    assert main(["get", "k", "--at", "127.0.0.1:1"]) == 1


def test_ctrl_c_is_status_130_and_a_broken_pipe_is_no_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Place) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Place, "connect", interrupted)
    assert main(["get", "k", "--at", "127.0.0.1:1"]) == 130


def test_a_missing_extra_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Place) -> None:
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr(Place, "connect", missing)
    assert "pip install 'crdtkv[server]'" in run("get", "k", "--at", "127.0.0.1:1", status=1).err


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_little() -> None:
    script = """
import sys, time
from crdtkv.cli.main import main
assert main(["--help"]) == 0
heavy = {"grpc", "google.protobuf", "rocksdict", "lmdb", "asyncio", "rich"} & sys.modules.keys()
assert not heavy, heavy
print(time.process_time())  # of this process alone: the machine may be busy
"""
    command = [sys.executable, "-c", script]
    root = Path(main_module.__file__).parents[2]  # where crdtkv is, installed or not
    runs = [subprocess.run(command, cwd=root, capture_output=True, text=True, check=False) for _ in range(3)]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert min(float(run.stdout.splitlines()[-1]) for run in runs) < 0.2


def test_every_command_that_is_listed_exists_and_has_help(run: Any) -> None:
    context = main_module.cli.make_context("crdtkv", ["get"])
    names = main_module.cli.list_commands(context)
    assert {"put", "get", "del", "sadd", "srem", "smembers", "incr", "hset", "hget", "hgetall", "scan", "watch"} <= set(names)
    assert {"explain", "conflicts", "digest", "status", "lag", "cluster", "node"} <= set(names)
    listed = run("--help").out
    for name in names:
        assert f"  {name} " in listed
        assert run(name, "--help").out.startswith(f"Usage: crdtkv {name} ")
    run("nonsense", status=2)
    assert run("--version").out == f"crdtkv {crdtkv.__version__}\n"


# -- data commands --------------------------------------------------------------------------------------------------


def test_put_and_get_texts_bytes_and_json(run: Any, store: crdtkv.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("put", "k", "hello").out == ""
    assert run("get", "k").out == "hello\n"
    assert run("get", "k", "-o", "json").json == {"key": "k", "found": True, "type": "register", "value": "hello"}
    run("put", "k", "--json", '{"a": [1, 2.5, null, true]}')
    assert store["k"] == {"a": [1, 2.5, None, True]}
    assert run("get", "k").json == {"a": [1, 2.5, None, True]}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x00raw")))
    run("put", "k", "-")
    assert store["k"] == b"\xff\x00raw"
    assert run("get", "k").raw == b"\xff\x00raw"
    assert run("get", "k", "-o", "json").json["value"] == {"$bytes": "/wByYXc="}
    run("put", "k", "text", "--bytes")
    assert store["k"] == b"text"
    run("put", "k", "--json", '{"$time": "2026-01-02T03:04:05+00:00"}')
    assert store["k"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    commit = run("put", "k", "again", "-o", "json").json["commit"]
    assert set(commit) >= {"origin", "seq", "hlc", "token"}


def test_absent_is_status_1(run: Any, store: crdtkv.Store) -> None:
    assert "'k'" in run("get", "k", status=1).err
    assert run("get", "k", "-o", "json", status=1).json == {"key": "k", "found": False, "type": None, "value": None}
    run("del", "k", status=1)
    run("hget", "k", "f", status=1)
    run("srem", "k", "e", status=1)
    assert run("smembers", "k").out == ""
    assert run("hgetall", "k").out == ""


def test_sets_counters_and_maps(run: Any, store: crdtkv.Store) -> None:
    run("sadd", "s", "b", "a", "--json", "1")
    assert run("smembers", "s").out.splitlines() == [str(e) for e in store.set("s").members()]
    assert run("get", "s", "-o", "json").json == {"key": "s", "found": True, "type": "set", "value": store.set("s").members()}
    run("srem", "s", "a", "absent")
    assert not store.set("s").contains("a")
    assert run("incr", "n", "5").out == "5\n"
    assert run("incr", "n", "-7").out == "-2\n"
    assert run("incr", "n").out == "-1\n"
    assert run("get", "n").out == "-1\n"
    run("hset", "m", "f", "v")
    run("hset", "m", "g", "--json", "[1]")
    assert run("hget", "m", "f").out == "v\n"
    assert run("hgetall", "m").out == 'f\t"v"\ng\t[1]\n'
    assert run("hgetall", "m", "-o", "json").json["value"] == {"f": "v", "g": [1]}
    assert run("get", "m", "-o", "json").json["type"] == "map"
    run("del", "m")
    assert not store.exists("m")


def test_a_value_that_begins_with_a_dash_goes_after_two(run: Any, store: crdtkv.Store) -> None:
    run("put", "k", "--ttl", "60", "--", "-5")
    assert store["k"] == "-5"


def test_wrong_input_changes_nothing(run: Any, store: crdtkv.Store) -> None:
    store["k"] = "v"
    before = store.vv()
    for args in (
        ["put", "k" * (1 << 20), "v"],
        ["put", "", "v"],
        ["put", "k", "--json", "99999999999999999999999"],
        ["incr", "k"],
        ["sadd", "k", "e"],
        ["hset", "k", "f", "v"],
        ["put", "k", "--json", '{"$bytes": "?"}'],
        ["put", "k", "--json", "[" * 100_000],
    ):
        assert len(run(*args, status=2).err) < 1000
    assert store.vv() == before and store["k"] == "v"


def test_scan_explain_conflicts_digest(run: Any, store: crdtkv.Store) -> None:
    store["a/1"], store["a/2"], store["b\n"] = "x", b"\x00", 3
    assert run("scan", "a/").out == 'a/1\t"x"\na/2\t{"$bytes": "AA=="}\n'
    assert run("scan", "--reverse", "--limit", "1").out == '"b\\n"\t3\n'
    assert [json.loads(line)["key"] for line in run("scan", "-o", "json").out.splitlines()] == ["a/1", "a/2", "b\n"]
    assert run("digest").out.strip() == store.digest()
    assert run("digest", "-o", "json").json["digest"] == store.digest()
    assert "a/1" in run("explain", "a/1").out
    assert run("explain", "a/1", "-o", "json").json["found"] is True
    assert run("conflicts").out == ""
    assert store.origin in run("status").out
    assert run("status", "-o", "json").json["origin"] == store.origin
    assert run("lag", "-o", "json").json["peers"] == []


def test_watch_prints_a_line_a_change(run: Any, store: crdtkv.Store) -> None:
    store["gone"] = 1
    token = store.put("k", 2).token
    store["k"] = "three"
    store.delete("gone")
    lines = run("watch", "--since", token, "--idle", "0.05", "-o", "json").out.splitlines()
    assert [(change["key"], change["kind"], change["value"]) for change in map(json.loads, lines)] == [
        ("k", "put", "three"),
        ("gone", "delete", None),
    ]
    text = run("watch", "k", "--since", token, "--idle", "0.05").out.splitlines()
    assert len(text) == 1 and text[0].endswith('register put  k = "three"')


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -5, 2.5, "text", b"\x00\xff", datetime(2026, 1, 1, tzinfo=UTC), float("inf"), [1, [b"x"]]),
        *({"a": {"b": b"c"}}, {1: "one", "1": "text"}, {"$bytes": "not ours"}, {"$map": []}, {b"k": {2: 3}}),
    ],
    ids=repr,
)
def test_json_holds_every_value(value: Any) -> None:
    assert from_json(json.loads(json.dumps(to_json(value), allow_nan=False))) == value


def test_no_color_is_honoured_and_pipes_get_plain_text(run: Any, store: crdtkv.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in run("lag").out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[3" not in run("lag").out


def test_a_table_too_wide_is_told_cell_by_cell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from crdtkv.cli import output

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for width in (300, 70):
        monkeypatch.setenv("COLUMNS", str(width))
        output.table(("peer", "link", "lag", "last heard"), [("eu", "x" * 30, "y" * 30, "z" * 30), ("ap", 1, 2, None)])
        said = capsys.readouterr().out
        assert ("peer        eu\nlink        xxx" in said) == ("last heard  –\n" in said) == (width == 70)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["clutser", "up"], "crdtkv: No such command 'clutser', perhaps 'cluster'; see `crdtkv --help`\n"),
        (["cluster", "stauts"], "crdtkv: No such command 'stauts', perhaps 'status'; see `crdtkv cluster --help`\n"),
        (["frobnicate"], "crdtkv: No such command 'frobnicate'; see `crdtkv --help`\n"),
        (["put", "k", "v", "--ttl", "soon"], "crdtkv: Invalid value for '--ttl': 'soon' is not a valid number; see `crdtkv put --help`\n"),
        (["put", "k", "-5"], "crdtkv: No such option '-5'; values that begin with - come last, after --; see `crdtkv put --help`\n"),
        (["digest", "-5"], "crdtkv: No such option '-5'; see `crdtkv digest --help`\n"),
        (["incr", "n", "x"], "crdtkv: Invalid value for '[N]': 'x' is not a valid whole number; see `crdtkv incr --help`\n"),
        (
            ["bench", "load", "--duration", "x"],
            "crdtkv: duration: 'x' is not a duration, for example 20s or 500ms; a number alone is seconds\n",
        ),
        (
            ["bench", "lag", "--latency", "x"],
            "crdtkv: latency: 'x' is not a duration, for example 40ms or 0.2s; a number alone is milliseconds\n",
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_what_is_mistyped_is_told_in_plain_words(capsys: pytest.CaptureFixture[str], typed: list[str], said: str) -> None:
    assert main(typed) == 2 and capsys.readouterr().err == said


@pytest.mark.parametrize(
    "command", [("get", "k"), ("verify",), ("region", "list"), ("backup", "create", "backups"), ("status",)], ids=" ".join
)
def test_where_nobody_listens_it_is_said_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...]) -> None:
    """`connection refused` was all that most of them said."""
    pytest.importorskip("grpc")
    assert main([*(str(tmp_path / "b") if part == "backups" else part for part in command), "--at", "127.0.0.1:1"]) == 3
    said = capsys.readouterr().err
    assert "127.0.0.1:1: connection refused; see that a node runs there, or name " in said and said.count("\n") == 1


def test_a_target_without_backups_is_said_to_have_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["backup", "list", str(tmp_path / "nowhere")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'nowhere'} holds no backup\n"
    assert main(["backup", "list", str(tmp_path / "nowhere"), "-o", "json"]) == 0 and capsys.readouterr().out == ""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command by what is typed for it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_the_form_of_the_output_is_chosen_alike_everywhere_but_where_the_docs_say() -> None:
    forms = {name: [p for p in command.params if "-o" in p.opts or "--output" in p.opts] for name, command in commands(main_module.cli)}
    assert all([option.opts for option in options] == [["-o", "--output"]] for options in forms.values() if options)
    assert all(isinstance(option.type, click.Choice) for options in forms.values() for option in options)
    assert {name for name, options in forms.items() if not options} == {"demo", "node", "recover export", "recover reissue"}


@pytest.mark.parametrize("command", ["bench load", "profile"])
def test_a_workload_that_is_none_is_told_by_the_argument_s_name(run: Any, command: str) -> None:
    said = run(*command.split(), "zz", status=2).err
    assert "Invalid value for '[WORKLOAD]': 'zz' is not one of 'a', 'b'," in said


def test_help_has_one_word_for_a_whole_number_and_names_seconds(run: Any) -> None:
    assert "INTEGER" not in "".join(run(*command, "--help").out for command in (["demo"], ["bench", "load"], ["incr"]))
    assert "--timeout SECONDS " in run("get", "--help").out and "--idle SECONDS " in run("watch", "--help").out


@pytest.mark.parametrize("group", ["cluster", "bench", "backup", "region", "recover"])
def test_a_group_lists_its_commands_with_whole_sentences(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert main([group, "--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    assert listed.count("\n") > 2 and "..." not in listed
