"""A study: one question, as data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eqssl.config import AUTOENCODE, NonNegativeInt, PositiveInt, RunConfig, check_fields
from eqssl.metrics import METRICS, Direction
from eqssl.renames import names_fields
from eqssl.study.search.space import Choice, Configuration, Params, Range, Space

NO_SPLIT = {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}
# Rows of every table; None: no encoder; the pixels, or nothing at all, are evaluated.
REFERENCE_ROWS: dict[str, Params | None] = {
    "constant": None,
    "pixels": None,
    "random": {"train.epochs": 0} | NO_SPLIT,
    "supervised": {"method.name": "supervised", "method.options": {}} | NO_SPLIT,
    "supervised-factors": {"method.name": "supervised_factors", "method.options": {}} | NO_SPLIT,
    "recon-only": {"method.name": "none", "method.options": {}, "recon.weight": 1.0},
    "base": dict(NO_SPLIT),
    "no-recon": {"recon.weight": 0.0},
    "autoencode": {"recon.attention": AUTOENCODE},
}
CONTROLS = ("base", "no-recon", "autoencode")
ATTENTION = "recon.attention"
WITHOUT_ENCODER = ("constant", "pixels")
# Shown alongside the methods, but not counted among them.
PRETRAINED = "pretrained"  # added under --encoder.pretrained: the weights before training
ONE_SEED = (*WITHOUT_ENCODER, PRETRAINED)  # the same for every seed
REFERENCES = (*WITHOUT_ENCODER, "random", "supervised", "supervised-factors", "recon-only", PRETRAINED)

Sampler = Literal["grid", "one-at-a-time", "qmc", "random", "tpe", "gp", "nsga2", "nsga3"]
DESIGNS = ("grid", "one-at-a-time", "qmc")  # known before the first result
LEARNING = ("tpe", "gp", "nsga2", "nsga3")  # samplers that learn from earlier results
SeedSchedule = Literal["fixed", "halving"]
Pruner = Literal["none", "halving"]
OF_OPTIONS = ("configs", "seeds", "sampler", "seed_schedule", "pruner", "final_test", "base")  # fields like options
FRESH_SEED = 1000  # added to the seed of a final test, so that it reuses no seed of the search
REDUCTION = 3  # halving, of seeds or of epochs, keeps one in this many
FIRST_STAGES = (1, 3)  # seeds of a configuration after the first stages of halving; after the last it has all of them


def seed_stages(seeds: int, schedule: SeedSchedule) -> list[int]:
    """Return the seeds of a configuration after each stage of a schedule.

    Args:
        seeds: of a configuration that survives all stages.
        schedule: fixed: all seeds at once; halving: one seed for all configurations, three for the best third, all for
            the best third of these.
    """
    return [*(stage for stage in FIRST_STAGES if schedule == "halving" and stage < seeds), seeds]


def count_trials(configs: int, stages: list[int]) -> int:
    """Return the number of trials that `configs` configurations take over all stages."""
    trials, before = 0, 0
    for seeds in stages:
        trials += configs * (seeds - before)
        configs, before = -(-configs // REDUCTION), seeds
    return trials


def lacking(*, labelled: bool, known: bool) -> tuple[str, ...]:
    """Return the main metrics of a quick evaluation that data without labels, or without known factors, lack."""
    absent = {"labels": not labelled, "factors": not known}
    quick = (metric for metric in METRICS.values() if metric.in_main_table and metric.level == "quick")
    return tuple(metric.name for metric in quick if any(absent.get(need) for need in metric.needs))


@names_fields
@dataclass(frozen=True, kw_only=True)
class Study:
    """One question.

    Args:
        name: also the name of the folder and of the MLflow experiment.
        question: one sentence, shown by `--help` and in the report.
        space: dotted option -> its parameter.
        configs: default number of configurations in the search; 0: the rows are the whole study.
        seeds: default number of trials per configuration.
        sampler: a design, or one of Optuna's samplers.
        seed_schedule: whether all configurations get all seeds, or only the best, see `seed_stages`.
        pruner: whether trials that fall behind are ended early, see `eqssl.study.search.pruning`.
        final_test: number of fresh seeds with which the choice is retrained and reported on test; 0: no final test.
        objectives: metric of the evaluation -> maximize or minimize; the first is the accuracy, which the choice
            guards, the last is the goal of the choice.
        rows: name -> overrides, the reference rows of the tables.
        controls: name of a row -> the rows it is compared with, if these are not base, no-recon and autoencode; the
            first is its base method.
        matched_controls: whether every searched configuration of a design gets an auto-encoding control at its own
            options, see `eqssl.study.controls`, instead of the row autoencode.
        subject: row that the study's sentence is about if nothing is searched.
        base: values of all options that are not varied.
        smoke: overrides with which the whole study takes a minute or two.
    """

    name: str
    question: str
    space: Space
    configs: NonNegativeInt = 5
    seeds: PositiveInt = 2
    sampler: Sampler = "grid"
    seed_schedule: SeedSchedule = "fixed"
    pruner: Pruner = "none"
    final_test: NonNegativeInt = 0
    objectives: Mapping[str, Direction] = field(default_factory=lambda: {"linear": "maximize", "r2_mean": "maximize"})
    rows: Mapping[str, Params | None] = field(default_factory=lambda: dict(REFERENCE_ROWS))
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    matched_controls: bool = False
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

    def __post_init__(self) -> None:
        """Refuse a name that is not one folder's, and fields of other types.

        Raises:
            ValueError: naming the field, its value and the allowed values.
        """
        if not isinstance(self.name, str) or self.name in ("", ".", "..") or set(self.name) & set("/\\\0"):
            raise ValueError(f"name of a study is {self.name!r}; allowed: that of one folder, without slashes")
        if not isinstance(self.space, Mapping):
            raise ValueError(f"space of study {self.name} is {self.space!r}; allowed: option -> choice(...), ...")
        for option, parameter in self.space.items():
            if not isinstance(parameter, Choice | Range):
                raise ValueError(
                    f"space of study {self.name} has {parameter!r} for {option}; allowed: choice(...), "
                    "uniform(low, high) or log_uniform(low, high)"
                )
        for name in ("objectives", "rows", "controls", "smoke"):
            if not isinstance(value := getattr(self, name), Mapping):
                raise ValueError(f"{name} of study {self.name} is {value!r}; allowed: a dictionary, see Study")
        check_fields(self, only=OF_OPTIONS)

    def for_data(self, *, labelled: bool, known: bool = True) -> "Study":
        """Return the study without the objectives and the rows for which the data lack labels or known factors.

        Args:
            labelled: whether there are labels.
            known: whether there are known factors: transform parameters of a pair, or factors of rendered objects.
        """
        absent = lacking(labelled=labelled, known=known)
        objectives = {metric: direction for metric, direction in self.objectives.items() if metric not in absent}
        available = {"supervised": labelled, "supervised-factors": known}
        rows = {name: overrides for name, overrides in self.rows.items() if available.get(name, True)}
        return dataclasses.replace(self, objectives=objectives, rows=rows)

    def count_configs(self, asked: int | None) -> int:
        """Return the number of configurations: the number asked for, else the default; at most 1 if nothing varies."""
        count = self.configs if asked is None else asked
        return count if self.space else min(1, count)

    def reference_configurations(self) -> list[Configuration]:
        """Return the rows that every table has."""
        return [Configuration(name, overrides) for name, overrides in self.rows.items()]
