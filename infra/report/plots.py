"""Plots as SVG texts that can stand in one page; the same rows give the same bytes."""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from itertools import groupby, islice
from typing import Any

import matplotlib
import matplotlib.dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

WIDTH = 7.0  # inches; A4 less its margins
PANELS_MAX = 12  # of one kind; the tables hold the rest
GROUPS_MAX = 20  # of a panel by group
LINES_MAX = 6  # of a panel over time
LABEL_MAX = 28  # characters
FOUR_FIFTHS = 0.8
MARGIN = timedelta(hours=1)
# colours that people of every colour vision tell apart: Okabe & Ito
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lrai",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a group may be named $x$
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": GREY,
    "ytick.color": "black",
    "lines.linewidth": 1.2,
    "timezone": "UTC",
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
# or every element would have a prefix that HTML does not know
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def selection_rates(rows: Rows) -> list[str]:
    """Rate with interval, and impact ratio, of each group: a panel an attribute."""
    stated = [row for row in rows if row["decided"] is not None]
    return [
        _drawn(f"Selection rates, {name}", 2, 0.22 * min(len(each), GROUPS_MAX) + 0.62, partial(_rates, each))
        for name, each in _panels(stated)
    ]


def _rates(rows: Rows, axes: Sequence[Axes]) -> None:
    shown = rows[:GROUPS_MAX]
    places = range(len(shown))
    rate, ratio = axes
    for place, row in zip(places, shown, strict=True):
        rate.plot([row["low"], row["high"]], [place, place], color=COLOURS[0], linewidth=2, alpha=0.4)
        rate.plot(row["selection_rate"], place, "o", color=COLOURS[0], markersize=4)
        if row["impact_ratio"] is not None:
            ratio.plot(row["impact_ratio"], place, "o", color=COLOURS[0], markersize=4)
    rate.set(xlim=_around([row[each] for row in shown for each in ("low", "high")]), ylim=(len(shown) - 0.5, -0.5))
    rate.set_yticks(places, [f"{_label(row['group'])}  (n = {row['decided']:,})" for row in shown])
    rate.set_xlabel("selection_rate, Wilson interval 95 %")
    ratio.axvline(FOUR_FIFTHS, color=GREY, linewidth=0.8, linestyle=":")
    ratio.annotate("four fifths", (FOUR_FIFTHS, 1), (2, 1), ("data", "axes fraction"), "offset points", color=GREY)
    lowest = min([FOUR_FIFTHS, *(row["impact_ratio"] for row in shown if row["impact_ratio"] is not None)])
    ratio.set(xlim=(max(0.0, lowest - 0.1), 1.02), ylim=rate.get_ylim(), xlabel="impact_ratio")
    ratio.set_yticks(places, [""] * len(shown))
    for each in axes:
        each.tick_params(axis="y", length=0)
        each.grid(axis="x", color="#e5e5e5", linewidth=0.5)


def rates_over_time(rows: Rows) -> list[str]:
    """A line a group with its interval: a panel an attribute."""
    draw = partial(_lines, ("selection_rate", "low", "high"), "bucket")
    return [_drawn(f"Selection rates over time, {name}", 1, 1.9, partial(draw, each)) for name, each in _panels(rows)]


def tests_over_time(rows: Rows) -> list[str]:
    """The difference of each group with its confidence sequence: a panel a definition and attribute."""
    found = []
    for name, each in _panels(rows, "definition"):
        groups = sorted({row["group"] for row in each})
        mirrored = len(groups) == 2  # each says the same about the other
        shown = [row for row in each if row["group"] == groups[0]] if mirrored else each
        found.append(_drawn(f"{each[0]['definition']}, {name}", 1, 1.9, partial(_differences, shown)))
    return found


def _differences(rows: Rows, axes: Sequence[Axes]) -> None:
    limit = rows[-1]["limit"]
    furthest = min(1.0, max(2 * limit, *(1.3 * abs(row["difference"]) for row in rows)))
    axes[0].set_ylim(-furthest, furthest)
    _lines(("difference", "difference_low", "difference_high"), "at", rows, axes)
    axes[0].axhline(0, color=GREY, linewidth=0.6)
    for side in (-limit, limit):
        axes[0].axhline(side, color=GREY, linewidth=0.8, linestyle=":")


