"""A study: one question, as data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eqssl.config import RunConfig
from eqssl.study.space import Configuration, Space

# Every table has these rows; None: no encoder, the pixels or nothing at all are evaluated.
REFERENCE_ROWS: dict[str, dict[str, Any] | None] = {
    "constant": None,
    "pixels": None,
    "random": {"train.epochs": 0, "encoder.split": 0.0, "recon.weight": 0.0},
    "supervised": {"method.name": "supervised", "method.options": {}, "encoder.split": 0.0, "recon.weight": 0.0},
    "recon-only": {"method.name": "none", "method.options": {}, "recon.weight": 1.0},
    "base": {"encoder.split": 0.0, "recon.weight": 0.0},
    "split-0": {"recon.weight": 0.0},
}
CONTROLS = ("base", "split-0")
NEED_LABELS = ("knn", "linear")  # accuracies
NEED_FACTORS = ("r2_mean",)
WITHOUT_ENCODER = ("constant", "pixels")  # the same for every seed
REFERENCES = (*WITHOUT_ENCODER, "random", "supervised", "recon-only")  # beside the methods, not among them

Sampler = Literal["grid", "one-at-a-time", "qmc", "random", "tpe", "gp", "nsga2", "nsga3"]
LEARNING = ("tpe", "gp", "nsga2", "nsga3")  # samplers that heed what was found
Stopping = Literal["none", "halving"]


def lacking(*, labelled: bool, known: bool) -> tuple[str, ...]:
    """Return the figures that data without labels, or without anything known between two views, do not give."""
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
            guards, the second is what the choice maximises.
        rows: name -> overrides, the reference rows of the tables.
        controls: name of a row -> the rows it is compared with, where these are not base and split-0.
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
        default_factory=lambda: {"knn": "maximize", "r2_mean": "maximize"}
    )
    rows: Mapping[str, dict[str, Any] | None] = field(default_factory=lambda: dict(REFERENCE_ROWS))
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
        """Return the study without the objectives and the row that need what the data do not have.

        Args:
            labelled: whether there are labels.
            known: whether anything is known to lie between two views.
        """
        absent = lacking(labelled=labelled, known=known)
        objectives = {name: way for name, way in self.objectives.items() if name not in absent}
        instead = {"r2_mean" if known else "knn": "maximize"}
        rows = {name: overrides for name, overrides in self.rows.items() if labelled or name != "supervised"}
        return dataclasses.replace(self, objectives=objectives or instead, rows=rows)

    def reference_configurations(self) -> list[Configuration]:
        """Return the rows that every table has."""
        return [Configuration(name, overrides) for name, overrides in self.rows.items()]
