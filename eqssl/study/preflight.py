"""What can be found wrong before anything is started, and what a worker finds wrong before anything is trained."""

import logging
import os
from pathlib import Path
from typing import Any

from eqssl.config import RunConfig, from_dict
from eqssl.study.definition import Study
from eqssl.study.options import StudyOptions
from eqssl.study.plugins import Plugins, register
from eqssl.study.space import Trial, check_space

DESCRIPTION = ("name", "digest", "paired", "image_size", "channels", "num_classes")


def check_options(study: Study, options: StudyOptions) -> None:
    """Refuse what the options alone show to be impossible.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    check_space(study.space, options.run)
    for row in study.reference_configurations():
        Trial(row, 0).run_config(options.run)
    path = options.run.data.path
    if path is not None and "://" not in path and not Path(path).expanduser().exists():
        raise ValueError(f"--data.path is {path!r}, which does not exist")
    if options.warm_start and not (Path(options.warm_start) / "summary.json").is_file():
        raise ValueError(f"--warm-start is {options.warm_start!r}; allowed: OUTPUT/STUDY of a study that has ended")
    output = Path(options.output).absolute()
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--output is {options.output!r}: {existing} is no folder that can be written")


def try_run(run: dict[str, Any], world_size: int, plugins: Plugins) -> dict[str, Any]:
    """Load the data and set up a run in a worker, so that what cannot work is known before anything is trained.

    Args:
        run: `to_dict` of the configuration.
        world_size: workers of a trial.
        plugins: sources and methods that the study's own file registered.

    Returns:
        What the data are, and `warnings` about them; or `error`.
    """
    from eqssl.data import load
    from eqssl.evaluation.transforms import digest
    from eqssl.model import Model
    from eqssl.training import check_fits

    register(plugins)
    config = from_dict(RunConfig, run)
    warnings = _Messages(logging.WARNING)
    logging.getLogger("eqssl").addHandler(warnings)
    try:
        data = load(config.data)
        check_fits(config, data, world_size)
        Model(config, data)
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    finally:
        logging.getLogger("eqssl").removeHandler(warnings)
    about = {name: getattr(data, name) for name in DESCRIPTION}
    about["transforms"] = digest()  # of the evaluation
    about["images"] = {name: len(getattr(data, name)) for name in ("train", "val", "test")}
    return about | {"warnings": warnings.texts}


class _Messages(logging.Handler):
    """Keeps what was logged."""

    def __init__(self, level: int):
        super().__init__(level)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
