"""`python -m eqssl.train`: one training run from the command line, without Ray."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eqssl.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train and evaluate one encoder."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()
    """What is trained."""
    output: Path = Path("results/train")
    """Folder for checkpoint, metrics.json, reconstructions.png and the encoder."""
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
    # torch takes 5 s to import: not before the options are known to be good.
    from eqssl.export import export_encoder
    from eqssl.report.figures import save_reconstructions
    from eqssl.training import Alone, train

    class Printing(Alone):
        def report(self, metrics, state):
            super().report(metrics, state)
            print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)

    result = train(options.run, Printing(folder))
    (options.output / "metrics.json").write_text(json.dumps(result.metrics, indent=2) + "\n")
    export_encoder(result.encoder, options.output / "encoder")
    if result.reconstructions is not None:
        save_reconstructions(result.reconstructions, options.output / "reconstructions.png")
    print(f"encoder: {options.output / 'encoder'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
