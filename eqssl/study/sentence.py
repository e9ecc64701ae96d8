"""The answer of a study as one sentence."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from eqssl.stats import ACCURACY_MARGIN, INVARIANCE_MARGIN
from eqssl.study.definition import METRIC_NAMES, NEED_LABELS

MARGINS = dict.fromkeys(NEED_LABELS, ACCURACY_MARGIN) | {"inv/invariance": INVARIANCE_MARGIN}
SHORT = {"knn": "kNN accuracy", "linear": "accuracy", "inv/invariance": "invariance", "r2/pose": "pose R²"}
Bounds = Mapping[str, Any]  # estimate, low, high; None for bounds that are not known


def sentence(answer: Mapping[str, Any]) -> str:
    """Return what a study found, in one sentence.

    Args:
        answer: what `results.answer` returns:
            configuration: the one that the sentence is about, or None.
            reason: where there is none, why.
            best: where there is none, metric -> name and bounds of the best configuration.
            base: its base method, or None where the study has none.
            goal: metric that should grow.
            differences: metric -> bounds of the difference from the base, the goal first, then what should not be lost;
                metric -> bounds of the metric itself where there is no base.
            signs: metric -> 1 if larger is better, else -1.
            labelled: whether an accuracy was measured.
            missing: controls of which no trial came to its end.
            autoencodes: whether the configuration is an auto-encoder itself.
            beyond_autoencode: metric -> bounds of the difference from the auto-encoding control, the goal first; empty
                where there is none.
    """
    if answer["configuration"] is None:
        digits = _digits(answer["best"].values())
        best = (f"best {_name(m)}: {b['name']}, {_number(b, digits)}" for m, b in answer["best"].items())
        return "; ".join([answer["reason"], *best]) + "."
    values = answer["differences"]
    against = answer["base"] is not None
    digits = _digits([*values.values(), *answer["beyond_autoencode"].values()])
    numbers = ", ".join(f"{_name(m)} {_number(b, digits, signed=against)}" for m, b in values.items())
    said = f"{answer['configuration']}: {numbers}"
    if not against:
        return f"{said}; no base method to compare it with."
    said += f" against {answer['base']}"
    if any(b["low"] is None for b in values.values()):
        return f"{said}; too few seeds to judge by."
    unlabelled = "" if answer["labelled"] else "; no accuracy, since there are no labels"
    return f"{said}: {_outcome(answer)}{unlabelled}{_beyond(answer, digits)}."


def _outcome(answer: Mapping[str, Any]) -> str:
    """Return which metrics are gained, kept and lost."""
    parts: dict[str, list[str]] = {}
    for metric, bounds in answer["differences"].items():
        low, high = sorted(answer["signs"][metric] * bounds[side] for side in ("low", "high"))
        margin = 0.0 if metric == answer["goal"] else MARGINS.get(metric, 0.0)
        if low > 0:
            change = "gained"
        elif margin and low > -margin:
            change = f"kept within {_plain(margin, 2)}"
        elif high < 0:
            change = "lost"
        else:
            change = "not significantly different"
        parts.setdefault(change, []).append(_name(metric))
    return ", ".join(f"{_and(names)} {change}" for change, names in parts.items())


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _beyond(answer: Mapping[str, Any], digits: int) -> str:
    """Return what cross-attention adds to auto-encoding at the same weight."""
    if answer["autoencodes"]:
        return "; this is auto-encoding, without cross-attention"
    if answer["missing"]:
        return f"; no trial of {_and(answer['missing'])} came to its end, which it should be compared with"
    beyond, goal = dict(answer["beyond_autoencode"]), answer["goal"]
    if goal not in beyond or any(bounds["low"] is None for bounds in beyond.values()):
        return ""
    numbers = {metric: _number(bounds, digits, signed=True) for metric, bounds in beyond.items()}
    listed = {metric: f"{_name(metric)} {number}" for metric, number in numbers.items()}
    sign = answer["signs"][goal]
    low, high = sorted(sign * beyond[goal][side] for side in ("low", "high"))
    gained = min(sign * answer["differences"][goal][side] for side in ("low", "high")) > 0
    if gained and low > 0:
        others = ", ".join(text for metric, text in listed.items() if metric != goal)
        found = f"; {numbers[goal]} of the {_name(goal)} is cross-attention's beyond auto-encoding"
        return found + (f" ({others})" if others else "")
    explained = ""
    if gained and high < 0:
        explained = f", so that auto-encoding gains more {_name(goal)}"
    elif gained and high < sign * answer["differences"][goal]["estimate"] / 2:
        explained = f", so that auto-encoding explains most of the gain in {_name(goal)}"
    return f"; beyond auto-encoding at the same weight: {', '.join(listed.values())}{explained}"


def _name(metric: str) -> str:
    return SHORT.get(metric) or METRIC_NAMES.get(metric, metric)


def _digits(bounds: Iterable[Bounds | None]) -> int:
    """Return how many decimals are shown: two, three where an interval is narrower than .01."""
    halves = [b["estimate"] - b["low"] for b in bounds if b and b["low"] is not None]
    return 3 if min(halves, default=1.0) < 0.0095 else 2


def _number(bounds: Bounds, digits: int, *, signed: bool = False) -> str:
    """Return an estimate and its half width."""
    text = _plain(bounds["estimate"], digits, signed=signed)
    return text if bounds["low"] is None else f"{text} ± {_plain(bounds['estimate'] - bounds['low'], digits)}"


def _plain(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number without the zero before its point, and without a minus before zero."""
    value = round(value, digits) + 0.0
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if math.fabs(value) < 1 else text
