"""docs/limits.md names every limit of a store and of a node, with the default that the code has."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from crdtkv.core.codec import KEY_BYTES_MAX, VALUE_DEPTH_MAX
from crdtkv.core.frame import FRAME_BYTES_MAX
from crdtkv.node.config import Limits
from crdtkv.replication.settings import ReplicationSettings
from crdtkv.store.settings import Settings
from tests.unit.documents import ROOT

ROW = re.compile(r"^\| `(\w+)` \| ([\d,]+)", re.MULTILINE)


def documented(heading: str) -> dict[str, int]:
    """Name and number of each row under a heading."""
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {name: int(number.replace(",", "")) for name, number in ROW.findall(section)}


@pytest.mark.parametrize(
    ("heading", "settings", "complete"),
    [("Of a store", Settings(), True), ("Of a node", Limits(), True), ("Of replication", ReplicationSettings(), False)],
)
def test_settings_have_the_documented_defaults(heading: str, settings: Any, complete: bool) -> None:
    page = documented(heading)
    code = {
        field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in ("cluster", "shard", "instance_dir")
    }
    assert page == (code if complete else {name: code[name] for name in page})
    assert page


def test_limits_of_data_are_those_of_the_codec() -> None:
    assert documented("Of data") == {
        "KEY_BYTES_MAX": KEY_BYTES_MAX,
        "VALUE_DEPTH_MAX": VALUE_DEPTH_MAX,
        "FRAME_BYTES_MAX": FRAME_BYTES_MAX,
    }
