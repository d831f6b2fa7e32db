"""lrai report equity on a real store: each number is what plain counting says, and what its SQL gives."""

from __future__ import annotations

import doctest
import html.parser
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import jinja2
import psycopg
import pytest

from audit import fairness
from audit.fairness import Confusion
from audit.sequential import wilson
from audit.store import migrate
from infra.commands.reporting import write
from infra.parts import Parts
from infra.report import asking, page
from infra.report.asking import FOLDER, Asking, Found, NothingToReport, period, unit
from infra.report.page import cell
from infra.report.sections import SECTIONS
from schemas.errors import BadSetting, LraiError, StoreUnavailable
from tests import reported
from tests.conftest import fresh_store
from tests.reported import INJECTION, MODEL, Stored

FIRST, LAST = "2026-01-01", "2026-03-31"


@dataclass(frozen=True)
class Reported:
    url: str
    stored: Stored
    text: str
    page: Page

    def answer(self, query: str) -> Found:
        with Asking(self.url) as store:
            return store.found(query, store.scope(None, period(FIRST, LAST)))


@dataclass
class Page(html.parser.HTMLParser):
    """What a reader sees: the statements, and the cells of each section's table."""

    statements: list[str] = field(default_factory=list)
    cells: dict[str, list[list[str]]] = field(default_factory=dict)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    _inside: list[str] = field(default_factory=list)
    _section: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        self._inside.append(tag)
        if tag == "section":
            self._section = given.get("id") or ""
        elif tag == "tr":
            self.cells.setdefault(self._section, []).append([])
        elif tag == "td":
            self.cells[self._section][-1].append("")
        elif tag == "pre":
            self.statements.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "pre" in self._inside:
            self.statements[-1] += data
        elif "td" in self._inside:
            self.cells[self._section][-1][-1] += data


@pytest.fixture(scope="module")
def report(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reported]:
    file = tmp_path_factory.mktemp("report") / "equity.html"
    with fresh_store(parts.store) as url:
        migrate(url)
        stored = reported.fill(url)
        write(url, FIRST, LAST, file, None, lambda _: None)
        text = file.read_text()
        seen = Page()
        seen.feed(text)
        yield Reported(url, stored, text, seen)


def test_every_statement_runs_as_printed_and_gives_what_is_shown(report: Reported) -> None:
    assert len(report.page.statements) == len(SECTIONS)
    with psycopg.connect(report.url, autocommit=True) as connection:
        for section, statement in zip(SECTIONS, report.page.statements, strict=True):
            cursor = connection.execute(statement.encode())
            names = [each.name for each in cursor.description or ()]
            rows = [[cell(name, value) for name, value in zip(names, row, strict=True)] for row in cursor]
            assert rows, f"{section.query} is tried on nothing"
            shown = [row for row in report.page.cells.get(section.query, []) if row]
            if section.shown_as == "table":
                assert shown == rows, section.query
            elif section.shown_as == "records":
                assert [value for row in shown for value in row] == [value for row in rows for value in row]


def test_rates_are_those_of_the_metrics(report: Reported) -> None:
    rows = {(each["attribute"], each["group"]): each for each in report.answer("selection_rates").dicts()}
    for attribute, place in (("sex", 0), ("age", 1)):
        counts = report.stored.by(place)
        large = {group: each for group, each in counts.items() if each[0] >= 30 and group}
        ratios = fairness.impact_ratio(large)
        for group, (decided, favourable) in large.items():
            row = rows[attribute, group]
            assert (row["decided"], row["favourable"]) == (decided, favourable)
            found = (row["selection_rate"], row["low"], row["high"], row["impact_ratio"])
            expected = (favourable / decided, *wilson((decided, favourable)), ratios[group])
            assert found == pytest.approx(expected, abs=1e-12)
        (parity,) = [each for each in report.answer("parity").dicts() if each["attribute"] == attribute]
        found = (parity["demographic_parity_difference"], parity["demographic_parity_ratio"])
        expected = fairness.demographic_parity_difference(large), fairness.demographic_parity_ratio(large)
        assert found == pytest.approx(expected, abs=1e-12)
    assert math.isclose(
        rows["sex+age", "F+old"]["selection_rate"],
        report.stored.favourable["F", "old"] / report.stored.decided["F", "old"],
    )


