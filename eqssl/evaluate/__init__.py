"""One evaluation protocol for every encoder: frozen features, fixed transforms, figures that carry a version.

PROTOCOL_VERSION changes whenever any figure of the same encoder on the same images would.
"""

PROTOCOL_VERSION = 1

__all__ = ["PROTOCOL_VERSION", "evaluate"]


def __getattr__(name: str):
    if name != "evaluate":
        raise AttributeError(f"module 'eqssl.evaluate' has no attribute {name!r}")
    from eqssl.evaluate.protocol import evaluate

    return evaluate
