"""Before the trials of a study: checks of its options, nodes and data, and a forecast of its duration."""

import importlib
import logging
import os
import socket
import sys
from dataclasses import replace as change
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from eqssl.config import SEEDS, EvaluateConfig, RunConfig, replace
from eqssl.files import as_path, check_readable, make_folder, os_errors, read, try_writing
from eqssl.metrics import METRICS
from eqssl.names import check_names
from eqssl.renames import did_you_mean
from eqssl.study.definition import CONTROLS, FRESH_SEED, LEARNING, Pruner, Study, lacking
from eqssl.study.execution.setup import StudySetup
from eqssl.study.options import StudyOptions
from eqssl.study.search.space import Trial, check_space
from eqssl.study.store.lock import owns

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset

logger = logging.getLogger(__name__)

FEW_IMAGES = 500  # in the eval split; with fewer, sampling noise alone hides differences of a few hundredths
OF_TRIALS = ("ray.tune", "ray.train.torch", "eqssl.training.loop", "eqssl.evaluation.protocol", "eqssl.models.export")
STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks", "databricks-uc", "uc")
STEPS_S = 2.0  # approximate duration of the timed steps
ASK_ABOVE_S = 1800.0
JOB_FOLDERS = "runtime_resources/working_dir_files"  # in Ray's temporary folder
DESCRIPTION = ("name", "digest", "paired", "image_size", "channels", "num_classes")


def check_options(study: Study, options: StudyOptions) -> None:
    """Refuse options that cannot work.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    _check_rows(study)
    _check_seeds(study, options)
    check_space(study.space, options.run)
    if study.space and options.run.evaluate.split == "test":
        raise ValueError(
            f"--evaluate.split is test; allowed in {study.name}, which chooses: val; "
            "--final-test 5 reports the choice on test"
        )
    if options.pruner == "halving" and not options.smoke:  # a smoke run has too few epochs for a rung
        from eqssl.study.search.pruning import check_rungs

        check_rungs(options.run.train)
    for row in study.reference_configurations():
        check_names(Trial(row, 0).run_config(options.run))
    path, source = options.run.data.path, options.run.data.source
    if path is None and source in ("parquet", "imagefolder", "3diebench"):
        raise ValueError(f"--data.path is not given; allowed with --data.source {source}: a file, a folder or a URI")
    if path is not None and "://" not in path and not as_path(path, "--data.path").exists():
        raise ValueError(f"--data.path is {path!r}, which does not exist")
    scheme, colon, _ = options.tracking_uri.partition(":")
    scheme = scheme.partition("+")[0]
    if colon and scheme not in STORES and (near := did_you_mean(scheme, STORES)):  # others: an MLflow plugin's
        raise ValueError(f"--tracking-uri is {options.tracking_uri!r}; allowed: sqlite:///FILE, http(s)://SERVER{near}")
    if options.warm_start:
        if options.sampler not in LEARNING:
            raise ValueError(f"--sampler is {options.sampler}; allowed with --warm-start: {', '.join(LEARNING)}")
        earlier = as_path(options.warm_start, "--warm-start")
        check_readable(earlier, "--warm-start")
        if not read(earlier / "summary.json"):
            raise ValueError(f"--warm-start is {options.warm_start!r}; allowed: OUTPUT/STUDY of a study that has ended")
    check_output(options.output)


def _check_rows(study: Study) -> None:
    """Refuse a subject or controls that are not rows of the study, which may lack one of the usual controls."""
    named = {"subject": (study.subject,) * bool(study.subject), "controls": tuple(study.controls)}
    named |= {f"controls[{row!r}]": controls for row, controls in study.controls.items()}
    for row, overrides in study.rows.items():
        if "train.seed" in (overrides or {}):
            raise ValueError(f"row {row} of study {study.name} has train.seed; every row has the same seeds: --seeds")
    for field, rows in named.items():
        for row in rows:
            if row not in study.rows and (field in ("subject", "controls") or row not in CONTROLS):
                near = did_you_mean(row, study.rows)
                raise ValueError(f"{field} of study {study.name} has {row!r}; allowed: {', '.join(study.rows)}{near}")


def _check_seeds(study: Study, options: StudyOptions) -> None:
    """Refuse seeds that trials, which count up from --train.seed, would take beyond the largest one."""
    seeds = options.seeds * max(1, study.count_configs(options.configs))  # a repeated suggestion gets fresh seeds
    seeds = max(seeds, FRESH_SEED * bool(options.final_test) + options.final_test)
    if options.run.train.seed > (most := SEEDS - seeds):
        test = f" and --final-test {options.final_test}" * bool(options.final_test)
        raise ValueError(
            f"--train.seed is {options.run.train.seed}; allowed with --seeds {options.seeds}{test}, which count up "
            f"from it: 0 to {most}"
        )


def temporary_places(options: StudyOptions) -> list[str]:
    """Return a warning for each relative path of a job that runs in Ray's temporary copy of the submitted folder."""
    if JOB_FOLDERS not in os.getcwd():
        return []
    uri = options.tracking_uri.removeprefix("sqlite:///")
    places = {"--output": options.output, "--tracking-uri": uri}
    return [
        f"{option} is in {os.getcwd()}, Ray's temporary copy of the submitted folder, which Ray deletes: give an "
        "absolute path or a URI"
        for option, path in places.items()
        if "://" not in path and not os.path.isabs(os.path.expanduser(path))
    ]


