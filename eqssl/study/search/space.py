"""What a study varies: typed ranges, the configurations drawn from them, and the trials that are their seeds.

A configuration is a point of the space (or a reference row of the tables); a trial is one seed of it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from eqssl.config import RunConfig, replace

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial


@dataclass(frozen=True)
class _Values:
    """What a parameter may be, always or only where an earlier parameter has one of some values."""

    only: tuple[str, tuple[Any, ...]] | None = field(default=None, kw_only=True)

    def when(self, option: str, *values: Any) -> Self:
        """Return the same parameter, which exists only where another one, earlier in the space, has such a value."""
        return dataclasses.replace(self, only=(option, values))

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether the parameter exists beside values chosen earlier."""
        return self.only is None or chosen.get(self.only[0]) in self.only[1]


@dataclass(frozen=True)
class Choice(_Values):
    """One of several values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choice() needs at least one value")

    def allows(self, value: Any) -> bool:
        """Return whether the parameter may have a value."""
        return value in self.values

    def grid(self, count: int) -> list[Any]:
        """Return all values; a list has no finer grid."""
        return list(self.values)

    def at(self, place: float) -> Any:
        """Return the value at a place in [0, 1), evenly over all."""
        return self.values[int(place * len(self.values))]

    def suggest(self, trial: "OptunaTrial", option: str) -> Any:
        return trial.suggest_categorical(option, self.values)

    def edges(self) -> list[Any]:
        """Return values such that a base configuration that takes each takes them all."""
        return list(self.values)


@dataclass(frozen=True)
class Range(_Values):
    """A real number from `low` to `high`, on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"range from {self.low} to {self.high}: low must be below high, and above 0 if log")

    def allows(self, value: Any) -> bool:
        """Return whether the parameter may have a value."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def grid(self, count: int) -> list[float]:
        """Return `count` evenly spaced values, both ends among them, rounded to 4 digits."""
        return [self.at(i / max(count - 1, 1)) for i in range(count)]

    def at(self, place: float) -> float:
        """Return the value at a place in [0, 1], rounded to 4 digits."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + (high - low) * place
        return min(max(float(f"{math.exp(value) if self.log else value:.4g}"), self.low), self.high)

    def suggest(self, trial: "OptunaTrial", option: str) -> float:
        return trial.suggest_float(option, self.low, self.high, log=self.log)

    def edges(self) -> list[float]:
        """Return values such that a base configuration that takes each takes them all."""
        return [self.low, self.high]


Space = dict[str, Choice | Range]
NAMED = 3  # a configuration of more options is called by its number


def choice(*values: Any) -> Choice:
    """Return a parameter that takes one of the values."""
    return Choice(values)


def uniform(low: float, high: float) -> Range:
    """Return a parameter that takes any value from low to high."""
    return Range(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Return a parameter that takes any value from low to high, evenly on a logarithmic scale."""
    return Range(low, high, log=True)


def chosen_by(space: Space, pick: Callable[[str, Choice | Range], Any]) -> dict[str, Any]:
    """Return option -> picked value of every parameter that exists beside those picked before it."""
    chosen: dict[str, Any] = {}
    for option, values in space.items():
        if values.holds(chosen):
            chosen[option] = pick(option, values)
    return chosen


def fix(space: Space, fixed: Mapping[str, Any]) -> Space:
    """Return the space without the options that have a fixed value, and without what these rule out."""
    left = {}
    for option, values in space.items():
        if option not in fixed and (values.only is None or values.only[0] not in fixed):
            left[option] = values
        elif option not in fixed and values.holds(fixed):
            left[option] = dataclasses.replace(values, only=None)
    return left


def check_space(space: Space, base: RunConfig) -> None:
    """Refuse a space with a name that is no option or a value that the option cannot take.

    Raises:
        ValueError: naming the option, the value and what is allowed.
    """
    earlier: set[str] = set()
    for option, values in space.items():
        if values.only and values.only[0] not in earlier:
            raise ValueError(f"{option} exists only for some values of {values.only[0]}, which must come before it")
        earlier.add(option)
        for value in values.edges():
            replace(base, _where(space, option) | {option: value})


def _where(space: Space, option: str) -> dict[str, Any]:
    """Return values of earlier options beside which an option exists."""
    if not (only := space[option].only):
        return {}
    earlier, values = only
    return _where(space, earlier) | {earlier: values[0]}


@dataclass(frozen=True)
class Configuration:
    """A point of the space or a reference row.

    Args:
        name: what tables call it, unique within a study.
        overrides: dotted options -> values on top of the study's base; None for a row without an encoder.
        number: Optuna's number of the suggestion; None for a reference row.
    """

    name: str
    overrides: dict[str, Any] | None = field(hash=False)
    number: int | None = None

    @classmethod
    def suggested(cls, overrides: dict[str, Any], number: int) -> "Configuration":
        """Return the configuration of a suggestion, named by its values where these are few."""
        parts = [f"{option.rpartition('.')[2]} {_text(value)}" for option, value in overrides.items()]
        name = f"no. {number}" if len(parts) > NAMED else ", ".join(parts) or "default"
        return cls(name, overrides, number)


@dataclass(frozen=True)
class Trial:
    """One seed of a configuration."""

    configuration: Configuration
    seed: int

    @property
    def name(self) -> str:
        return f"{self.configuration.name} / seed {self.seed}"

    @property
    def id(self) -> str:
        """Ten hexadecimal digits, the same in every study with this configuration and seed."""
        text = json.dumps([self.configuration.name, self.configuration.overrides, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def run_config(self, base: RunConfig) -> RunConfig:
        """Return the whole run; its seed is the base's plus this trial's, so that seeds are paired."""
        return replace(base, {**(self.configuration.overrides or {}), "train.seed": base.train.seed + self.seed})

    def work(self, base: RunConfig) -> int:
        """Return the epochs and evaluations of the trial, by which its time is judged."""
        return 1 if self.configuration.overrides is None else self.run_config(base).train.epochs + 1


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
