"""Self-supervised methods on pairs: a file each, with its heads and its loss.

A method is an `nn.Module` made with `(dim, num_classes, **options)` whose `forward(first, second, labels)` takes the
pooled invariant parts of two views, float32 (B, dim), and gives the loss of the batch over all workers.
"""

import importlib
import inspect

from torch import nn

from eqssl.config import MethodConfig

METHODS: dict[str, str | type[nn.Module]] = {
    "simclr": "eqssl.methods.simclr:SimCLR",
    "vicreg": "eqssl.methods.vicreg:VICReg",
    "supervised": "eqssl.methods.references:Supervised",
    "none": "eqssl.methods.references:NoMethod",
}


def register_method(name: str, method: type[nn.Module]) -> None:
    """Make a method of your own available as `--method.name NAME`; its keyword arguments are its options."""
    METHODS[name] = method


def build_method(config: MethodConfig, dim: int, num_classes: int) -> nn.Module:
    """Return the named method for representations of width `dim`.

    Raises:
        ValueError: for an unknown method, or an option that it does not have.
    """
    method = _find(config.name)
    allowed = {n: p.default for n, p in inspect.signature(method).parameters.items() if n not in ("dim", "num_classes")}
    for option in config.options:
        if option not in allowed:
            raise ValueError(
                f"--method.options {option} is no option of {config.name}; "
                f"allowed: {', '.join(f'{n} (default {d})' for n, d in allowed.items()) or 'none'}"
            )
    # Options come as floats; a width has to be whole again.
    options = {n: type(allowed[n])(v) for n, v in config.options.items()}
    return method(dim, num_classes, **options)


def check_method(name: str) -> None:
    """Raise ValueError unless `name` is a method."""
    if name not in METHODS:
        raise ValueError(f"--method.name is {name!r}; allowed: {', '.join(METHODS)}")


def _find(name: str) -> type[nn.Module]:
    check_method(name)
    method = METHODS[name]
    if isinstance(method, str):
        module, _, attribute = method.partition(":")
        method = getattr(importlib.import_module(module), attribute)
    return method
