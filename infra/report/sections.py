"""What the report shows, in its order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.report import plots

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Section:
    """A query of infra/report/sql and how its answer is shown. `about`: what it says, and what it does not."""

    query: str
    title: str
    about: str
    empty: str
    plot: Callable[[Rows], list[str]] | None = None
    shown_as: str = "table"  # or records, a small table a row; or plot alone


SECTIONS = (
    Section(
        "overview", "Overview",
        "Requests received in the period, by model and version. The state is the worst of all definitions and "
        "attributes at the end of the period: insufficient (too few decisions to say anything), ok (no difference is "
        "established, which does not say that there is none), warn (one is, not that it matters by the limit), alarm "
        "(one is, beyond the limit). Requests for models that do not exist belong to none.",
        "No requests.",
    ),
    Section(
        "selection_rates", "Selection rates by group",
        "selection_rate: the share of a group's decisions that were favourable, with Wilson's interval (95 %). "
        "impact_ratio: that rate over the largest one. The line at 0.8 is the four-fifths rule, for reference "
        "only: without any true difference small groups fall below it often. Whoever did not state the attribute "
        "is shown and not compared.",
        "No model with a favourable decision and sensitive features answered in the period.",
        plots.selection_rates,
    ),
    Section(
        "parity", "Differences of selection rates",
        "demographic_parity_difference: largest less smallest selection rate of the groups above. "
        "demographic_parity_ratio: smallest over largest. Both describe the period; whether a difference is more "
        "than chance is told by the tests below.",
        "No groups of at least 30 decisions.",
    ),
    Section(
        "rates_over_time", "Selection rates over time",
        "selection_rate with Wilson's interval (95 %) of each stretch of the period; times in UTC.",
        "No groups of at least 30 decisions in any stretch of the period.",
        plots.rates_over_time, "plot",
    ),
    Section(
        "tests", "Tests of the differences",
        "The monitor's last record of the period for each definition, attribute and epoch (an epoch ends when "
        "somebody ends a freeze); it counts everything since the epoch began. value: of the definition, over all "
        "groups; not shown where a group is hidden. alpha: the level of the test over the whole epoch.",
        "The monitor has tested nothing in the period.",
    ),
    Section(
        "tests_by_group", "Tests by group",
        "difference: the group's rate less that of what it is compared with (*: all the others), between the ends of "
        "a confidence sequence that holds at every moment, however often one looks. Where a group is hidden, "
        "differences from all the others are rounded so far that its numbers cannot be worked out, or left out.",
        "No tests of groups of at least 30 decisions.",
    ),
    Section(
        "tests_over_time", "Tests over time",
        "difference with its confidence sequence, and the model's disparity_limit on both sides (dotted). "
        "Established means that the sequence leaves 0 and the estimate is beyond the limit.",
        "No tests of groups of at least 30 decisions.",
        plots.tests_over_time, "plot",
    ),
    Section(
        "odds", "Odds differences",
        "Of decisions whose true outcome is known by now. equalized_odds_difference: the larger of the "
        "differences of true and false positive rates; equal_opportunity_difference: of the true positive rates. "
        "label_coverage: the share of the decisions that have a label; where it is small or differs by group, the "
        "differences may tell of who gets labels.",
        "No labels for at least 30 positive and 30 negative outcomes in two groups.",
    ),
    Section(
        "odds_by_group", "Accuracy and odds by group",
        "true_positive_rate: favourable decisions among favourable outcomes; false_positive_rate: among the "
        "others. Hidden where fewer than 30 outcomes are behind it.",
        "No labels for groups of at least 30 decisions.",
    ),
    Section(
        "attribute_coverage", "Coverage of the attributes",
        "The share of decisions whose request stated the attribute. What is not stated cannot be watched.",
        "No model with sensitive features answered in the period.",
    ),
    Section(
        "label_coverage", "Coverage of labels and consent",
        "Decisions of the period with a known outcome, whenever it came, and with a consent id.",
        "No decisions.",
    ),
    Section(
        "drift", "Drift",
        "How far inputs and score are from the reference sample, at the end of the period: population stability "
        "index with a limit that grows as samples get smaller, Jensen-Shannon distance, Kolmogorov-Smirnov and "
        "Wasserstein on the same histogram. The twenty largest of each version, and all that warn.",
        "No drift was measured: the models have no reference sample, or got too few rows.",
        plots.drift,
    ),
    Section(
        "freezes", "Freezes",
        "Deployments that were frozen at some time of the period: why, for how long, and who ended it for what reason.",
        "No deployment was frozen.",
        shown_as="records",
    ),
    Section(
        "complaints", "Complaints",
        "Opened or closed in the period, or still open in it; in the people's own words.",
        "No complaints.",
    ),
    Section("alerts", "Alerts", "What the monitor raised in the period.", "No alerts."),
    Section(
        "outcomes", "Outcomes",
        "How the requests of the period ended; under_a_freeze: while the deployment was frozen.",
        "No requests.",
    ),
    Section(
        "releases", "Model versions and certificates",
        "What answered in the period: version, variant, the certificate of the variant's error bound (none: the "
        "original), and what the model's owner states now.",
        "Nothing answered.",
    ),
)  # fmt: skip