def _lines(names: tuple[str, str, str], moment: str, rows: Rows, panel: Sequence[Axes]) -> None:
    (axes,) = panel
    largest: dict[str, int] = {}
    for row in rows:
        largest[row["group"]] = largest.get(row["group"], 0) + (row["decided"] or 0)
    shown = sorted(largest, key=lambda group: (-largest[group], group))[:LINES_MAX]
    ends = []
    for colour, group in zip(COLOURS, shown, strict=False):
        own = [row for row in rows if row["group"] == group]
        middle, low, high = ([row[name] for row in own] for name in names)
        times = [row[moment] for row in own]
        axes.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(times, middle, color=colour, marker="o", markersize=2.5)
        ends.append((middle[-1], group, colour))
    moments = {row[moment] for row in rows}
    if len(moments) == 1:  # or the axis would show years
        axes.set_xlim(min(moments) - MARGIN, max(moments) + MARGIN)
    axes.set_ylabel(names[0])
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.5)
    dates: Any = matplotlib.dates  # its functions have no types
    locator = dates.AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    _named_at_the_end(axes, ends)


def _named_at_the_end(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names right of the lines, at the height of their ends but never upon one another."""
    low, high = axes.get_ylim()
    places = sorted(((value - low) / (high - low or 1), group, colour) for value, group, colour in ends)
    previous = -1.0
    for place, group, colour in places:
        previous = max(place, previous + 0.1)
        axes.annotate(_label(group), (1, previous), (4, 0), "axes fraction", "offset points", color=colour, va="center")


def drift(rows: Rows) -> list[str]:
    """PSI of each feature beside its limit: a panel a version."""
    found = []
    for (model, version), group in groupby(rows, lambda row: (row["model"], row["version"])):
        each = list(group)[:GROUPS_MAX]
        found.append(_drawn(f"Drift, {model}/{version}", 1, 0.2 * len(each) + 0.6, partial(_indices, each)))
    return found[:PANELS_MAX]


def _indices(rows: Rows, panel: Sequence[Axes]) -> None:
    (axes,) = panel
    for place, row in enumerate(rows):
        colour = COLOURS[1] if row["state"] in ("warn", "alarm") else COLOURS[0]
        axes.plot([0, row["psi"]], [place, place], color=colour, linewidth=2, alpha=0.4)
        axes.plot(row["psi"], place, "o", color=colour, markersize=4)
        axes.plot(row["psi_limit"], place, "|", color="black", markersize=9)
    axes.set_yticks(range(len(rows)), [_label(row["feature"]) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="population stability index; the bar is its limit")
    axes.set_xlim(left=0)


def _panels(rows: Iterable[dict[str, Any]], *further: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """By model, version and attribute; the rows are in this order."""
    keys = ("model", "version", "attribute", *further)
    panels = groupby(rows, lambda row: tuple(row[key] for key in keys))
    for (model, version, attribute, *_), group in islice(panels, PANELS_MAX):
        yield f"{model}/{version} by {attribute}", list(group)


def _drawn(title: str, columns: int, height: float, draw: Callable[[Sequence[Axes]], None]) -> str:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the texts, not ours
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        widths = (2, 1)[:columns]
        axes = figure.subplots(1, columns, squeeze=False, gridspec_kw={"width_ratios": widths})[0]
        axes[0].set_title(_label(title, 90))
        draw(list(axes))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Without the head of a file, and with ids that no other plot of the page has."""
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    prefix = f"p{zlib.crc32(title.encode(errors='replace')):08x}-"
    for node in root.iter():
        for name, value in list(node.attrib.items()):
            if name == "id":
                node.set(name, prefix + value)
            elif name == _HREF and value.startswith("#"):
                node.set(name, f"#{prefix}{value[1:]}")
            elif value.startswith("url(#"):
                node.set(name, value.replace("url(#", f"url(#{prefix}"))
    root.set("role", "img")
    root.set("aria-label", _label(title, 200))
    return ElementTree.tostring(root, encoding="unicode")


def _label(text: str, longest: int = LABEL_MAX) -> str:
    """What can be drawn: printable, and not too long."""
    printable = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return printable if len(printable) <= longest else printable[: longest - 1] + "…"


def _around(values: Sequence[float]) -> tuple[float, float]:
    margin = max(0.02, 0.08 * (max(values) - min(values)))
    return max(0.0, min(values) - margin), min(1.0, max(values) + margin)
