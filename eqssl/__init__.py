"""Equivariant self-supervised learning by reconstruction, and studies of it that can be trusted (arXiv 2412.03314)."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from eqssl.config import AugmentConfig as AugmentConfig
    from eqssl.config import DataConfig as DataConfig
    from eqssl.config import EncoderConfig as EncoderConfig
    from eqssl.config import EvaluateConfig as EvaluateConfig
    from eqssl.config import MethodConfig as MethodConfig
    from eqssl.config import ReconConfig as ReconConfig
    from eqssl.config import RunConfig as RunConfig
    from eqssl.config import TrainConfig as TrainConfig
    from eqssl.data import load_data as load_data
    from eqssl.data import register_source as register_source
    from eqssl.evaluation.protocol import evaluate as evaluate
    from eqssl.methods import register_method as register_method
    from eqssl.methods import with_preset as with_preset
    from eqssl.metrics import Metric as Metric
    from eqssl.metrics import register_metric as register_metric
    from eqssl.models.backbones import register_encoder as register_encoder
    from eqssl.models.export import export_encoder as export_encoder
    from eqssl.models.export import load_encoder as load_encoder
    from eqssl.study import Study as Study
    from eqssl.study import StudyOptions as StudyOptions
    from eqssl.study import choice as choice
    from eqssl.study import load_study as load_study
    from eqssl.study import log_uniform as log_uniform
    from eqssl.study import run_study as run_study
    from eqssl.study import uniform as uniform
    from eqssl.training.single import train as train

_CONFIGS = ("Augment", "Data", "Encoder", "Evaluate", "Method", "Recon", "Run", "Train")
_MODULES = {  # imported on first use: torch alone takes seconds, and `--help` needs none of it
    "eqssl.config": [f"{name}Config" for name in _CONFIGS],
    "eqssl.data": ["load_data", "register_source"],
    "eqssl.evaluation.protocol": ["evaluate"],
    "eqssl.methods": ["register_method", "with_preset"],
    "eqssl.metrics": ["Metric", "register_metric"],
    "eqssl.models.backbones": ["register_encoder"],
    "eqssl.models.export": ["export_encoder", "load_encoder"],
    "eqssl.study": ["Study", "StudyOptions", "choice", "load_study", "log_uniform", "run_study", "uniform"],
    "eqssl.training.single": ["train"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'eqssl' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
