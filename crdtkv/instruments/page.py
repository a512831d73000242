"""Composes a page that needs no network: the packaged frame, the report as JSON inside it, and the script that draws it.

`page.html.template` holds the style, light and dark, `page.js` elements and charts, `pairs.js` charts of pairs of regions; each
instrument adds scripts that arrange its sections. Text of the report reaches the page only as JSON, and the scripts make text nodes of it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

_PLACEHOLDERS = re.compile(r"/\*(TITLE|DATA|REPORT|SHARED|PAGE)\*/")


def compose(title: str, report: Mapping[str, Any], data_name: str, package: str, script: str, *, pairs: bool = True) -> str:
    """The page.

    Args:
        report: plain JSON types.
        data_name: the file beside the page that has the same figures.
        package, script: where the page's own script lies.
        pairs: whether it is about pairs of regions.
    """
    here = resources.files("crdtkv.instruments")
    shared = ("page.js", "pairs.js") if pairs else ("page.js",)
    parts = {
        "TITLE": html.escape(title),
        "DATA": html.escape(data_name),
        # Inside a script element only `<` could end it early; JSON allows it escaped.
        "REPORT": json.dumps(report, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "SHARED": "\n".join(here.joinpath(name).read_text(encoding="utf-8").rstrip() for name in shared),
        "PAGE": resources.files(package).joinpath(script).read_text(encoding="utf-8").rstrip(),
    }
    # One pass, so that nothing in the report is taken for a placeholder.
    return _PLACEHOLDERS.sub(lambda found: parts[found[1]], here.joinpath("page.html.template").read_text(encoding="utf-8"))
