"""The console command `eqssl`, and `python -m eqssl`: train, evaluate, report, convert, bench."""

import importlib
import sys
from collections.abc import Sequence

from eqssl.files import replace_unknown_letters
from eqssl.renames import did_you_mean
from eqssl.signals import Interrupted, SignalHandler, terminate

COMMANDS = {  # name: module with its `main`, and one line for the help
    "train": ("eqssl.training.command", "train one encoder, without Ray"),
    "evaluate": ("eqssl.evaluation.command", "evaluate any encoder under the protocol of the studies"),
    "report": ("eqssl.report.command", "write the report of a study, finished or running"),
    "convert": ("eqssl.data.folders", "convert an image folder or a torchvision data set to Parquet"),
    "bench": ("eqssl.bench.command", "measure speed and memory, as ratios"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command's name and its options; default: those of the process.

    Returns:
        Exit code of the command; 2 for an unknown one, 130 after SIGINT, 143 after SIGTERM.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    replace_unknown_letters()
    if name in COMMANDS:
        try:
            with SignalHandler(terminate):
                return importlib.import_module(COMMANDS[name][0]).main(rest)
        except OSError as error:  # such as for a full disk, with the name of the file
            print(f"error: {error}", file=sys.stderr)
            return 1
        except Interrupted as stop:
            print(f"stopped by {stop}", file=sys.stderr)
            return stop.code
    usage = "usage: eqssl COMMAND [OPTIONS]\n\n" + "".join(f"  {key:10}{text}\n" for key, (_, text) in COMMANDS.items())
    if name in ("-h", "--help"):
        print(usage + "\n`eqssl COMMAND --help` lists the options of a command.")
        return 0
    near = did_you_mean(name, COMMANDS)
    print(f"error: unknown command {name!r}; allowed: {', '.join(COMMANDS)}{near}", file=sys.stderr)
    return 2
