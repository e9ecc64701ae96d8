"""What can be found wrong before anything is started, and what a worker finds wrong before anything is trained."""

import logging
import os
import socket
from dataclasses import replace
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqssl.config import EvaluateConfig, RunConfig
from eqssl.files import as_path, check_readable, make_folder, os_errors, read, try_writing
from eqssl.metrics import METRICS
from eqssl.study.definition import LEARNING, Pruner, Study, lacking
from eqssl.study.execution.forecast import time_epoch
from eqssl.study.execution.setup import StudySetup
from eqssl.study.options import StudyOptions
from eqssl.study.search.space import Trial, check_space
from eqssl.study.store.lock import owns

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset

logger = logging.getLogger(__name__)

FEW_IMAGES = 500  # of the eval split, below which their sampling alone hides differences of some hundredths
DESCRIPTION = ("name", "digest", "paired", "image_size", "channels", "num_classes")


def check_options(study: Study, options: StudyOptions) -> None:
    """Refuse what the options alone show to be impossible.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    check_space(study.space, options.run)
    if study.space and options.run.evaluate.split == "test":
        raise ValueError(
            f"--evaluate.split is test; allowed in {study.name}, which chooses: val; "
            "--final-test 5 reports the choice on test"
        )
    if options.pruner == "halving" and not options.smoke:  # whose epochs are too few for any rung
        from eqssl.study.search.pruning import check_rungs

        check_rungs(options.run.train)
    for row in study.reference_configurations():
        Trial(row, 0).run_config(options.run)
    path = options.run.data.path
    if path is not None and "://" not in path and not Path(path).expanduser().exists():
        raise ValueError(f"--data.path is {path!r}, which does not exist")
    if options.warm_start:
        if options.sampler not in LEARNING:
            raise ValueError(f"--sampler is {options.sampler}; allowed with --warm-start: {', '.join(LEARNING)}")
        earlier = as_path(options.warm_start, "--warm-start")
        check_readable(earlier, "--warm-start")
        if not read(earlier / "summary.json"):
            raise ValueError(f"--warm-start is {options.warm_start!r}; allowed: OUTPUT/STUDY of a study that has ended")
    check_output(options.output)


def check_output(text: str) -> None:
    """Refuse an --output that cannot be written.

    Raises:
        ValueError: naming the option, its value and what is wrong.
    """
    output = as_path(text, "--output").absolute()
    if not isinstance(output, Path):
        return make_folder(output, "--output")
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--output is {text!r}: {existing} is no folder that can be written")


def check_node(folder: str, token: str) -> str | None:
    """Return why a node of the cluster cannot keep a study's results; None where it can.

    Args:
        folder: OUTPUT/STUDY.
        token: of the run of the command that owns the folder.
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


def try_run(
    setup: StudySetup, run: RunConfig, token: str, workers: int, pruner: Pruner = "none", timed: bool = False
) -> dict[str, Any]:
    """Load the data, set up a run and train a few steps in a worker, to know beforehand what cannot work.

    Args:
        setup: of the study, with its objectives.
        run: the base configuration.
        token: as `check_node` takes it.
        workers: of a trial.
        pruner: whether the objectives also decide about trials on their way.
        timed: whether to train steps.

    Returns:
        A description of the data, `strengths` of the augmentations on them, `warnings`, and `epoch_s`, the seconds of
        an epoch, None where nothing was timed; or only `error`.
    """
    if error := check_node(setup.folder, token):
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
            except Exception as error:  # the trials meet it too and report it
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
    """Refuse a metric that the evaluation does not give on these data, at this level."""
    from eqssl.data.pairs import KNOWN, is_known

    labelled, known = data.num_classes > 0, is_known(data)
    if not (labelled or known):
        raise ValueError(
            f"--data.source {data.name} has neither labels nor a factor between the views of an object "
            f"({', '.join(KNOWN)}), so that nothing can be measured; allowed: one of these, or --data.pairs image"
        )
    if not {*objectives} - {
        *lacking(labelled=False, known=False)
    }:  # the study leaves out those that the data do not have
        return
    from eqssl.evaluation.encoders import Constant
    from eqssl.evaluation.protocol import evaluate

    level = "quick" if pruner == "halving" else config.level
    given = evaluate(Constant(), data, config=replace(config, level=level, train_images=256, images=128))
    allowed = {part + metric for metric in given for part in ("", "inv/", "equi/")}
    allowed |= {metric.name for metric in METRICS.values() if metric.level == "train"}
    if wrong := sorted({*objectives} - allowed - {*lacking(labelled=labelled, known=known)}):
        on_the_way = ", at which --pruner halving compares trials" if level != config.level else ""
        raise ValueError(
            f"--objectives has {', '.join(wrong)}; allowed at level {level}{on_the_way}, each also after "
            f"inv/ and equi/: {', '.join(sorted(given))}"
        )
