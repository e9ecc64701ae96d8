"""`eqssl bench`: print one table of ratios and save it."""

import dataclasses
import importlib
import sys

import tyro

from eqssl.bench.options import Options
from eqssl.training.memory import keep_freed


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for options that cannot work."""
    options = tyro.cli(Options, args=arguments, description=Options.__doc__, prog="eqssl bench")
    try:
        bench(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def bench(options: Options) -> None:
    """Measure the parts, print the table and save it.

    Raises:
        ValueError: for an encoder, a method or a size that cannot be had.
    """
    keep_freed()  # as in a training; here for the other libraries as well
    import torch

    from eqssl.bench.timing import machine, markdown, save

    if options.threads:
        torch.set_num_threads(options.threads)
    rows, about, chosen = [], machine(options.precision), {k: str(v) for k, v in dataclasses.asdict(options).items()}
    for part in options.parts:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"eqssl.bench.{part}").measure(options)
        save(options.output, about, chosen, rows)  # results stay if a later part fails
    print(markdown(about, chosen, rows))
