"""The setup of trial processes, created by the study's own process."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Registered = dict[str, dict[str, Any]]  # kind -> name -> function, class or metric


def registered() -> Registered:
    """Return the sources, encoders, methods and metrics that the user registered in this process, by kind and name."""
    from eqssl.data import SOURCES
    from eqssl.metrics import METRICS

    # Encoders and methods are torch modules: if none was registered, torch need not be imported.
    encoders = getattr(sys.modules.get("eqssl.models.backbones"), "ENCODERS", {})
    methods = getattr(sys.modules.get("eqssl.methods"), "METHODS", {})
    return {
        "source": {name: source for name, source in SOURCES.items() if callable(source)},
        "encoder": dict(encoders),
        "method": {name: method for name, method in methods.items() if callable(method)},
        "metric": {name: metric for name, metric in METRICS.items() if metric.fn is not None},
    }


@dataclass(frozen=True)
class StudySetup:
    """The common setup of the processes of all trials of a study.

    Args:
        folder: the study's folder, OUTPUT/STUDY, as an absolute path or a URI.
        objectives: metrics of earlier epochs that a trial's record keeps.
        workers: minimum and maximum number per trial.
        worker: resources of each worker, under Ray's names.
        cwd: working directory of the command, where a relative `--data.path` starts; Ray's processes start elsewhere.
        registered: as `registered` returns it.
        save_notice: handle of a `SaveNotice`; None: there are no notices.
    """

    folder: str
    objectives: tuple[str, ...] = ()
    workers: tuple[int, int] = (1, 1)
    worker: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1})
    cwd: str = field(default_factory=os.getcwd)
    registered: Registered = field(default_factory=registered)
    save_notice: Any = None

    @property
    def gpu(self) -> bool:
        """Whether a worker has a GPU; Ray does not hide GPUs from a worker without one."""
        return "GPU" in self.worker

    def apply(self) -> None:
        """Set this process up: its working directory, if this node has it, its threads and everything registered."""
        import torch

        from eqssl.data import register_source
        from eqssl.methods import register_method
        from eqssl.metrics import register_metric
        from eqssl.models.backbones import register_encoder

        with suppress(OSError):
            os.chdir(self.cwd)
        torch.set_num_threads(int(self.worker["CPU"]))
        for name, source in self.registered["source"].items():
            register_source(name, source)
        for name, encoder in self.registered["encoder"].items():
            register_encoder(name, encoder)
        for name, method in self.registered["method"].items():
            register_method(name, method)
        for metric in self.registered["metric"].values():
            register_metric(metric)