def check_output(text: str) -> None:
    """Refuse an --output that cannot be written.

    Raises:
        ValueError: naming the option, its value and the reason.
    """
    output = as_path(text, "--output").absolute()
    if not isinstance(output, Path):
        return make_folder(output, "--output")
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--output is {text!r}: {existing} is not a writable folder")


def check_node(folder: str, token: str) -> str | None:
    """Return the reason why this node cannot write a study's results, or None.

    Args:
        folder: OUTPUT/STUDY.
        token: token of the run of the command that owns the folder.
    """
    here, said = as_path(folder), f"--output: {folder}, seen from {socket.gethostname()}"
    try:
        if not owns(here, token):
            return f"{said}, is not the study's own; allowed on several nodes: a folder that all share, or s3://..."
        with os_errors():
            try_writing(here)
    except OSError as error:
        return f"{said}, cannot be written: {error}"
    return None


def check_worker(setup: StudySetup, token: str) -> str | None:
    """Return the reason why this node cannot run the study's trials, or None; checks imports, user code and --output.

    Args:
        setup: the study's setup; receiving it has already imported its registered functions and classes.
        token: see `check_node`.
    """
    try:
        for module in OF_TRIALS:
            importlib.import_module(module)
        setup.apply()
    except Exception as error:  # of any type, by any package
        return f"{socket.gethostname()} cannot run trials: {type(error).__name__}: {error}"
    return check_node(setup.folder, token)


def try_run(
    setup: StudySetup, run: RunConfig, token: str, workers: int, pruner: Pruner = "none", timed: bool = False
) -> dict[str, Any]:
    """Load the data, set up a run and time an epoch in a worker, before any trial.

    Args:
        setup: the study's setup; applied to this process.
        run: the run of the base configuration.
        token: see `check_node`.
        workers: number of workers per trial.
        pruner: the study's pruner, which compares the objectives during training.
        timed: whether to time an epoch.

    Returns:
        A description of the data, the `strengths` of augmentations on them, `warnings`, and `epoch_s`, the seconds per
        epoch, None if not timed; or only an `error`.
    """
    if error := check_worker(setup, token):
        return {"error": error}
    from eqssl.data import load_data
    from eqssl.data.pairs import is_known
    from eqssl.evaluation.transforms import digest
    from eqssl.models.model import Model
    from eqssl.training.loop import check_fits
    from eqssl.views import Views

    warnings, epoch_s = BufferingHandler(1000), None
    warnings.setLevel(logging.WARNING)
    logging.getLogger("eqssl").addHandler(warnings)
    try:
        data = load_data(run.data)
        check_fits(run, data, workers)
        Model(run, data)
        strengths = Views(run, data).strengths
        _check_objectives(setup.objectives, run.evaluate, data, pruner)
        _warn_of_few_images(run.evaluate, data)
        if timed:
            try:
                epoch_s = time_epoch(run, data, workers=workers, gpu=setup.gpu)
            except Exception as error:  # the trials will run into it and report it
                logger.warning("no forecast, since a step of the base failed: %s: %s", type(error).__name__, error)
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    finally:
        logging.getLogger("eqssl").removeHandler(warnings)
    about = {name: getattr(data, name) for name in DESCRIPTION} | {"known": is_known(data), "transforms": digest()}
    about["images"] = {name: len(getattr(data, name)) for name in ("train", "val", "test")}
    texts = [record.getMessage() for record in warnings.buffer]
    return about | {"strengths": strengths, "warnings": texts, "epoch_s": epoch_s}


def _warn_of_few_images(config: EvaluateConfig, data: "Dataset") -> None:
    images = min(len(getattr(data, config.split)), config.images)
    if images < FEW_IMAGES:
        logger.warning(
            "metrics are of %d images of the eval split (%s); below %d, intervals are wide for any number of seeds",
            images, config.split, FEW_IMAGES,
        )  # fmt: skip


