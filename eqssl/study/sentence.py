"""The answer of a study as one sentence."""

from collections.abc import Iterable, Mapping

from eqssl.metrics import METRICS, is_accuracy
from eqssl.stats import ACCURACY_MARGIN, INVARIANCE_MARGIN
from eqssl.study.summary import Answer, Interval, NoAnswer

NAMES = {"knn": "kNN accuracy", "linear": "accuracy", "inv/invariance": "invariance", "r2/pose": "pose R²"}


def sentence(answer: Answer | NoAnswer) -> str:
    """Return the finding of a study: metrics gained, kept and lost, and how much of the gain is cross-attention's."""
    if isinstance(answer, NoAnswer):
        digits = _digits(answer.best.values())
        best = [f"best {name_of(metric)}: {of.name}, {_number(of, digits)}" for metric, of in answer.best.items()]
        return "; ".join([answer.reason, *best]) + "."
    differences = answer.differences.values()
    digits = _digits([*differences, *answer.beyond_split.values(), *answer.beyond_autoencode.values()])
    numbers = _listed(answer.differences, digits, signed=answer.base is not None)
    found = f"{answer.configuration}: {', '.join(numbers.values())}"
    if answer.base is None:
        return f"{found}; no base method to compare it with."
    found += f" against {answer.base}"
    untrained = ""
    if answer.untrained:
        untrained = f"; {answer.base} is not trained enough to beat {_and(answer.untrained)} in accuracy: train longer"
    if not all(of.has_bounds for of in differences):
        return f"{found}; too few seeds to judge by{untrained}."
    unlabelled = "" if answer.labelled else "; no accuracy, since there are no labels"
    return f"{found}: {_outcome(answer)}{unlabelled}{_by_split(answer, digits)}{_beyond(answer, digits)}{untrained}."


def _outcome(answer: Answer) -> str:
    """Return which metrics are gained, kept and lost."""
    names: dict[str, list[str]] = {}
    for metric, difference in answer.differences.items():
        low, _ = _improvement(answer, metric, difference)
        margin, change = 0.0 if metric == answer.goal else _margin(metric), _change(answer, metric, difference)
        if change <= 0 and margin and low > -margin:
            text = f"kept within {plain_number(margin, 2)}"
        else:
            text = {1: "gained", 0: "not significantly different", -1: "lost"}[change]
        names.setdefault(text, []).append(name_of(metric))
    return ", ".join(f"{_and(of)} {text}" for text, of in names.items())


def _by_split(answer: Answer, digits: int) -> str:
    """Return the differences from the split without reconstruction where a gain is not significantly beyond it."""
    beyond = {
        metric: answer.beyond_split[metric]
        for metric, of in answer.differences.items()
        if metric in answer.beyond_split
        and answer.beyond_split[metric].has_bounds
        and _change(answer, metric, of) > 0 >= _change(answer, metric, answer.beyond_split[metric])
    }
    return f"; beyond the split alone: {', '.join(_listed(beyond, digits, signed=True).values())}" if beyond else ""


def _beyond(answer: Answer, digits: int) -> str:
    """Return in words what cross-attention adds: the difference from auto-encoding at the same weight."""
    if answer.autoencodes:
        return "; this is auto-encoding, without cross-attention"
    if answer.missing:
        return f"; no trial of {_and(answer.missing)} completed, which it should be compared with"
    beyond, goal = answer.beyond_autoencode, answer.goal
    if goal not in beyond or not all(of.has_bounds for of in beyond.values()):
        return ""
    numbers = _listed(beyond, digits, signed=True)
    _, high = _improvement(answer, goal, beyond[goal])
    change = _change(answer, goal, beyond[goal])
    gained = _change(answer, goal, answer.differences[goal]) > 0
    if gained and change > 0:
        found = f"; {_number(beyond[goal], digits, signed=True)} of the {name_of(goal)} is cross-attention's beyond "
        others = ", ".join(number for metric, number in numbers.items() if metric != goal)
        return f"{found}auto-encoding ({others})" if others else f"{found}auto-encoding"
    explained = ""
    if gained and change < 0:
        explained = f"; auto-encoding gains more {name_of(goal)}"
    elif gained and high < answer.signs[goal] * answer.differences[goal].estimate / 2:
        explained = f"; auto-encoding explains most of the gain in {name_of(goal)}"
    return f"; beyond auto-encoding at the same weight: {', '.join(numbers.values())}{explained}"


def _improvement(answer: Answer, metric: str, difference: Interval) -> tuple[float, float]:
    """Return the bounds of an improvement, the lower one first."""
    low, high = sorted(answer.signs[metric] * bound for bound in (difference.low, difference.high))
    return low, high


def _change(answer: Answer, metric: str, difference: Interval) -> int:
    """Return 1 for a significant improvement, -1 for a significant loss, else 0.

    Significant: the interval, which accounts for the number of candidates, excludes 0, and so does the test, which
    accounts for the number of metrics.
    """
    low, high = _improvement(answer, metric, difference)
    if difference.significant is False:  # None in summaries of earlier versions
        return 0
    return (low > 0) - (high < 0)


def _margin(metric: str) -> float:
    """Return the loss within which a metric counts as kept."""
    if metric == "inv/invariance":
        return INVARIANCE_MARGIN
    return ACCURACY_MARGIN if is_accuracy(metric) else 0.0


def name_of(metric: str) -> str:
    """Return a metric's name in a sentence."""
    return NAMES.get(metric) or (METRICS[metric].label if metric in METRICS else metric)


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _digits(intervals: Iterable[Interval]) -> int:
    """Return the number of decimals: two, or three for a narrow interval or one that two show as ending at 0."""
    halves = [(abs(of.estimate), of.estimate - of.low) for of in intervals if of.has_bounds]
    close = any(half < 0.0095 or round(estimate, 2) == round(half, 2) for estimate, half in halves)
    return 3 if close else 2


def _listed(intervals: Mapping[str, Interval], digits: int, *, signed: bool) -> dict[str, str]:
    return {metric: f"{name_of(metric)} {_number(of, digits, signed=signed)}" for metric, of in intervals.items()}


def _number(of: Interval, digits: int, *, signed: bool = False) -> str:
    """Return an estimate and the half width of its interval as text."""
    text = plain_number(of.estimate, digits, signed=signed)
    return f"{text} ± {plain_number(of.estimate - of.low, digits)}" if of.has_bounds else text


def plain_number(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number as text, without the zero before its decimal point and never as minus zero."""
    value = round(value, digits) + 0.0
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