def test_odds_are_those_of_the_metrics(report: Reported) -> None:
    confusions: dict[str, list[int]] = {}
    for (_, age), counts in report.stored.labelled.items():
        for place, each in enumerate(counts):
            confusions.setdefault(age, [0] * 4)[place] += each
    expected = {age: Confusion(*counts) for age, counts in confusions.items()}
    (row,) = [each for each in report.answer("odds").dicts() if each["attribute"] == "age"]
    assert math.isclose(row["equalized_odds_difference"], fairness.equalized_odds_difference(expected))
    assert math.isclose(row["equal_opportunity_difference"], fairness.equal_opportunity_difference(expected))
    labelled = sum(each.decided for each in expected.values())
    assert math.isclose(row["label_coverage"], labelled / report.stored.decided.total())
    for each in report.answer("odds_by_group").dicts():
        if each["attribute"] == "age":
            own = expected[each["group"]]
            correct = sum(n for (_, age), n in report.stored.correct.items() if age == each["group"])
            assert math.isclose(each["accuracy"], correct / own.decided)
            assert math.isclose(each["true_positive_rate"], own.true_positive / own.positive)


def test_time_adds_up_to_the_whole(report: Reported) -> None:
    whole = {group: counts for group, counts in report.stored.by(0).items() if group in "FM" and group}
    rows = [each for each in report.answer("rates_over_time").dicts() if each["attribute"] == "sex"]
    assert {each["group"] for each in rows} == set(whole)
    for group, counts in whole.items():
        own = [each for each in rows if each["group"] == group]
        assert (sum(each["decided"] for each in own), sum(each["favourable"] for each in own)) == counts
    assert len(rows) == 2 * reported.WEEKS


def test_small_groups_are_nowhere_and_cannot_be_worked_out(report: Reported) -> None:
    small, missing = (report.stored.by(0)[group][0] for group in (INJECTION, ""))
    assert 0 < small < 30 < missing
    rates = [each for each in report.answer("selection_rates").dicts() if each["attribute"] == "sex"]
    assert [each["group"] for each in rates] == ["M", "F", "(2 hidden)"]
    assert report.stored.decided.total() - sum(each["decided"] or 0 for each in rates) == small + missing
    coverage = {each["attribute"]: each for each in report.answer("attribute_coverage").dicts()}["sex"]
    assert math.isclose(coverage["attribute_coverage"], 1 - (small + missing) / report.stored.decided.total())
    tested = [each for each in report.answer("tests_by_group").dicts() if each["attribute"] == "sex"]
    assert {each["group"] for each in tested} == {"F", "M"}
    counts = {group: each for group, each in report.stored.by(0).items() if group}
    exact = fairness.demographic_parity(counts, 0.05, 0.01)
    for each in tested:
        (group,) = [found for found in exact.groups if found.group == each["group"]]
        others = sum(decided for decided, _ in counts.values()) - group.decided
        assert 0 < abs(each["difference"] - group.difference) <= 15 / others
    (record,) = [each for each in report.answer("tests").dicts() if each["attribute"] == "sex"]
    assert record["value"] is None and record["coverage"] is None and record["state"] == exact.state


CELLS = [
    ({"A": 500, "B": 100}, set()),
    ({"A": 500, "B": 100, "C": 29}, {"C", "B"}),
    ({"A": 500, "B": 100, "C": 29, None: 400}, {"C", None}),
    ({"A": 500, "B": 100, "C": 29, None: 0}, {"C", None, "B"}),
    ({"A": 500, "B": 100, "C": 20, "D": 10}, {"C", "D"}),
    ({"A": 500, "B": 30, "C": 2, "D": 1}, {"B", "C", "D"}),
    ({"A": 3}, {"A"}),
]


@pytest.mark.parametrize(("decided", "hidden"), CELLS)
def test_hidden_groups_hide_thirty_decisions_together(
    report: Reported, decided: dict[str | None, int], hidden: set[str | None]
) -> None:
    query = jinja2.Environment(loader=jinja2.FileSystemLoader(FOLDER)).from_string(
        """with cells as (
            select * from unnest(%s::text[], %s::bigint[]) c ("group", decided)
        ), {% set cell = "1" %}{% include "hidden.sql" %}
        select "group" from hidden where hidden"""
    )
    with psycopg.connect(report.url) as connection:
        found = connection.execute(query.render().encode(), [list(decided), list(decided.values())]).fetchall()
    assert {group for (group,) in found} == hidden


def test_what_clients_write_stays_text(report: Reported) -> None:
    assert "<script" not in report.text
    assert not [given for _, given in report.page.elements if any(name.startswith("on") for name in given)]
    complaints = [row for row in report.page.cells["complaints"] if row]
    assert complaints[0][6] == INJECTION
    assert INJECTION in [value for row in report.page.cells["freezes"] for value in row]
    assert not [given for tag, given in report.page.elements if tag in ("img", "link", "iframe", "object")]


