"""The equity report without a store: plots of strange rows, and what the command says of mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.commands.reporting import PackageMissing, require
from infra.report import plots

AT = datetime(2026, 1, 5, tzinfo=UTC)
STRANGE = "</text><script>x</script> $\\frac{ _hidden \x01 \N{CJK UNIFIED IDEOGRAPH-4E2D} " + "long " * 20


def rate(group: str, **given: Any) -> dict[str, Any]:
    row = {
        "model": "m", "version": "1", "attribute": "sex", "group": group, "bucket": AT, "decided": 100,
        "favourable": 40, "selection_rate": 0.4, "low": 0.3, "high": 0.5, "impact_ratio": 0.9,
    }  # fmt: skip
    return {**row, **given}


def difference(group: str, at: datetime = AT, **given: Any) -> dict[str, Any]:
    row = {
        "model": "m", "version": "1", "attribute": "sex", "definition": "demographic_parity_difference", "epoch": 0,
        "at": at, "group": group, "decided": 100, "difference": 0.1, "difference_low": -0.2, "difference_high": 0.4,
        "limit": 0.05,
    }  # fmt: skip
    return {**row, **given}


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_names_stay_text_and_short() -> None:
    (svg,) = plots.selection_rates([rate(STRANGE), rate("M")])
    assert "<script" not in svg
    named = [each for each in texts(svg) if "script" in each]
    assert len(named) == 1 and named[0].endswith("…  (n = 100)")
    (svg,) = plots.rates_over_time([rate("$x_1$"), rate("_y")])
    assert {"$x_1$", "_y"} <= set(texts(svg))
    assert "\x01" not in "".join(texts(plots.drift([drifted("\x01")])[0]))


def drifted(feature: str, state: str = "alarm") -> dict[str, Any]:
    return {"model": "m", "version": "1", "feature": feature, "psi": 0.3, "psi_limit": 0.2, "state": state}


def test_nothing_gives_no_plot() -> None:
    for plot in (plots.selection_rates, plots.rates_over_time, plots.tests_over_time, plots.drift):
        assert plot([]) == []


def test_a_group_without_a_ratio_and_hidden_groups_are_no_mistake() -> None:
    none = {"decided": None, "selection_rate": None, "low": None, "high": None, "impact_ratio": None}
    (svg,) = plots.selection_rates([rate("F", impact_ratio=None), rate("(1 hidden)", **none)])
    assert not [each for each in texts(svg) if "hidden" in each]
    assert plots.selection_rates([rate("(2 hidden)", **none)]) == []


def test_of_very_many_the_first_are_drawn() -> None:
    (svg,) = plots.selection_rates([rate(f"g{number}") for number in range(100)])
    assert len([each for each in texts(svg) if each.startswith("g")]) == plots.GROUPS_MAX
    many = [rate("F", attribute=f"a{number}") for number in range(100)]
    assert len(plots.selection_rates(many)) == plots.PANELS_MAX


def test_of_two_groups_the_difference_is_drawn_once() -> None:
    two = [difference(group, AT + timedelta(days=day)) for day in range(3) for group in ("F", "M")]
    (svg,) = plots.tests_over_time(two)
    assert "F" in texts(svg) and "M" not in texts(svg)
    (svg,) = plots.tests_over_time([difference(group) for group in "ABC"])
    assert {"A", "B", "C"} <= set(texts(svg))


def test_names_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    (svg,) = plots.rates_over_time([rate(group) for group in "ABCD"])
    places = re.findall(r'translate\(([\d.]+) ([\d.]+)\)">([A-D])<|<text[^>]*y="([\d.]+)"[^>]*>([A-D])<', svg)
    heights = sorted(float(each[1] or each[3]) for each in places)
    assert len(heights) == 4
    assert min(b - a for a, b in pairwise(heights)) > 7


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [rate("F"), rate("M", selection_rate=0.35)]
    assert plots.selection_rates(rows) == plots.selection_rates(rows)


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("json")
    with pytest.raises(PackageMissing, match=re.escape("no_such_package is missing: pip install 'lrai[report]'")):
        require("json", "no_such_package")


def test_a_mistake_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lrai", "report", "equity", "--store", "postgresql://127.0.0.1:1/x"]
    done = subprocess.run(
        [*command, "--from", "2026-02-01", "--to", "2026-01-01"], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr.strip() == "lrai: --from '2026-02-01' is not before --to '2026-01-01': give a period"
    assert not list(tmp_path.iterdir())
