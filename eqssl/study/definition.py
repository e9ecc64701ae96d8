"""A study: one question, as data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eqssl.config import RunConfig
from eqssl.study.search.space import Configuration, Space

# Every table has these rows; None: no encoder, the pixels or nothing at all are evaluated.
REFERENCE_ROWS: dict[str, dict[str, Any] | None] = {
    "constant": None,
    "pixels": None,
    "random": {"train.epochs": 0, "encoder.equi_fraction": 0.0, "recon.weight": 0.0},
    "supervised": {
        "method.name": "supervised",
        "method.options": {},
        "encoder.equi_fraction": 0.0,
        "recon.weight": 0.0,
    },
    "supervised-factors": {
        "method.name": "supervised_factors",
        "method.options": {},
        "encoder.equi_fraction": 0.0,
        "recon.weight": 0.0,
    },
    "recon-only": {"method.name": "none", "method.options": {}, "recon.weight": 1.0},
    "base": {"encoder.equi_fraction": 0.0, "recon.weight": 0.0},
    "no-recon": {"recon.weight": 0.0},
    "autoencode": {"recon.attention": "autoencode"},
}
CONTROLS = ("base", "no-recon", "autoencode")
ATTENTION, AUTOENCODE = "recon.attention", "autoencode"  # option, and its value that reads no other view
NEED_LABELS = ("knn", "linear")  # accuracies
NEED_FACTORS = ("r2_mean",)
WITHOUT_ENCODER = ("constant", "pixels")  # the same for every seed
# Beside the methods, not among them.
REFERENCES = (*WITHOUT_ENCODER, "random", "supervised", "supervised-factors", "recon-only")

# Metrics of the main tables and their names there.
METRIC_NAMES = {
    "knn": "kNN",
    "linear": "linear",
    "r2_mean": "R² mean",
    "mlp_r2_mean": "R² mean (MLP)",
    "equivariance": "equivariance",
    "inv/invariance": "invariance (inv)",
}

Sampler = Literal["grid", "one-at-a-time", "qmc", "random", "tpe", "gp", "nsga2", "nsga3"]
LEARNING = ("tpe", "gp", "nsga2", "nsga3")  # samplers that heed what was found
Stopping = Literal["none", "halving"]


def lacking(*, labelled: bool, known: bool) -> tuple[str, ...]:
    """Return the metrics that data without labels, or without known factors, do not have."""
    return (() if labelled else NEED_LABELS) + (() if known else NEED_FACTORS)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question.

    Args:
        name: also the folder's name and MLflow's experiment.
        question: one sentence, shown by `--help` and on the report.
        space: dotted option -> what it may be.
        configurations: how many points of the space are tried by default; 0: the rows are the whole study.
        seeds: how many trials a configuration gets by default.
        sampler: a design, or which of Optuna's samplers draws the points.
        race: whether configurations start with one seed and only the best get all, see `suggestions`.
        stopping: whether trials that are behind are ended early, see `halving`.
        confirm: fresh seeds with which what was chosen is trained again and reported on test; 0: not.
        objectives: metric of the evaluation -> maximize or minimize; the first is the accuracy, which the choice
            guards, the last is what the choice maximises.
        rows: name -> overrides, the reference rows of the tables.
        controls: name of a row -> the rows it is compared with, where these are not base, no-recon and autoencode; the
            first is its base method.
        twins: whether every searched configuration of a design gets a control of its own, "NAME, autoencode", in the
            place of the row autoencode, see `twins`.
        subject: row that the study's sentence is about where nothing is searched.
        base: every option that is not varied.
        smoke: overrides under which the whole study ends within a minute or two.
    """

    name: str
    question: str
    space: Space
    configurations: int = 5
    seeds: int = 2
    sampler: Sampler = "grid"
    race: bool = False
    stopping: Stopping = "none"
    confirm: int = 0
    objectives: Mapping[str, Literal["maximize", "minimize"]] = field(
        default_factory=lambda: {"linear": "maximize", "r2_mean": "maximize"}
    )
    rows: Mapping[str, dict[str, Any] | None] = field(default_factory=lambda: dict(REFERENCE_ROWS))
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    twins: bool = False
    subject: str = ""
    base: RunConfig = field(default_factory=RunConfig)
    smoke: Mapping[str, Any] = field(
        default_factory=lambda: {
            "data.objects": 64,
            "data.train_images": 256,
            "train.epochs": 1,
            "train.batch_size": 64,
            "evaluate.train_images": 256,
            "evaluate.images": 128,
        }
    )

    def for_data(self, *, labelled: bool, known: bool = True) -> "Study":
        """Return the study without the objectives and the rows that need what the data do not have.

        Args:
            labelled: whether there are labels.
            known: whether the data have known factors: transform parameters of a pair, or factors of rendered objects.
        """
        absent = lacking(labelled=labelled, known=known)
        objectives = {name: way for name, way in self.objectives.items() if name not in absent}
        instead = {"r2_mean" if known else "linear": "maximize"}
        without = {*([] if labelled else ["supervised"]), *([] if known else ["supervised-factors"])}
        rows = {name: overrides for name, overrides in self.rows.items() if name not in without}
        return dataclasses.replace(self, objectives=objectives or instead, rows=rows)

    def reference_configurations(self) -> list[Configuration]:
        """Return the rows that every table has."""
        return [Configuration(name, overrides) for name, overrides in self.rows.items()]
