"""Self-supervised methods on pairs: a file each, with its heads and its loss; `base.Method` says what one is."""

import importlib
import inspect
from dataclasses import asdict

from eqssl.config import BASE_METHODS, MethodConfig
from eqssl.methods.base import Method, Sizes

METHODS: dict[str, str | type[Method]] = {
    **BASE_METHODS,
    "augself": "eqssl.methods.augself:AugSelf",
    "equimod": "eqssl.methods.equimod:EquiMod",
    "sie": "eqssl.methods.sie:SIE",
    "supervised": "eqssl.methods.references:Supervised",
    "none": "eqssl.methods.references:NoMethod",
}


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
    options = {**method.scales.get(config.scale, {}), **config.options}
    # Options come as floats; a width has to be whole again.
    made = method(sizes, **{name: type(allowed[name])(value) for name, value in options.items()})
    made.recipe = {"config": asdict(config), "sizes": asdict(sizes)}
    return made


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
