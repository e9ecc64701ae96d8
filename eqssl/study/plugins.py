"""Sources and methods that a user registered in the study's own file, for the processes of its trials."""

import sys
from collections.abc import Callable
from typing import Any

Plugins = dict[str, dict[str, Callable[..., Any]]]


def registered() -> Plugins:
    """Return what `register_source` and `register_method` were called with, by kind and name."""
    from eqssl.data import SOURCES

    # Methods are torch modules: where none was registered, torch need not be imported.
    methods = getattr(sys.modules.get("eqssl.methods"), "METHODS", {})
    return {
        "sources": {name: source for name, source in SOURCES.items() if callable(source)},
        "methods": {name: method for name, method in methods.items() if callable(method)},
    }


def register(plugins: Plugins) -> None:
    """Make them known in this process."""
    from eqssl.data import register_source
    from eqssl.methods import register_method

    for name, source in plugins["sources"].items():
        register_source(name, source)
    for name, method in plugins["methods"].items():
        register_method(name, method)
