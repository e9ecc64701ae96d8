"""`python -m eqssl.train`: one training run from the command line, without Ray."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from eqssl.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train and evaluate one encoder."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """What is trained."""
    output: Path = Path("results/train")
    """Folder for checkpoint, metrics.json, reconstructions.png and the encoder."""
    tracking_uri: str | None = None
    """Where MLflow keeps the run: sqlite:///FILE or http(s)://SERVER; default: nowhere."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for options that cannot work."""
    try:
        options = tyro.cli(TrainOptions, args=arguments, description=TrainOptions.__doc__, prog="eqssl.train")
        return _run(options)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _run(options: TrainOptions) -> int:
    folder = options.output / "checkpoint"
    if folder.exists() and not options.resume:
        raise ValueError(f"--output: {options.output} holds a run; continue it with --resume or take another --output")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output is {str(options.output)!r}, which cannot be written: {error}") from error
    # torch takes 5 s to import: not before the options are known to be good.
    from eqssl.context import Alone
    from eqssl.export import export_encoder
    from eqssl.report.figures import save_reconstructions
    from eqssl.training import train

    class Told(Alone):
        def report(self, metrics, state):
            super().report(metrics, state)
            log(metrics)
            print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)

    with tracking(options) as log:
        result = train(options.run, Told(folder))
    (options.output / "metrics.json").write_text(json.dumps(result.metrics, indent=2) + "\n")
    export_encoder(result.encoder, options.output / "encoder")
    if result.reconstructions is not None:
        save_reconstructions(result.reconstructions, options.output / "reconstructions.png")
    print(f"encoder: {options.output / 'encoder'}")
    return 0


def tracking(options: TrainOptions) -> AbstractContextManager[Callable[[dict[str, float]], object]]:
    """Return what yields a function that logs an epoch's metrics."""
    if options.tracking_uri is None:
        return nullcontext(lambda metrics: None)
    from eqssl.tracking import track_run

    return track_run(options.tracking_uri, "train", options.run, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
