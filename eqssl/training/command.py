"""`eqssl train`: one training run from the command line, without Ray."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from eqssl.config import RunConfig, check_effect, options_in
from eqssl.files import as_path, make_folder
from eqssl.training.memory import keep_freed


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train and evaluate one encoder."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """What is trained."""
    output: str = "results/train"
    """Folder, or its URI, for checkpoint, metrics.json, reconstructions.png and the encoder."""
    tracking_uri: str | None = None
    """Where MLflow keeps the run: sqlite:///FILE or http(s)://SERVER; default: nowhere."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for options that cannot work, 1 for what fails on the way."""
    try:
        options = tyro.cli(TrainOptions, args=arguments, description=TrainOptions.__doc__, prog="eqssl train")
        check_effect(options.run, options_in(sys.argv[1:] if arguments is None else arguments))
        return _run(options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _run(options: TrainOptions) -> int:
    output = as_path(options.output, "--output")
    make_folder(output, "--output")
    if (output / "checkpoint").exists() and not options.resume:
        raise ValueError(f"--output: {output} holds a run; continue it with --resume or take another --output")
    keep_freed()
    # torch takes 5 s to import: not before the options are known to be good.
    from eqssl.images import save_reconstructions
    from eqssl.models.export import export_encoder
    from eqssl.study.store.records import finite, write_json
    from eqssl.training.context import LocalContext
    from eqssl.training.loop import train

    class Told(LocalContext):
        def report(self, metrics, state):
            super().report(metrics, state)
            log(metrics)
            print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)

    with tracking(options) as log:
        result = train(options.run, Told(output / "checkpoint"))
    write_json(output / "metrics.json", finite(result.metrics))
    export_encoder(result.encoder, output / "encoder", result.method)
    if result.reconstructions is not None:
        save_reconstructions(result.reconstructions, output / "reconstructions.png")
    print(f"encoder: {output / 'encoder'}")
    return 0


def tracking(options: TrainOptions) -> AbstractContextManager[Callable[[dict[str, float]], object]]:
    """Return what yields a function that logs an epoch's metrics."""
    if options.tracking_uri is None:
        return nullcontext(lambda metrics: None)
    from eqssl.tracking import track_run

    return track_run(options.tracking_uri, "train", options.run, resume=options.resume)
