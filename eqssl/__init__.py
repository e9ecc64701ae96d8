"""Equivariant self-supervised learning by reconstruction, and studies of it that can be trusted (arXiv 2412.03314)."""

import importlib

__version__ = "0.1.0"

# Imported on first use: torch alone takes seconds, and `--help` needs none of it.
_LAZY = {
    "RunConfig": "eqssl.config",
    "DataConfig": "eqssl.config",
    "EvaluateConfig": "eqssl.config",
    "train": "eqssl.training",
    "evaluate": "eqssl.evaluation.protocol",
    "load": "eqssl.data",
    "register_source": "eqssl.data",
    "register_encoder": "eqssl.backbones",
    "register_method": "eqssl.methods",
    "export_encoder": "eqssl.export",
    "load_encoder": "eqssl.export",
    "run_study": "eqssl.study",
    "Study": "eqssl.study",
    "StudyOptions": "eqssl.study",
    "choice": "eqssl.study",
    "uniform": "eqssl.study",
    "log_uniform": "eqssl.study",
}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'eqssl' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
