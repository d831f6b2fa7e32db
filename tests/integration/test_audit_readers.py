"""Who may see what of groups and people, and stores of earlier releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config

import audit.store
from audit.store import AuditWindow, Store, migrate
from kernels.spec import ModelSpec
from tests.decisions import RECEIVED_MS, Row, batch_of
from tests.watched import KEY, Writing, fetch

SPEC = ModelSpec("m", "1", "", "hash", (), (), favourable="yes", sensitive_features=("sex", "age"))
FAIRNESS = {
    "id": "f1", "model": "m", "version": "1", "attribute": "sex", "definition": "demographic_parity_difference",
    "epoch": 0, "since": RECEIVED_MS, "at": RECEIVED_MS, "decisions": 300, "coverage": 0.9, "value": 0.25, "ratio": 0.5,
    "limit": 0.05, "alpha": 0.01, "method": "sequence", "state": "warn",
}  # fmt: skip
OPEN = ("refused_record", "model_setting", "model_release", "cost_by_model_hour", "fairness_window", "drift_window",
        "label", "label_join", "label_epoch", "labelled_decision", "accuracy_by_group", "odds_by_group",
        "label_coverage", "complaint_state", "complaints_by_week")  # fmt: skip
CLOSED = ("tally_row", "fairness_row", "alert", "incident", "label_count", "labelled_group", "complaint",
          "complaint_action")  # fmt: skip


def as_role(url: str, role: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        connection.execute(f"set role {role}".encode())
        return connection.execute(statement.encode()).fetchall()


def group(name: str, decided: int) -> dict[str, Any]:
    return {
        "group": name, "decided": decided, "favourable": decided // 2, "rate": 0.5, "low": 0.25, "high": 0.75,
        "compared_with": "*", "difference": 0.0, "difference_low": -0.5, "difference_high": 0.5, "state": "ok",
    }  # fmt: skip


def test_what_each_role_may_read(url: str) -> None:
    for table in OPEN:
        as_role(url, "lrai_reader", f"select * from audit.{table}")
    for table in CLOSED:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_role(url, "lrai_reader", f"select * from audit.{table}")
    for table in (*OPEN, *CLOSED):
        as_role(url, "lrai_attributes_reader", f"select * from audit.{table}")
    for table in ("tally_row", "alert", "incident"):  # all but groups and evidence
        as_role(url, "lrai_reader", f"select id, model, version from audit.{table}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(url, "lrai_reader", "select evidence from audit.incident")


@pytest.mark.parametrize(
    ("sizes", "seen"),
    [
        ({"F": 100, "M": 30}, {"F": 100, "M": 30}),
        ({"F": 100, "M": 29}, {}),  # alone it could be worked out from the rest
        ({"F": 100, "M": 50, "X": 29}, {"F": 100}),
        ({"F": 100, "M": 28, "X": 29}, {"F": 100}),
    ],
)
def test_small_groups_and_what_they_could_be_worked_out_from_are_hidden(
    url: str, store: Store, sizes: dict[str, int], seen: dict[str, int]
) -> None:
    groups = [group(name, decided) for name, decided in sizes.items()]
    Writing(store).records(("fairness", {**FAIRNESS, "groups": groups}))
    query = 'select "group", decided, rate, difference, value, ratio, coverage, state from audit.fairness_window'
    found = as_role(url, "lrai_reader", query)
    whole = 0.25 if len(seen) == len(sizes) else None
    assert {row[0]: row[1] for row in found if row[0] in sizes} == seen
    assert [row[1:3] for row in found if row[0] not in sizes] == [(None, None)] * (len(sizes) - len(seen))
    assert {row[0] for row in found} - set(sizes) <= {"(under 30)"}
    assert {(row[4], row[7]) for row in found} == {(whole, "warn")}
    assert all((row[3] is None) == (row[5] is None) == (row[6] is None) == (whole is None) for row in found)
    for role in ("lrai_attributes_reader", "lrai"):
        assert {row[0]: row[1] for row in as_role(url, role, query)} == sizes


def test_groups_with_few_labels_are_hidden(url: str, store: Store) -> None:
    store.keep_settings([SPEC])
    sexes = ["F"] * 60 + ["M"] * 40 + ["X"] * 10
    rows = [Row(i, request_id=f"r{i}", decision="yes", attributes={"sex": sex}) for i, sex in enumerate(sexes)]
    store.write(AuditWindow([("lrai.decisions", 0, None, 1)], [batch_of(rows)], [], []))
    outcomes = (("label", {"request_id": f"r{i}", "outcome": "yes"}) for i in range(len(sexes)))
    Writing(store).records(*outcomes)
    assert store.join_labels().states == {"joined": len(sexes)}
    for view, column in (("accuracy_by_group", "accuracy"), ("odds_by_group", "true_positive_rate")):
        query = f'select "group", labelled, {column}, coverage from audit.{view}'
        query += " where attribute = 'sex' order by 2 desc"
        hidden = [("(under 30)", None, None, None)] * 2
        assert as_role(url, "lrai_reader", query) == [*hidden, ("F", 60, 1.0, 1.0)]
        assert as_role(url, "lrai_attributes_reader", query) == [
            ("F", 60, 1.0, 1.0), ("M", 40, 1.0, 1.0), ("X", 10, 1.0, 1.0)
        ]  # fmt: skip
    unstated = "select labelled from audit.accuracy_by_group where attribute = 'age'"
    assert as_role(url, "lrai_reader", unstated) == [(110,)]


def test_what_people_wrote_is_for_those_who_may_read_attributes(url: str, store: Store) -> None:
    Writing(store).records(("complaint", {"complaint_id": "c", "request_id": "r", "text": "as a woman"}))
    query = "select complaint_id, text, state from audit.complaint_state"
    assert as_role(url, "lrai_reader", query) == [("c", None, "open")]
    assert as_role(url, "lrai_attributes_reader", query) == [("c", "as a woman", "open")]


def test_decisions_under_a_freeze_say_so_and_releases_stay_one(url: str, store: Store) -> None:
    rows = [Row(0, certificate="c"), Row(1, certificate="c", frozen="f"), Row(2, certificate="c")]
    store.write(AuditWindow([("lrai.decisions", 0, None, 1)], [batch_of(rows)], [], []))
    query = "select request_offset, frozen from audit.{} order by 1"
    for view in ("decision", "decision_without_attributes"):
        assert fetch(url, query.format(view)) == [(0, None), (1, "f"), (2, None)]
    assert fetch(url, "select requests, frozen from audit.latency_by_model order by 1") == [(1, "f"), (2, None)]
    assert fetch(url, "select variant, certificate, requests, requests_frozen from audit.model_release") == [
        ("original", "c", 3, 1)
    ]


def test_a_store_of_an_earlier_release_is_migrated_with_what_it_holds(store_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(audit.store.__file__).parent / "migrations"))
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(store_url), poolclass=sqlalchemy.NullPool
    )
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create schema audit"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    old = audit.store.rows.dictionary_key(("m", "1", "original", None))
    with psycopg.connect(store_url) as connection:
        connection.execute(
            "insert into audit.release (key, model, version, variant) values (%s, 'm', '1', 'original')", [old.hex()]
        )
    migrate(store_url)
    with Store(store_url, KEY) as store:
        store.write(AuditWindow([("lrai.decisions", 0, None, 1)], [batch_of([Row(0)])], [], []))
    assert fetch(store_url, "select count(*) from audit.release") == [(1,)]
    assert fetch(store_url, "select frozen from audit.decision") == [(None,)]
    migrate(store_url)
