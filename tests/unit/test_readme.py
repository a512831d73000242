"""The README's Python blocks run as they stand, each on its own; only fixed ports are moved to free ones."""

from __future__ import annotations

import dataclasses
import re
import socket
from pathlib import Path

import pytest

from tests.unit.documents import ROOT, Block, blocks

README = ROOT / "README.md"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_free_ports(block: Block) -> Block:
    text = block.text
    for port in set(re.findall(r"127\.0\.0\.1:(\d+)", text)):
        text = text.replace(f":{port}", f":{free_port()}")
    return dataclasses.replace(block, text=text)


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda block: block.heading)
def test_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_free_ports(block).run({"__name__": "__main__"})
    assert list(tmp_path.iterdir()) == []  # an example leaves nothing behind


def test_the_three_ways_are_shown() -> None:
    shown = {block.heading for language in ("python", "bash") for block in blocks(README, language)}
    assert {"Embedded", "Cluster", "Instrument"} <= shown
