"""`eqssl train`: one training run from the command line, without Ray."""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from eqssl.config import RunConfig, check_effect, options_in, parsing, replace
from eqssl.files import as_path
from eqssl.names import check_names
from eqssl.signals import Interrupted
from eqssl.training.memory import keep_freed


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train and evaluate one encoder."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """The run."""
    output: str = "results/train"
    """Folder, or its URI, for checkpoint, metrics.json, reconstructions.png and the encoder."""
    tracking_uri: str | None = None
    """MLflow's store of the run: sqlite:///FILE or http(s)://SERVER; default: none."""
    resume: bool = False
    """Continue from the checkpoint in the output folder."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for options that cannot work, 1 for an error during the run.

    After SIGINT or SIGTERM the state is saved, and the code is 130 or 143.
    """
    try:
        given = options_in(sys.argv[1:] if arguments is None else arguments)
        with parsing():
            options = tyro.cli(TrainOptions, args=arguments, description=TrainOptions.__doc__, prog="eqssl train")
        run, output = options.run, options.output
        check_effect(run, given)
        check_names(replace(run, {"method.preset": None}))
        keep_freed()
        # torch takes 5 s to import: only once the options are known to be valid.
        from eqssl.methods import with_preset
        from eqssl.training.single import train

        run, uri = with_preset(run, given), options.tracking_uri
        try:
            train(run, progress=True, output=output, tracking_uri=uri, resume=options.resume, handle_signals=True)
        except Interrupted as stop:
            print(f"stopped by {stop}: continue with the same command and --resume", file=sys.stderr)
            return stop.code
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(f"encoder: {as_path(output) / 'encoder'}")
    return 0
