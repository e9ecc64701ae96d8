"""Selections of a summary's configurations and metrics that tables and figures share."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqssl.stats import on_front
from eqssl.study import definition
from eqssl.study.definition import CONTROLS, WITHOUT_ENCODER

Summary = dict[str, Any]  # the content of summary.json
Configuration = dict[str, Any]  # one of its configurations
# Reference rows that figures show, the controls first; constant says nothing about an encoder.
REFERENCES = (*CONTROLS, *(name for name in definition.REFERENCES if name != "constant"))


def in_order(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the reference rows, then the searched configurations, each followed by its own auto-encoding control.

    Searched configurations are sorted by their numbers if these are their names, else by the values of the options.
    """
    owners, by_name = owners_of_controls(configurations), {c["name"]: c for c in configurations}
    numbered = any(c["name"] == f"no. {c['number']}" for c in configurations)

    def key(c: Configuration) -> tuple[bool, list[tuple[str, Any]], bool]:
        owner = by_name[owners.get(c["name"], c["name"])] if c["number"] is None else c
        if owner["number"] is None:
            return False, [], False
        values = [owner["number"]] if numbered else owner["params"].values()
        return True, [(str(type(value)), value) for value in values], c is not owner

    return sorted(configurations, key=key)


def owners_of_controls(configurations: Sequence[Configuration]) -> dict[str, str]:
    """Return auto-encoding control -> the first configuration it belongs to, without the row that all share."""
    owners: dict[str, str] = {}
    for c in configurations:
        if c["autoencode"] and c["autoencode"] not in CONTROLS:
            owners.setdefault(c["autoencode"], c["name"])
    return owners


def searched(summary: Summary) -> list[Configuration]:
    """Return the searched configurations with a complete trial, in order."""
    return [c for c in in_order(summary["configurations"]) if c["number"] is not None and c["seeds"]]


def choice(summary: Summary) -> str | None:
    """Return the configuration that the study's sentence is about: its choice, or the subject of a comparison."""
    return summary["answer"]["configuration"]


def main_rows(summary: Summary) -> list[str]:
    """Return the configuration of the sentence, the best by each objective, and the controls of the first one."""
    by_name = {c["name"]: c for c in summary["configurations"]}
    found = [choice(summary), *(summary["best"].get(metric) for metric in summary["objectives"])]
    names = [name for name in found if name in by_name]
    return list(dict.fromkeys([*names, *(by_name[names[0]]["controls"] if names else [])]))


def most_important(summary: Summary, rows: Sequence[Configuration], most: int) -> tuple[list[Configuration], str]:
    """Return the rows that a figure has room for, and words that say which they are.

    Args:
        summary: content of summary.json.
        rows: rows of the summary.
        most: maximum number; of more, the reference rows, the choice, the front and the best by each objective stay.
    """
    if len(rows) <= most:
        return list(rows), f"all {len(rows)} configurations"
    best = [summary["best"][metric] for metric in summary["objectives"]]
    kept = {*REFERENCES, *front_members(summary), *best, choice(summary)}
    words = f"reference rows, the choice, the front and the best by each objective of {len(rows)} configurations"
    return [c for c in rows if c["name"] in kept][:most], words


def front_candidates(summary: Summary) -> list[Configuration]:
    """Return the configurations with an encoder and all objectives that did not collapse."""
    out = {*WITHOUT_ENCODER, *(t["configuration"] for t in summary["trials"] if t["collapsed"])}
    rows = summary["configurations"]
    return [c for c in rows if c["name"] not in out and summary["objectives"].keys() <= c["metrics"].keys()]


def front_members(summary: Summary) -> set[str]:
    """Return the names of the configurations whose means are not dominated by another's."""
    rows = front_candidates(summary)
    signs = [1 if direction == "maximize" else -1 for direction in summary["objectives"].values()]
    means = np.stack([bounds_of(rows, metric)[:, 0] for metric in summary["objectives"]], axis=1)
    return {c["name"] for c, member in zip(rows, on_front(means * signs), strict=True) if member}


def bounds_of(configurations: Sequence[Configuration], metric: str) -> NDArray[np.float64]:
    """Return mean, low and high of a metric for every configuration, float (N, 3), NaN where unknown."""
    bounds = [c["metrics"].get(metric, {}) for c in configurations]
    rows = [[of.get(name) for name in ("estimate", "low", "high")] for of in bounds]
    return np.array(rows, dtype=float).reshape(-1, 3)


def members_of(family: str, metrics: Iterable[str]) -> list[str]:
    """Return the metrics of a family, one per factor, on all features: `r2/pose` of `r2`, but not `inv/r2/pose`."""
    return sorted(metric for metric in metrics if metric.rpartition("/")[0] == family)
