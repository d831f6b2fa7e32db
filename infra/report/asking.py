"""Asks the store what the report shows: every statement is kept as it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import psycopg

from schemas.errors import BadSetting, LraiError, StoreUnavailable

CONNECT_S = 5
FOLDER = Path(__file__).parent / "sql"
# units of a time axis, and up to which length: few enough of them, and enough to see something
UNITS = (("second", timedelta(minutes=1)), ("minute", timedelta(hours=1)), ("hour", timedelta(hours=60)),
         ("day", timedelta(days=62)), ("week", timedelta(weeks=60)))  # fmt: skip
_MODELS = """
select distinct r.model from audit.release r
where exists (select from audit.model_setting s where s.model = r.model)
   or exists (select from audit.decision_row d where d.release_id = r.id and d.status = 0)
order by 1
"""
_ASKED = """
select array_agg(distinct r.model order by r.model), min(received_at), max(received_at) from audit.decision_row d
join audit.release r on r.id = d.release_id and r.model = any(%(models)s)
where d.received_at >= %(first)s and d.received_at < %(following)s
"""
_SPAN = "select min(received_at), max(received_at) from audit.decision_row"


class NothingToReport(LraiError):
    """There are no decisions in the period."""


@dataclass(frozen=True, slots=True)
class Period:
    """Requests that were received at first <= t < following."""

    first: datetime
    following: datetime

    def __str__(self) -> str:
        last = self.following - timedelta(microseconds=1)
        whole = not any(each.time() != datetime.min.time() for each in (self.first, self.following))
        pattern = "%Y-%m-%d" if whole else "%Y-%m-%d %H:%M:%S"
        end = last if whole else self.following
        return f"{self.first.strftime(pattern)} to {end.strftime(pattern)} UTC"


@dataclass(frozen=True)
class Scope:
    """What is asked for: models that have decisions in the period, and the unit of a time axis for them."""

    period: Period
    models: list[str]
    bucket: str


@dataclass(frozen=True)
class Found:
    """What a statement gave; `sql` can be run as it is."""

    sql: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def period(first: str, last: str) -> Period:
    """From --from and --to: dates, the last one included, or ISO 8601 moments, the last one not. UTC where not said.

    Raises BadSetting.

    >>> str(period("2026-01-01", "2026-03-31"))
    '2026-01-01 to 2026-03-31 UTC'
    """
    found = Period(_moment("--from", first), _moment("--to", last))
    if len(last.strip()) == len("2026-01-01"):
        found = Period(found.first, found.following + timedelta(days=1))
    if found.first >= found.following:
        raise BadSetting(f"--from {first!r} is not before --to {last!r}: give a period")
    return found


def unit(length: timedelta) -> str:
    """Of a time axis.

    >>> unit(timedelta(days=90))
    'week'
    """
    return next((name for name, longest in UNITS if length <= longest), "month")


def _moment(option: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment.astimezone(UTC) + timedelta(days=1)
    except (ValueError, OverflowError) as err:
        raise BadSetting(f"{option} {text!r} is no date: write 2026-01-31, or 2026-01-31T12:00:00+00:00") from err
    return moment.astimezone(UTC)


class Asking:
    """One consistent, read-only look at the store; use it as a context.

    Raises StoreUnavailable when the store does not answer, is not migrated, or does not let us read attributes.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._queries = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER), undefined=jinja2.StrictUndefined, trim_blocks=False
        )

    def __enter__(self) -> Asking:
        try:
            self._connection = psycopg.connect(
                self._url, connect_timeout=CONNECT_S, cursor_factory=psycopg.ClientCursor
            )
        except psycopg.OperationalError as err:
            raise StoreUnavailable(f"the audit store does not answer: {str(err).strip()}") from err
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True
        self._ask("set local timezone to 'UTC'", {})
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def scope(self, wanted: str | None, within: Period) -> Scope:
        """All models, or the one that is wanted. Raises BadSetting (no such model), NothingToReport."""
        known = [name for (name,) in self._ask(_MODELS, {}).rows]
        if wanted is not None and wanted not in known:
            listed = f"there are {', '.join(known)}" if known else "it holds none"
            raise BadSetting(f"--model {wanted!r}: the store knows no such model; {listed}")
        given = {"models": [wanted] if wanted else known, "first": within.first, "following": within.following}
        ((found, earliest, latest),) = self._ask(_ASKED, given).rows
        if not found:
            who = f"model {wanted}" if wanted else "the store"
            raise NothingToReport(f"{who} has no decisions {self._span(within)}")
        return Scope(within, found, unit(latest - earliest))

    def _span(self, within: Period) -> str:
        ((first, last),) = self._ask(_SPAN, {}).rows
        span = f"it holds those from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC" if first else "it is empty"
        return f"from {within}; of the store: {span}"

    def found(self, name: str, scope: Scope) -> Found:
        """What a query of the folder gives."""
        within = scope.period
        given = {
            "first": within.first, "following": within.following, "bucket": scope.bucket, "models": scope.models,
        }  # fmt: skip
        return self._ask(self._queries.get_template(f"{name}.sql").render(), given)

    def _ask(self, query: str, given: Mapping[str, object]) -> Found:
        cursor = psycopg.ClientCursor(self._connection)
        text = cursor.mogrify(query.encode(), given).strip()
        try:
            cursor.execute(text.encode())
        except psycopg.errors.InsufficientPrivilege as err:
            raise StoreUnavailable(f"{_first_line(err)}: grant lrai_attributes_reader to the user in `store`") from err
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as err:
            raise StoreUnavailable(f"{_first_line(err)}: migrate it by starting `lrai run audit` once") from err
        columns = tuple(each.name for each in cursor.description or ())
        return Found(text, columns, tuple(cursor.fetchall()) if columns else ())


def _first_line(err: psycopg.Error) -> str:
    return f"the audit store: {err.diag.message_primary or err}"