def _check_objectives(objectives: tuple[str, ...], config: EvaluateConfig, data: "Dataset", pruner: Pruner) -> None:
    """Refuse an objective that the evaluation does not compute on these data at this level."""
    from eqssl.data.pairs import KNOWN, is_known

    labelled, known = data.num_classes > 0, is_known(data)
    if not (labelled or known):
        raise ValueError(
            f"--data.source {data.name} has neither labels nor a factor between the views of an object "
            f"({', '.join(KNOWN)}), so that nothing can be measured; allowed: one of these, or --data.pairs image"
        )
    absent = {metric for metric in objectives if metric in lacking(labelled=labelled, known=known)}
    if absent:
        needed = "labels" if not labelled else "known factors"
        text = f"--objectives has {', '.join(sorted(absent))}, which needs {needed}; --data.source {data.name} has none"
        if absent == set(objectives):
            raise ValueError(f"{text}; allowed: {'r2_mean' if known else 'linear'}, for example")
        logger.warning("%s: left out", text)
    if set(objectives) <= set(lacking(labelled=False, known=False)):
        return
    from eqssl.evaluation.encoders import Constant
    from eqssl.evaluation.protocol import evaluate

    level = "quick" if pruner == "halving" else config.level
    given = evaluate(Constant(), data, config=change(config, level=level, train_images=256, images=128))
    allowed = {part + metric for metric in given for part in ("", "inv/", "equi/")}
    allowed |= {metric.name for metric in METRICS.values() if metric.level == "train"}
    if wrong := sorted({*objectives} - allowed - absent):
        on_the_way = ", at which --pruner halving compares trials" if level != config.level else ""
        raise ValueError(
            f"--objectives has {', '.join(wrong)}; allowed at level {level}{on_the_way}, each also after "
            f"inv/ and equi/: {', '.join(sorted(given))}{did_you_mean(wrong[0], allowed)}"
        )


def time_epoch(config: RunConfig, dataset: "Dataset", *, workers: int, gpu: bool) -> float:
    """Return the seconds per epoch, estimated from a few real steps.

    With several workers, only one is timed, with its share of a batch and without communication.

    Args:
        config: the run.
        dataset: the run's data.
        workers: number of workers per trial.
        gpu: whether a worker has a GPU.
    """
    import torch

    from eqssl.training.context import LocalContext
    from eqssl.training.loop import Run

    context = LocalContext()
    context.device = torch.device("cuda" if gpu else "cpu")
    parts = config.train.grad_accum_steps
    batch = config.train.batch_size // workers // parts * parts
    run = Run(replace(config, {"train.batch_size": batch, "train.epochs": 4, "train.eval_every": 0}), context, dataset)
    available = run.steps_per_epoch
    run.steps_per_epoch = min(2, available)  # the last step of an epoch may not be compiled
    run.next_epoch()
    run.steps_per_epoch = 1
    one_s = run.next_epoch()["train_s"]
    run.steps_per_epoch = timed = min(max(2, int(STEPS_S / one_s)), available)
    more_s = run.next_epoch()["train_s"] - one_s  # without the cost of ending an epoch
    return one_s + (available // workers - 1) * max(0.0, more_s) / max(1, timed - 1)


def duration(seconds: float) -> str:
    """Return seconds in a readable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} hours"


def approve(epochs: int, epoch_s: float, at_once: int, options: StudyOptions, console: Console) -> None:
    """Show the forecast; refuse it above --max-hours; above half an hour, ask the user if at a terminal.

    Args:
        epochs: total over all trials to come.
        epoch_s: seconds per epoch of the base configuration.
        at_once: number of trials at a time.
        options: the study's options.
        console: the study's console.

    Raises:
        ValueError: for a forecast above the limit, or a declined one.
    """
    wall_s = epochs * epoch_s / at_once
    arithmetic = f"{epochs} epochs x {epoch_s:.3g} s / {at_once} at a time = {duration(wall_s)}"
    console.print(f"forecast: {arithmetic}, starts and evaluations not counted", soft_wrap=True)
    if options.max_hours is not None and wall_s > options.max_hours * 3600:
        raise ValueError(
            f"--max-hours is {options.max_hours:g}, and the forecast is {duration(wall_s)}; "
            "allowed: more hours, or fewer --configs, --seeds or --train.epochs"
        )
    can_answer = console.is_terminal and not console.quiet and sys.stdin.isatty()
    if wall_s <= ASK_ABOVE_S or options.yes or not can_answer:
        return
    try:
        answer = console.input("continue? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError("not started; --yes starts without a question")
