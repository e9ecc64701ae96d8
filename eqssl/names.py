"""Encoders and methods by name; unknown names are refused without waiting for an import of torch."""

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqssl.config import BASE_METHODS, CONDITIONED_METHODS, REFERENCE_METHODS, MethodConfig, RunConfig, check_known
from eqssl.data import SOURCES
from eqssl.models.pretrained import find_weights
from eqssl.renames import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from eqssl.methods.base import Method

OWN_ENCODER = "resnet_tiny"
ENCODERS: "dict[str, Callable[[int, int], nn.Module]]" = {}  # the user's own, see `register_encoder`
METHODS: "dict[str, str | type[Method]]" = {**BASE_METHODS, **CONDITIONED_METHODS, **REFERENCE_METHODS}
MODEL = re.compile(r"^@register_model.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
RENAMED_MODELS = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)


@cache
def model_names(package: str) -> frozenset[str]:
    """Return the names of models in a package's source code, since the package takes 10 s to import.

    Args:
        package: timm or torchvision.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return frozenset()
    texts = [path.read_text(encoding="utf-8") for path in (Path(spec.origin).parent / "models").glob("*.py")]
    renamed = [
        name for text in texts for block in RENAMED_MODELS.findall(text) for name in re.findall(r"'(\w+)' *:", block)
    ]
    return frozenset(renamed).union(*map(MODEL.findall, texts))


def check_encoder(name: str, option: str = "--encoder.name", others: Sequence[str] = ()) -> None:
    """Refuse the name of an unknown encoder.

    Args:
        name: as in `--encoder.name`.
        option: name of the user's option, for the message.
        others: further values of the option, for the message; the first is a folder.

    Raises:
        ValueError: with the nearest names.
    """
    own = [OWN_ENCODER, *ENCODERS]
    package, prefix = ("torchvision", "torchvision/") if name.startswith("torchvision/") else ("timm", "")
    known = model_names(package)
    registered = sys.modules.get("timm")  # may contain models that the user registered
    if (
        name in own
        or not known  # the source code cannot be read: the package itself refuses the name
        or name.removeprefix(prefix).partition(".")[0] in known  # timm: NAME.TAG
        or (registered is not None and registered.is_model(name))
    ):
        return
    near = did_you_mean(name, [*others, *own, *(prefix + model for model in known)])
    text = f"{option} is {name!r}" + ", which is not a folder" * bool(others)
    raise ValueError(f"{text}; allowed: {', '.join([*others, *own])}, torchvision/NAME or a timm model{near}")


def method_options(name: str) -> dict[str, Any]:
    """Return option -> default of a registered method; for the package's own from its code, without torch."""
    method = METHODS[name]
    if not isinstance(method, str):
        return {o: p.default for o, p in inspect.signature(method).parameters.items() if o != "sizes"}
    module, _, kind = method.partition(":")
    code = ast.parse(Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py").read_bytes())
    (own,) = (node for node in code.body if isinstance(node, ast.ClassDef) and node.name == kind)
    (init,) = (node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    defaults = map(ast.literal_eval, filter(None, init.args.kw_defaults))
    return dict(zip((argument.arg for argument in init.args.kwonlyargs), defaults, strict=True))


def check_method(config: MethodConfig) -> None:
    """Refuse the name of an unknown method, or an option that the method does not have.

    Raises:
        ValueError: with all names and the nearest ones.
    """
    check_known("method.name", config.name, METHODS)
    options = method_options(config.name)
    for option in config.options:
        if option not in options:
            allowed = ", ".join(f"{name} (default {default})" for name, default in options.items()) or "none"
            raise ValueError(
                f"--method.options {option} is not an option of {config.name}; allowed: {allowed}"
                + did_you_mean(option, options)
            )


def check_names(config: RunConfig) -> None:
    """Refuse unknown names of a source, an encoder, a method or its options, weights of another encoder, and a preset
    that is named but not applied.

    Raises:
        ValueError: naming the option, its value and the nearest names.
    """
    check_known("data.source", config.data.source, SOURCES)
    check_method(config.method)
    check_encoder(config.encoder.name)
    if isinstance(config.encoder.pretrained, str):
        find_weights(config.encoder)
    if config.method.preset:
        raise ValueError(
            f"method.preset is {config.method.preset!r}, and its values are not applied; from Python "
            "eqssl.with_preset(config) returns the configuration with them"
        )