def test_the_plots_of_one_page_do_not_share_ids(report: Reported) -> None:
    ids = [given["id"] for _, given in report.page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    assert len([tag for tag, _ in report.page.elements if tag == "svg"]) == 9


def test_it_is_the_same_twice_but_for_the_moment(report: Reported, tmp_path: Path) -> None:
    write(report.url, FIRST, LAST, tmp_path / "again.html", MODEL, lambda _: None)

    def without_moment(text: str) -> list[str]:
        return [line for line in text.splitlines() if 'class="meta"' not in line]

    assert without_moment((tmp_path / "again.html").read_text()) == without_moment(report.text)


@pytest.mark.parametrize(
    ("first", "last", "model", "error", "message"),
    [
        ("2026-04-01", "2026-03-31", None, BadSetting, "--from '2026-04-01' is not before --to '2026-03-31'"),
        ("yesterday", "2026-03-31", None, BadSetting, "--from 'yesterday' is no date"),
        ("2026-01-01", "2026-13-01", None, BadSetting, "--to '2026-13-01' is no date"),
        ("0001-01-01", "9999-12-31", None, BadSetting, "--to '9999-12-31' is no date"),
        ("2020-01-01", "2020-12-31", None, NothingToReport, "the store has no decisions from 2020-01-01 to 2020-12-31"),
        ("2020-01-01", "2020-12-31", MODEL, NothingToReport, "it holds those from 2026-01-01 03:00"),
        (FIRST, LAST, "lones", BadSetting, f"--model 'lones': the store knows no such model; there are {MODEL}"),
    ],
)
def test_what_cannot_be_reported_is_said(
    report: Reported, tmp_path: Path, first: str, last: str, model: str | None, error: type[LraiError], message: str
) -> None:
    with pytest.raises(error) as raised:
        write(report.url, first, last, tmp_path / "r.html", model, lambda _: None)
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_written_is_said_before_the_store_is_asked(tmp_path: Path) -> None:
    for target, message in ((tmp_path, "is a folder; name a file"), (tmp_path / "no/r.html", "there is no folder")):
        with pytest.raises(LraiError, match=message):
            write("postgresql://127.0.0.1:1/x", FIRST, LAST, target, None, lambda _: None)


def test_a_store_that_is_away_empty_or_closed_is_said(parts: Parts, report: Reported, tmp_path: Path) -> None:
    def message(url: str) -> str:
        with pytest.raises((StoreUnavailable, NothingToReport)) as raised:
            write(url, FIRST, LAST, tmp_path / "r.html", None, lambda _: None)
        return str(raised.value)

    assert "the audit store does not answer" in message("postgresql://127.0.0.1:1/x")
    assert "migrate it by starting `lrai run audit`" in message(parts.store.rsplit("/", 1)[0] + "/template1")
    with fresh_store(parts.store) as url:
        migrate(url)
        assert "it is empty" in message(url)
    as_reader = psycopg.conninfo.make_conninfo(report.url, options="-c role=lrai_reader")
    assert "grant lrai_attributes_reader" in message(as_reader)


def test_an_attributes_reader_gets_the_same(report: Reported, tmp_path: Path) -> None:
    url = psycopg.conninfo.make_conninfo(report.url, options="-c role=lrai_attributes_reader")
    write(url, FIRST, LAST, tmp_path / "r.html", None, lambda _: None)
    seen = Page()
    seen.feed((tmp_path / "r.html").read_text())
    assert seen.cells == report.page.cells


def test_the_command_names_the_file(report: Reported, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "lrai", "report", "equity", "--from", FIRST, "--to", LAST]
    done = subprocess.run(
        [*command, "--store", report.url], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"equity-{FIRST}-{LAST}.html"
    assert (tmp_path / done.stdout.strip()).read_text().startswith("<!doctype html>")


def test_the_questions_of_the_document_have_answers(report: Reported) -> None:
    text = (Path(__file__).parents[2] / "docs/equity.md").read_text()
    (block,) = re.findall(r"<!-- test: sql -->\n```sql\n(.*?)```", text, re.DOTALL)
    questions = [each.strip() for each in block.replace("diabetes", MODEL).split(";") if each.strip()]
    assert len(questions) == 10
    with psycopg.connect(report.url, autocommit=True) as connection:
        answers = [connection.execute(each.encode()).fetchall() for each in questions]
    assert [number for number, rows in enumerate(answers) if not rows] == [7]  # nothing was answered under the freeze


def test_a_period_ends_with_its_last_day() -> None:
    quarter = period(FIRST, LAST)
    assert quarter.following - quarter.first == timedelta(days=90)
    hour = period("2026-01-01T10:00:00+01:00", "2026-01-01T10:00:00+00:00")
    assert hour.following - hour.first == timedelta(hours=1)
    assert period("2026-01-01", "2026-01-01").following - quarter.first == timedelta(days=1)




def test_the_unit_of_time_shows_something_and_not_too_much() -> None:
    hours = (0.005, 0.9, 40, 60 * 24, 90 * 24, 730 * 24)
    assert [unit(timedelta(hours=each)) for each in hours] == ["second", "minute", "hour", "day", "week", "month"]


@pytest.mark.parametrize("module", [asking, page])
def test_examples_are_true(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
