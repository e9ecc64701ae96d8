"""Sources, encoders, methods and metrics that a user registered in the study's own file, for its trials' processes."""

import sys
from typing import Any

Plugins = dict[str, dict[str, Any]]


def registered() -> Plugins:
    """Return what was registered (`register_source`, `_encoder`, `_method`, `_metric`), by kind and name."""
    from eqssl.data import SOURCES
    from eqssl.metrics import METRICS

    # Encoders and methods are torch modules: where none was registered, torch need not be imported.
    encoders = getattr(sys.modules.get("eqssl.models.backbones"), "ENCODERS", {})
    methods = getattr(sys.modules.get("eqssl.methods"), "METHODS", {})
    return {
        "sources": {name: source for name, source in SOURCES.items() if callable(source)},
        "encoders": dict(encoders),
        "methods": {name: method for name, method in methods.items() if callable(method)},
        "metrics": {name: metric for name, metric in METRICS.items() if metric.fn is not None},
    }


def register(plugins: Plugins) -> None:
    """Make them known in this process."""
    from eqssl.data import register_source
    from eqssl.methods import register_method
    from eqssl.metrics import register_metric
    from eqssl.models.backbones import register_encoder

    for name, source in plugins["sources"].items():
        register_source(name, source)
    for name, make in plugins["encoders"].items():
        register_encoder(name, make)
    for name, method in plugins["methods"].items():
        register_method(name, method)
    for metric in plugins["metrics"].values():
        register_metric(metric)
