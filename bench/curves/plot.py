"""All curves as one picture: a panel each, logarithmic, cost a operation against what grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.judging import human, unit

COLOURS: Final = ("#2f66d0", "#bd6b00", "#0c8573", "#8b46c1")


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the picture (the suffix says the form).

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "crdtkv", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot

    curves = document["curves"]
    columns = 2
    figure, axes = pyplot.subplots(-(-len(curves) // columns), columns, figsize=(11, 3.1 * -(-len(curves) // columns)), squeeze=False)
    panels = [panel for line in axes for panel in line]
    for panel, curve in zip(panels, curves.values(), strict=False):
        _panel(panel, curve)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    figure.text(0.01, 0.004, f"Measured {machine.line(document['machine'])}", fontsize=8, color="#5c6470")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(panel: Any, curve: Mapping[str, Any]) -> None:
    points = curve["points"]
    metrics = list(points[0]["figures"])
    for metric, colour in zip(metrics, COLOURS, strict=False):
        xs = [point["x"] for point in points if metric in point["figures"]]
        ys = [point["figures"][metric] for point in points if metric in point["figures"]]
        panel.plot(xs, ys, marker="o", markersize=3.5, color=colour, label=label(metric))
    linear = max(point["x"] for point in points) < 20
    panel.set_xscale("linear" if linear else "log")
    panel.set_yscale("log")
    if linear:
        panel.set_xticks([point["x"] for point in points])
    else:
        panel.xaxis.set_major_formatter(lambda value, _: human(value))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.yaxis.set_minor_formatter(lambda value, _: "")
    low, high = panel.get_ylim()
    panel.set_ylim(10 ** math.floor(math.log10(low)), 10 ** (math.ceil(math.log10(high)) + 0.6))  # whole decades, and room for the legend
    panel.set_title(curve["title"], loc="left", fontweight="bold", fontsize=10)
    panel.set_xlabel(curve["x"])
    panel.grid(True, axis="y", color="#ecece8")
    panel.legend(frameon=False, fontsize=8, ncols=4, loc="upper left")


def label(metric: str) -> str:
    """
    >>> label("put_us"), label("delta_bytes")
    ('put (µs)', 'delta (B)')
    """
    name = metric.rsplit("_", 1)[0].replace("_", " ")
    return f"{name} ({unit(metric).strip()})"
