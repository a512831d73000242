"""`NodeConfig.load`: precedence, and that every wrong setting is one error which names it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from crdtkv.errors import ConfigError
from crdtkv.node.config import NodeConfig, Tls, is_loopback, parse_address
from crdtkv.node.logging import JsonFormatter, LogfmtFormatter, configure, event

MINIMAL = {"region": "us", "listen": "127.0.0.1:7001"}


def write(directory: Path, text: str) -> Path:
    file = directory / "node.toml"
    file.write_text(text)
    return file


def test_sources_rise_in_precedence(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        region = "us"
        listen = "127.0.0.1:1"
        durability = "async"
        [peers]
        eu = "127.0.0.1:2"
        [log]
        level = "debug"
        [limits]
        watch_queue_max = 7
        """,
    )
    env = {"CRDTKV_LISTEN": "127.0.0.1:11", "CRDTKV_DURABILITY": "sync", "CRDTKV_AT": "belongs to the client"}
    config = NodeConfig.load(file, env, {"listen": "127.0.0.1:21", "data": tmp_path, "region": None, "peers": ()})
    assert (config.region, config.listen, config.durability) == ("us", "127.0.0.1:21", "sync")
    assert config.peers == {"eu": "127.0.0.1:2"}
    assert config.data == tmp_path
    assert (config.log_level, config.limits.watch_queue_max) == ("debug", 7)


def test_settings_of_the_store_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    """How much of its log a node keeps could be read in docs/limits.md, and be set by nobody."""
    file = write(tmp_path, "[store]\nlog_keep_bytes = 1_000\nlog_bytes_max = 3_000\n[limits]\nwatch_queue_max = 9\n")
    settings = NodeConfig.load(file, {"CRDTKV_LOG_KEEP_BYTES": "2000"}, {**MINIMAL, "cluster": "blue"}).store_settings()
    assert (settings.log_keep_bytes, settings.log_bytes_max, settings.watch_changes_max, settings.cluster) == (2_000, 3_000, 9, "blue")
    with pytest.raises(ConfigError, match=r"unknown setting store.log_keep_byte; did you mean store.log_keep_bytes\?"):
        NodeConfig.load(write(tmp_path, "[store]\nlog_keep_byte = 1\n"), {}, MINIMAL)
    with pytest.raises(ConfigError, match="log_keep_bytes: must be at most log_bytes_max, 3,000"):
        NodeConfig.load(write(tmp_path, "[store]\nlog_bytes_max = 3_000\n"), {}, MINIMAL)


def test_peers_of_a_higher_source_replace_those_below() -> None:
    env = {"CRDTKV_PEERS": "eu=127.0.0.1:2,ap=127.0.0.1:3"}
    assert NodeConfig.load(env=env, flags=MINIMAL).peers == {"eu": "127.0.0.1:2", "ap": "127.0.0.1:3"}
    assert NodeConfig.load(env=env, flags={**MINIMAL, "peers": ["ap=[::1]:9"]}).peers == {"ap": "[::1]:9"}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"listen": "127.0.0.1:7001"}, "region is not set"),
        ({"region": "us"}, "listen is not set"),
        ({**MINIMAL, "region": "US"}, "--region"),
        ({**MINIMAL, "listen": "7001"}, "--listen"),
        ({**MINIMAL, "listen": "127.0.0.1:70000"}, "70000"),
        ({**MINIMAL, "listen": "::1:7001"}, "[address]:port"),
        ({**MINIMAL, "listen": "0.0.0.0:7001"}, "--insecure"),
        ({**MINIMAL, "listen": "db.example.org:7001"}, "not a loopback address"),
        ({**MINIMAL, "peers": ["eu"]}, "REGION=HOST:PORT"),
        ({**MINIMAL, "peers": ["eu=localhost"]}, "--peer: eu"),
        ({**MINIMAL, "peers": ["us=127.0.0.1:2"]}, "own region"),
        ({**MINIMAL, "peers": ["eu=127.0.0.1:2", "eu=127.0.0.1:3"]}, "named twice"),
        ({**MINIMAL, "durability": "very"}, "memory, async, sync"),
        ({**MINIMAL, "engine": "rocksdb"}, "data is not set"),
        ({**MINIMAL, "engine": "memory", "data": "x"}, "memory"),
        ({**MINIMAL, "session_window_max": 0}, "--session-window-max"),
        ({**MINIMAL, "tls_cert": "/nowhere.pem"}, "tls.key is not set"),
        ({**MINIMAL, "tls_cert": "/nowhere.pem", "tls_key": "/nowhere.key"}, "no such file"),
        ({**MINIMAL, "colour": "red"}, "colour"),
    ],
)
def test_a_wrong_flag_is_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(flags=flags)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("regoin = 'us'", "did you mean region?"),
        ("[limits]\nwatch_queue = 5", "did you mean limits.watch_queue_max?"),
        ("[tls]\nzzz = 1", "known here: cert, key, ca"),
        ("log = 'debug'", "[log]"),
        ("listen = 7001", "node.toml: listen"),
        ("insecure = 'perhaps'", "node.toml: insecure"),
        ("peers = 5", "node.toml: peers"),
        ("peers = {eu = 5}", "node.toml: peers.eu"),
        ("region = ", "node.toml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(write(tmp_path, text), flags=MINIMAL)
    assert named in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        NodeConfig.load(tmp_path / "nowhere.toml")


def test_environment_values_are_read_as_their_types_and_named_when_wrong() -> None:
    config = NodeConfig.load(env={"CRDTKV_INSECURE": "yes", "CRDTKV_STREAMS_MAX": "5"}, flags={**MINIMAL, "listen": "0.0.0.0:0"})
    assert config.insecure and config.limits.streams_max == 5
    with pytest.raises(ConfigError, match="CRDTKV_STREAMS_MAX"):
        NodeConfig.load(env={"CRDTKV_STREAMS_MAX": "many"}, flags=MINIMAL)


def test_tls_allows_an_address_that_is_not_loopback(tmp_path: Path) -> None:
    cert, key = tmp_path / "node.pem", tmp_path / "node.key"
    cert.touch()
    key.touch()
    config = NodeConfig.load(flags={**MINIMAL, "listen": "0.0.0.0:7001", "tls_cert": cert, "tls_key": key})
    assert config.tls == Tls(cert, key)


def test_loopback_and_addresses() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
    assert parse_address("[::1]:80", "x") == ("::1", 80)
    assert parse_address("host:80", "x") == ("host", 80)


def test_log_lines_are_one_line_each_and_structured() -> None:
    out = io.StringIO()
    handler = configure("info", "json", out)
    try:
        event(logging.DEBUG, "unseen")
        event(logging.INFO, "peer_connected", region="eu", error='two\nlines "quoted"')
        handler.setFormatter(LogfmtFormatter())
        event(logging.WARNING, "peer_lost", region="eu", error="a b", known=None)
    finally:
        logging.getLogger("crdtkv.node").removeHandler(handler)
    first, second = out.getvalue().splitlines()
    assert json.loads(first)["event"] == "peer_connected"
    assert json.loads(first)["error"] == 'two\nlines "quoted"'
    assert second.split(" ", 1)[1] == 'level=warning event=peer_lost region=eu error="a b" known=null'
    assert isinstance(JsonFormatter(), logging.Formatter)
