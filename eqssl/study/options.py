"""The options of every study, made from the typed configuration; importing this imports neither torch nor Ray."""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

import tyro

from eqssl import config
from eqssl.config import NonNegativeInt, Positive, PositiveInt, RunConfig
from eqssl.metrics import METRICS, Direction, Metric, find_metric
from eqssl.renames import did_you_mean, names_fields
from eqssl.study.definition import (
    ATTENTION,
    PRETRAINED,
    REFERENCE_ROWS,
    Pruner,
    Sampler,
    SeedSchedule,
    Study,
)
from eqssl.study.search.space import Params, fix

STUDY_DEFAULT: Any = None  # of an option that the study has, too; `settle` replaces it
FROM_STUDY = {"run": "base"} | {name: name for name in ("seeds", "sampler", "seed_schedule", "pruner", "final_test")}


@names_fields
@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is run; options that a study has, too, are the study's own unless they are set, see `settle`."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = STUDY_DEFAULT
    """Every option that is not varied; giving one that the study varies fixes it."""
    configs: PositiveInt | None = None
    """Configurations of the search; None: the study's own number. The reference rows (constant, pixels, random,
    supervised, supervised-factors, recon-only) and the controls (base, no-recon, autoencode) come on top."""
    seeds: PositiveInt = STUDY_DEFAULT
    """Trials of one configuration; the same seeds everywhere, so that differences are paired."""
    sampler: Sampler = STUDY_DEFAULT
    """A design (grid, one-at-a-time, qmc) or one of Optuna's samplers (random, tpe, gp, nsga2, nsga3)."""
    objectives: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="METRIC [METRIC ...]")] = None
    """Metrics of the evaluation, METRIC, METRIC:maximize or METRIC:minimize, such as linear, knn, r2_mean, r2/pose or
    equivariance; docs/evaluation.md lists them. The choice guards the first and optimises the last. None: the study's
    own."""
    seed_schedule: SeedSchedule = STUDY_DEFAULT
    """fixed: every configuration gets --seeds; halving: all start with one seed, the best third gets 3, the best third
    of these --seeds."""
    pruner: Pruner = STUDY_DEFAULT
    """halving: end trials that are not among the best third after a ninth (unless it is warm-up) and a third of the
    epochs."""
    warm_start: str | None = None
    """OUTPUT/STUDY of an earlier study of the same options, with whose results the sampler starts."""
    final_test: NonNegativeInt = STUDY_DEFAULT
    """Number of fresh seeds with which the chosen configuration and its controls are retrained and reported on test; 0:
    no final test."""
    workers_per_trial: Annotated[int | str, tyro.conf.arg(metavar="INT|MIN:MAX")] = 1
    """Processes that train one trial together; 1 trains in the trial's own process, more by Ray Train. MIN:MAX: as many
    as there is room for, which changes as nodes come and go; --train.batch-size stays the same."""
    gpus_per_trial: float | None = None
    """GPUs of one trial, over all its workers; below 1, trials share one. Default: 1 per worker if there are any, or
    the variable EQSSL_GPUS_PER_WORKER if an autoscaler may still add them."""
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    """Resources that each worker reserves in addition to CPUs (--train.threads) and GPUs, such as `accelerator 1`."""
    concurrency: PositiveInt | None = None
    """Trials at a time; trials that do not fit wait, which makes an autoscaler add nodes. Default: as many as the
    nodes hold; with an autoscaler all, or 8 where the sampler goes by earlier results."""
    output: str = field(default_factory=lambda: os.environ.get("EQSSL_OUTPUT", "results"))
    """Folder for the results, OUTPUT/STUDY, or a bucket, s3://BUCKET/FOLDER; on a cluster one that all nodes share.
    Default: the variable EQSSL_OUTPUT, else results."""
    tracking_uri: str = field(default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    """Where MLflow keeps the runs: sqlite:///FILE or http(s)://SERVER. Default: the variable MLFLOW_TRACKING_URI, else
    sqlite:///mlflow.db."""
    resume: bool = False
    """Go on with the study in OUTPUT/STUDY: finished trials are kept, unfinished ones continue."""
    max_hours: Positive | None = None
    """Limit for this run of the command, and for each study of it, in hours. A longer forecast is refused; at the limit
    the state is saved for --resume."""
    dry_run: bool = False
    """Print the planned trials and, with --resume, an estimate of their duration, then exit: nothing is trained or
    written, and Ray is not started."""
    yes: bool = False
    """Do not ask before a study that is forecast to take more than half an hour; asked on a terminal only."""
    smoke: bool = False
    """Tiny data and one epoch, to see that everything works, without a forecast; other options still hold. The folder
    and MLflow's experiment are called STUDY_smoke."""

    def __post_init__(self) -> None:
        unset = {name for name in FROM_STUDY if getattr(self, name) is None}
        config.check_fields(self, only={f.name for f in dataclasses.fields(self)} - unset)
        for name, amount in self.resources_per_worker.items():
            if name in ("CPU", "GPU", "memory") or not 0 < amount < math.inf:
                raise ValueError(
                    f"--resources-per-worker has {name} {amount:g}; allowed: finite amounts above 0 of resources "
                    "other than CPU (--train.threads), GPU (--gpus-per-trial) and memory"
                )
        gpus, (_, workers) = self.gpus_per_trial, self.workers
        if gpus is not None and (gpus < 0 or (workers > 1 and gpus % workers)):
            raise ValueError(f"--gpus-per-trial is {gpus}; allowed: 0 or more, the same whole number for each worker")

    @property
    def workers(self) -> tuple[int, int]:
        """The minimum and maximum number of workers per trial."""
        parts = str(self.workers_per_trial).split(":")
        counts = [int(part) for part in parts if part.isdigit()]
        if len(counts) != len(parts) or len(counts) > 2 or not 1 <= counts[0] <= counts[-1]:
            raise ValueError(f"--workers-per-trial is {self.workers_per_trial}; allowed: 1 or more, or MIN:MAX")
        return counts[0], counts[-1]


def parse(study: Study, arguments: Sequence[str]) -> tuple[Study, StudyOptions]:
    """Return the study with fixed options removed from its space, and the options; with --smoke it is named NAME_smoke.

    Args:
        study: the study with its defaults.
        arguments: the command line without the program's name.

    Raises:
        SystemExit: 2 for an option or a value that is not allowed, 0 after `--help`.
        ValueError: for a value of the right type that is not allowed.
    """
    given = config.options_in(arguments)
    with config.parsing():
        options = tyro.cli(
            StudyOptions,
            args=list(arguments),
            default=default_options(study),
            description=study.question,
            prog=f"studies/{study.name}.py",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    if options.run.method.preset:
        from eqssl.methods import with_preset  # torch takes seconds to import

        options = dataclasses.replace(options, run=with_preset(options.run, given | study.space.keys()))
    fixed = {option: config.get(options.run, option) for option in study.space.keys() & given}
    space = fix(study.space, fixed)
    config.check_effect(options.run, {option for option in given if not _depends_on(option, space)})
    if not space and "configs" in given and options.configs != 1:
        raise ValueError(
            f"--configs is {options.configs}; allowed where no option varies: 1 (--seeds gives it more trials)"
        )
    return settle(dataclasses.replace(study, space=space), options, given)


def _depends_on(option: str, space: Collection[str]) -> bool:
    """Return whether an option has an effect on some configurations of a space only."""
    source = option.startswith("data.") and "data.source" in space
    return source or (option in config.CROSS_ATTENTION_OPTIONS and ATTENTION in space)


def settle(study: Study, options: StudyOptions, given: Collection[str] = ()) -> tuple[Study, StudyOptions]:
    """Return the study that the options ask for, with their objectives and, if `smoke`, made small, and its options.

    Options that are not set become the study's own: its base, seeds, sampler, seed schedule, pruner and final test.
    Options parsed from a command line are settled already.

    Args:
        study, options: the study, and how it is run.
        given: options that a smoke run keeps; default: those with another value than the study's base.

    Raises:
        ValueError: for objectives that are not allowed.
    """
    own = {name: getattr(study, of) for name, of in FROM_STUDY.items() if getattr(options, name) is None}
    options = dataclasses.replace(options, **own)
    if options.smoke and (study.smoke or given):
        base = config.replace(study.base, dict(study.smoke))  # refuses a name that is no option
        given = given or {o for o in study.smoke if config.get(options.run, o) != config.get(study.base, o)}
        small = {option: value for option, value in study.smoke.items() if option not in given}
        options = dataclasses.replace(options, run=config.replace(options.run, small))
        study = dataclasses.replace(study, name=f"{study.name}_smoke", base=base, smoke={})
    if options.run.encoder.pretrained and "random" in study.rows:
        study = dataclasses.replace(study, rows=_rows_of_pretrained(study.rows))
    return dataclasses.replace(study, objectives=_objectives(study, options)), options


def _rows_of_pretrained(rows: Mapping[str, Params | None]) -> dict[str, Params | None]:
    """Return the rows of a study whose encoders start from trained weights.

    `random` keeps an untrained encoder, and the row `pretrained` shows the weights before the study trains on.
    """
    untrained = dict(REFERENCE_ROWS["random"] or {})
    found: dict[str, Params | None] = {}
    for name, row in rows.items():
        found[name] = row
        if name == "random":
            found |= {"random": untrained | {"encoder.pretrained": False}, PRETRAINED: untrained}
    return found


def opening(study: Study, options: StudyOptions) -> str:
    """Return the question with the method, the encoder and the data, without those that the study varies."""
    named = {"method.name": "", "encoder.name": "", "data.source": "data: "}
    rows = [overrides or {} for name, overrides in study.rows.items() if name not in REFERENCE_ROWS]
    varied = study.space.keys() | {option for overrides in rows for option in overrides}
    fixed = [text + str(config.get(options.run, option)) for option, text in named.items() if option not in varied]
    return f"{study.question} ({', '.join(fixed).replace(', data:', '; data:')})" if fixed else study.question


def default_options(study: Study) -> StudyOptions:
    """Return the options of a study if none is given."""
    same = {name: getattr(study, of) for name, of in FROM_STUDY.items()}
    same["configs"] = study.configs or None
    objectives = tuple(
        metric if direction == _objective(metric).direction else f"{metric}:{direction}"
        for metric, direction in study.objectives.items()
    )
    return StudyOptions(objectives=objectives, **same)


def _objectives(study: Study, options: StudyOptions) -> dict[str, Direction]:
    """Return the objectives asked for, else the study's: metric -> direction, by default that of the metric.

    Raises:
        ValueError: for an unknown metric, one that the evaluation leaves out, an unknown direction, or no objective.
    """
    own = [f"{metric}:{direction}" for metric, direction in study.objectives.items()]
    found: dict[str, Direction] = {}
    for objective in own if options.objectives is None else options.objectives:
        metric, _, direction = objective.partition(":")
        known = _objective(metric)
        if known.level == "full" and options.run.evaluate.level == "quick":
            raise ValueError(
                f"--objectives has {metric}, which --evaluate.level quick leaves out; allowed with it: full"
            )
        if known.level == "full" and options.pruner == "halving":
            raise ValueError(
                f"--objectives has {metric}, which the quick evaluations leave out by which --pruner halving compares "
                "trials; allowed with it: --pruner none"
            )
        allowed: dict[str, Direction] = {"": known.direction} | {way: way for way in get_args(Direction)}
        if direction not in allowed:
            raise ValueError(f"--objectives has {objective}; allowed: METRIC, METRIC:maximize or METRIC:minimize")
        if metric in found:
            raise ValueError(f"--objectives has {metric} twice; allowed: each metric once")
        found[metric] = allowed[direction]
    if not found:
        raise ValueError("--objectives is empty; allowed: one metric or more")
    return found


def _objective(name: str) -> Metric:
    try:
        if (metric := find_metric(name)).level == "cost":
            raise KeyError(name)
        return metric
    except KeyError:
        known = {m.name: f"{m.name}/FACTOR" if m.per_factor else m.name for m in METRICS.values() if m.level != "cost"}
        known["equivariance"] = "equivariance, equivariance/FACTOR"  # the one family with a mean of the same name
        text = f"--objectives has {name}; allowed, each also after inv/ and equi/: {', '.join(known.values())}"
        raise ValueError(text + did_you_mean(name, known)) from None
