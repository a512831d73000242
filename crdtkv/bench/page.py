"""Writes what an instrument found: `results.json` with every number, and `index.html`, one page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crdtkv.instruments.page import compose


def write_results(results: Mapping[str, Any], directory: Path) -> Path:
    """Write both files into a directory, made if it is not there; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    page = directory / "index.html"
    page.write_text(render_page(results), encoding="utf-8")
    return page


def render_page(results: Mapping[str, Any]) -> str:
    """The page, by the kind of results, which lie inside it."""
    return _load_page(results) if results["kind"] == "crdtkv bench load" else _lag_page(results)


def _load_page(results: Mapping[str, Any]) -> str:
    operations = [{name: value for name, value in kind.items() if name != "histogram"} for kind in results["operations"]]
    return compose("crdtkv bench load", {**results, "operations": operations}, "results.json", "crdtkv.bench", "load.js", pairs=False)


def _lag_page(results: Mapping[str, Any]) -> str:
    """The results inside, without the histograms, of which the distribution functions say enough."""
    lag = [{name: value for name, value in pair.items() if name not in ("histogram", "slices")} for pair in results["lag"]]
    local = [{name: value for name, value in region.items() if name != "histogram"} for region in results["local"]]
    return compose("crdtkv bench lag", {**results, "lag": lag, "local": local}, "results.json", "crdtkv.bench", "lag.js")
