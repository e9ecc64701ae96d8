"""Self-supervised methods on pairs of views: one file each, with heads and loss; `base.Method` is their interface."""

import importlib
import inspect
import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from eqssl.config import REFERENCE_METHODS, Allowed, MethodConfig, RunConfig, check_known, replace
from eqssl.methods.base import Method, Sizes
from eqssl.names import METHODS, check_method


def register_method(name: str, method: type[Method]) -> None:
    """Make a method of your own available as `--method.name NAME`; its keyword arguments are its options."""
    METHODS[name] = method


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ValueError: for a name that is not registered.
    """
    check_known("method.name", name, METHODS)
    method = METHODS[name]
    if isinstance(method, str):
        module, _, attribute = method.partition(":")
        method = getattr(importlib.import_module(module), attribute)
    return method


def with_preset(config: RunConfig, given: Collection[str] = ()) -> RunConfig:
    """Return a run with the published settings that `method.preset` names, if any, and that option reset to None.

    Args:
        config: the run.
        given: dotted options that keep their values.

    Raises:
        ValueError: for a preset that the method does not have.
    """
    name = config.method.preset
    if name is None:
        return config
    presets = find_method(config.method.name).presets
    if name not in presets:
        allowed = ", ".join(presets) or "none"
        raise ValueError(f"--method.preset is {name!r}; allowed with --method.name {config.method.name}: {allowed}")
    values = {option: value for option, value in presets[name].options.items() if option not in given}
    return replace(config, values | {"method.preset": None})


def count_local_crops(config: RunConfig) -> int:
    """Return the number of local crops per image in a run; 0 for the references of the tables, which do not take them.

    Raises:
        ValueError: for another method that does not take them.
    """
    name, crops = config.method.name, config.augment.local_crops
    takes_them = find_method(name).takes_local_crops
    if crops and not takes_them and name not in REFERENCE_METHODS:
        raise ValueError(
            f"--augment.local-crops is {crops}; allowed with --method.name {name}: 0, since its class does not set "
            "takes_local_crops"
        )
    return crops if takes_them else 0


def build_method(config: MethodConfig, sizes: Sizes) -> Method:
    """Return the named method with heads for representations of the given sizes.

    Raises:
        ValueError: for an unknown method, an option or scale that it does not have, or sizes that it cannot work with.
    """
    check_method(config)
    kind = find_method(config.name)
    parameters = inspect.signature(kind).parameters
    scales: dict[str, dict[str, float | str]] = {"tiny": {}, "small": {}, "imagenet": {}} | kind.scales
    if config.scale not in scales:
        raise ValueError(f"--method.scale is {config.scale!r}; allowed: {', '.join(scales)}")
    options = {**scales[config.scale], **config.options}
    method = kind(sizes, **{option: _convert(value, parameters[option]) for option, value in options.items()})
    method.init_args = {"config": asdict(config), "sizes": asdict(sizes)}
    return method


def _convert(value: Any, parameter: inspect.Parameter) -> Any:
    """Return an option's value in the type of its default, rounded for an integer.

    Raises:
        ValueError: for a number outside the `Allowed` of its annotation.
    """
    default = parameter.default
    if isinstance(default, str):
        return str(value)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(default, int) and math.isfinite(number):
        number = round(number)
    allowed = getattr(parameter.annotation, "__metadata__", [Allowed("numbers", math.isfinite)])[0]
    if not allowed.test(number):
        raise ValueError(f"--method.options {parameter.name} is {value}; allowed: {allowed.text}")
    return number
