"""The search space: typed parameters, the configurations suggested from them, and their trials, one per seed.

A configuration is a point of the space (or a reference row of the tables); a trial is one seed of it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Self

from eqssl.config import OPTION_TYPES, RunConfig, check_effect, is_of, replace
from eqssl.names import check_names

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial

Params = dict[str, Any]  # dotted option -> value
UNVARIED = "configuration"  # name of the only configuration of a study in which no option varies
MAX_NAMED_OPTIONS = 3  # a configuration with more options is named by its number
EXACT_DIGITS = 6  # significant digits that represent most user-given values exactly
DIGITS = 4  # significant digits of a value in a design, and in a name if they distinguish it from others


@dataclass(frozen=True)
class _Parameter:
    only: tuple[str, tuple[Any, ...]] | None = field(default=None, kw_only=True)

    def when(self, option: str, *values: Any) -> Self:
        """Return the same parameter, which exists only if an earlier option of the space has one of the values."""
        return dataclasses.replace(self, only=(option, values))

    def exists_beside(self, params: Mapping[str, Any]) -> bool:
        """Return whether the parameter exists, given the values of earlier options."""
        return self.only is None or params.get(self.only[0]) in self.only[1]


@dataclass(frozen=True)
class Choice(_Parameter):
    """One of several values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choice() needs at least one value")
        for place, value in enumerate(self.values):
            if value in self.values[:place]:  # equal values would be one value to Optuna, and two configurations here
                raise ValueError(
                    f"choice() has {value!r} twice; allowed: values that differ, such as 0 and 1, not True"
                )

    def contains(self, value: Any) -> bool:
        return value in self.values

    def grid(self, count: int) -> list[Any]:
        """Return all values, whatever the count."""
        return list(self.values)

    def at(self, quantile: float) -> Any:
        """Return the value at a quantile in [0, 1) of the uniform distribution over all values."""
        return self.values[int(quantile * len(self.values))]

    def suggest(self, trial: "OptunaTrial", option: str) -> Any:
        return trial.suggest_categorical(option, self.values)


@dataclass(frozen=True)
class Range(_Parameter):
    """A real number from `low` to `high`, on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (is_of(self.low, float) and is_of(self.high, float)):
            raise ValueError(f"range from {self.low!r} to {self.high!r}; allowed: finite numbers")
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"range from {self.low} to {self.high}: low must be below high, and above 0 if log")

    def contains(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def grid(self, count: int) -> list[float]:
        """Return `count` evenly spaced values including both ends, rounded to 4 digits; fewer if some coincide."""
        return list(dict.fromkeys(self.at(i / max(count - 1, 1)) for i in range(count)))

    def at(self, quantile: float) -> float:
        """Return the value at a quantile in [0, 1] of the uniform distribution on its scale, rounded to 4 digits."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + (high - low) * quantile
        rounded = float(f"{math.exp(value) if self.log else value:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)

    def suggest(self, trial: "OptunaTrial", option: str) -> float:
        return trial.suggest_float(option, self.low, self.high, log=self.log)


Space = dict[str, Choice | Range]


def choice(*values: Any) -> Choice:
    """Return a parameter that takes one of the values."""
    return Choice(values)


def uniform(low: float, high: float) -> Range:
    """Return a parameter that takes any value from low to high."""
    return Range(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Return a parameter that takes any value from low to high, evenly on a logarithmic scale."""
    return Range(low, high, log=True)


def fix(space: Space, fixed: Mapping[str, Any]) -> Space:
    """Return the space without the options that have a fixed value, and without those that cannot exist with it."""
    left: Space = {}
    for option, parameter in space.items():
        if option not in fixed and (parameter.only is None or parameter.only[0] not in fixed):
            left[option] = parameter
        elif option not in fixed and parameter.exists_beside(fixed):
            left[option] = dataclasses.replace(parameter, only=None)
    return left


def check_space(space: Space, base: RunConfig) -> None:
    """Refuse a space with a name that is not an option, or a value that the option cannot take or that has no effect.

    Raises:
        ValueError: naming the option, the value and the allowed values.
    """
    conditions: dict[str, Params] = {}  # option -> values of earlier ones with which it exists
    for option, parameter in space.items():
        if option == "train.seed":
            raise ValueError("train.seed is in the space; allowed: --seeds, the number of seeds of every configuration")
        if isinstance(parameter, Range) and not is_of(0.5, OPTION_TYPES.get(option, float)):
            raise ValueError(
                f"{option} has a range from {parameter.low:g} to {parameter.high:g}, with fractions that it cannot "
                "take; allowed: choice(...) of its values"
            )
        conditions[option] = {}
        if parameter.only is not None:
            earlier, values = parameter.only
            if earlier not in conditions:
                raise ValueError(f"{option} exists only for some values of {earlier}, which must come before it")
            conditions[option] = conditions[earlier] | {earlier: values[0]}
        methods: list[Params] = [{}]  # a hyperparameter without a condition applies to all methods of the space
        if option.startswith("method.options.") and "method.name" in space:
            methods = [{"method.name": name} for name in space["method.name"].grid(2)]
        for method, value in product(methods, parameter.grid(2)):
            config = replace(base, method | conditions[option] | {option: value})
            check_names(config)
            check_effect(config, {option})


def exact(params: Mapping[str, Any]) -> str:
    """Return a text that is the same only for equal values."""
    return json.dumps(params, sort_keys=True)


def short(value: Any, digits: int = DIGITS) -> str:
    """Return a value of an option as text: a float exactly if six digits suffice, else rounded.

    Args:
        value: of any type.
        digits: significant digits of a rounded float.
    """
    if not isinstance(value, float) or digits >= 17:
        return str(value)
    exact_text = f"{value:.{EXACT_DIGITS}g}"
    return exact_text if float(exact_text) == value else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Configuration:
    """A point of the space or a reference row.

    Args:
        name: shown in tables; configurations with the same name in a study have the same overrides.
        overrides: dotted options -> values on top of the study's base; None for a row without an encoder.
        number: number of the suggestion, from 0; None for a reference row.
    """

    name: str
    overrides: Params | None = field(hash=False)
    number: int | None = None

    @classmethod
    def suggested(cls, overrides: Params, number: int, taken: Collection[str] = ()) -> "Configuration":
        """Return the configuration of a suggestion with a name that is not taken.

        The name shows the values if there are few, with as many digits as it takes to be unique: at most 17, which
        distinguish any two floats.
        """
        for digits in range(DIGITS, 18) if len(overrides) <= MAX_NAMED_OPTIONS else ():
            parts = (f"{option.rpartition('.')[2]} {short(value, digits)}" for option, value in overrides.items())
            name = ", ".join(parts) or UNVARIED
            if name not in taken:
                return cls(name, overrides, number)
        return cls(f"no. {number}", overrides, number)


@dataclass(frozen=True)
class Trial:
    """One seed of a configuration."""

    configuration: Configuration
    seed: int

    @property
    def name(self) -> str:
        """The configuration's name and the seed."""
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
        """Return the number of epochs and evaluations of the trial, which progress and forecast count."""
        return 1 if self.configuration.overrides is None else self.run_config(base).train.epochs + 1
