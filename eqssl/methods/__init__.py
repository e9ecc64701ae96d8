"""Self-supervised methods on pairs: a file each, with its heads and its loss; `base.Method` says what one is."""

import importlib
import inspect
import math
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

from eqssl.config import BASE_METHODS, MethodConfig
from eqssl.methods.base import Method, Sizes

METHODS: dict[str, str | type[Method]] = {
    **BASE_METHODS,
    "augself": "eqssl.methods.augself:AugSelf",
    "equimod": "eqssl.methods.equimod:EquiMod",
    "sie": "eqssl.methods.sie:SIE",
    "supervised": "eqssl.methods.references:Supervised",
    "supervised_factors": "eqssl.methods.references:SupervisedFactors",
    "none": "eqssl.methods.references:NoMethod",
}


LAYERS = ("width", "embedding", "bottleneck", "prototypes")  # options that are widths of layers
SCALES = get_args(get_type_hints(MethodConfig)["scale"])


def register_method(name: str, method: type[Method]) -> None:
    """Make a method of your own available as `--method.name NAME`; its keyword arguments are its options."""
    METHODS[name] = method


def build_method(config: MethodConfig, sizes: Sizes) -> Method:
    """Return the named method with heads for representations of the given sizes.

    Raises:
        ValueError: for an unknown method, an option or a scale that it does not have, or sizes that it cannot work on.
    """
    method = find_method(config.name)
    allowed = {name: p.default for name, p in inspect.signature(method).parameters.items() if name != "sizes"}
    for option in config.options:
        if option not in allowed:
            raise ValueError(
                f"--method.options {option} is no option of {config.name}; "
                f"allowed: {', '.join(f'{n} (default {d})' for n, d in allowed.items()) or 'none'}"
            )
    if config.scale not in (scales := dict.fromkeys([*SCALES, *method.scales])):
        raise ValueError(f"--method.scale is {config.scale!r}; allowed: {', '.join(scales)}")
    options = {**method.scales.get(config.scale, {}), **config.options}
    made = method(sizes, **{name: _as_taken(name, value, allowed[name]) for name, value in options.items()})
    made.recipe = {"config": asdict(config), "sizes": asdict(sizes)}
    return made


def _as_taken(option: str, value: Any, default: Any) -> Any:
    """Return an option's value as the method takes it, whose default says what it is: a width is rounded.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    if isinstance(default, str):
        return str(value)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if option == "momentum":
        good, allowed = 0 <= number <= 1, "0 to 1"
    elif option.endswith("temperature"):
        good, allowed = 0 < number < math.inf, "above 0"
    elif option in LAYERS:
        good, allowed = 0.5 < number < math.inf, "1 or more"
    else:
        good, allowed = math.isfinite(number), "numbers"
    if not good:
        raise ValueError(f"--method.options {option} is {value}; allowed: {allowed}")
    return round(number) if isinstance(default, int) else number


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ValueError: for a name that is none.
    """
    if name not in METHODS:
        raise ValueError(f"--method.name is {name!r}; allowed: {', '.join(METHODS)}")
    method = METHODS[name]
    if isinstance(method, str):
        module, _, attribute = method.partition(":")
        method = getattr(importlib.import_module(module), attribute)
    return method
