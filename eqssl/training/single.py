"""One training run in this process, from Python or the command line, with its printed lines, tracking and files."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset
from eqssl.files import as_path, finite, make_folder, write_json
from eqssl.images import save_reconstructions
from eqssl.metrics import METRICS
from eqssl.models.export import export_encoder
from eqssl.names import check_names
from eqssl.training import checkpoint, loop
from eqssl.training.context import LoggingContext


def train(
    config: RunConfig | None = None,
    *,
    dataset: Dataset | None = None,
    progress: bool = False,
    output: str | None = None,
    tracking_uri: str | None = None,
    resume: bool = False,
    handle_signals: bool = False,
) -> loop.Result:
    """Train, evaluate and return an encoder, without Ray.

    Args:
        config: the run; default: the default of every option.
        dataset: already loaded data of `config.data`.
        progress: whether to print a line per epoch: losses, seconds, and metrics where it was evaluated.
        output: folder, or its URI, for checkpoint, metrics.json, reconstructions.png and the encoder; default: none.
        tracking_uri: MLflow's store of the run, sqlite:///FILE or http(s)://SERVER; default: none.
        resume: continue from the checkpoint in the output folder.
        handle_signals: whether SIGINT and SIGTERM end the run with its state saved; only in the main thread.

    Raises:
        ValueError: for options that cannot work, before the first step.
        FloatingPointError: for a loss that is not finite, naming the epoch.
        Interrupted: after a handled signal.
    """
    config = config or RunConfig()
    check_names(config)
    loggers: list[Callable[[dict[str, float]], object]] = []
    with ExitStack() as stack:
        folder = None if output is None else _own_folder(output, resume, stack)
        if tracking_uri:
            from eqssl.tracking.run import track_run

            loggers.append(stack.enter_context(track_run(tracking_uri, "train", config, resume=resume)))
        if progress:
            loggers.append(lambda metrics: print(epoch_line(metrics, config.train.epochs), flush=True))
        context = LoggingContext(folder / "checkpoint" if folder else None, *loggers)
        if handle_signals:
            stack.enter_context(context.signals)
        result = loop.train(config, context, dataset)
        if folder:
            write_json(folder / "metrics.json", finite(result.metrics))
            export_encoder(result.encoder, folder / "encoder", result.method)
            if result.reconstructions is not None:
                save_reconstructions(result.reconstructions, folder / "reconstructions.png")
    return result


def _own_folder(output: str, resume: bool, stack: ExitStack) -> Path:
    """Return the output folder, locked against other processes of this machine until the stack closes.

    Raises:
        ValueError: for a folder that another process writes to, or that holds a run unless it is resumed.
    """
    folder = as_path(output, "--output")
    make_folder(folder, "--output")
    if isinstance(folder, Path):
        try:
            stack.enter_context(FileLock(folder / ".lock", timeout=0))
        except Timeout:
            raise ValueError(
                f"--output: another process is training in {folder}; wait for its end or choose another --output"
            ) from None
    if checkpoint.exists(folder / "checkpoint") and not resume:
        raise ValueError(f"--output: {folder} holds a run; continue it with --resume or choose another --output")
    return folder


def epoch_line(metrics: dict[str, float], epochs: int) -> str:
    """Return a line about an epoch: losses, the main metrics where it was evaluated, seconds, and those left."""
    epoch, train_s = int(metrics["epoch"]), metrics["train_s"]
    known = {name: METRICS[name] for name in metrics if name in METRICS}
    shown = [name for name, metric in known.items() if metric.in_main_table or metric.level == "train"]
    parts = [f"{METRICS[name].label} {metrics[name]:.4g}" for name in shown if "/" not in name]
    left = f", about {train_s * (epochs - epoch):.0f} s left" if epoch < epochs else ""
    return f"epoch {epoch}/{epochs}: {', '.join([*parts, f'{train_s:.1f} s'])}{left}"
