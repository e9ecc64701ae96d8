"""`eqssl evaluate MODEL`: any encoder under the protocols of this package."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from eqssl.config import DataConfig, EvaluateConfig, RunConfig, check_effect, options_in, parsing
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.files import as_path, make_folder, write_atomically
from eqssl.models.pretrained import is_folder, model_of
from eqssl.names import ENCODERS, OWN_ENCODER, check_encoder, check_names

if TYPE_CHECKING:
    from torch import nn

    from eqssl.data.dataset import Dataset
    from eqssl.evaluation.predictions import Prediction

ROWS = ("pixels", "constant")  # models without weights
Protocol = Literal["eqssl", "3diebench", "augself", "finetune"]


@dataclass(frozen=True)
class Command:
    """Evaluate a frozen encoder: kNN and linear accuracy, R2 per factor, invariance, equivariance, collapse."""

    model: Annotated[str, tyro.conf.Positional]
    """Folder of an exported encoder or of timm's, or its URI; a timm name, resnet_tiny, torchvision/NAME, pixels, or
    constant (the floor)."""
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    protocols: tuple[Protocol, ...] = ("eqssl",)
    """Protocols: eqssl, the metrics above; 3diebench, its classification, regression and retrieval (3die/...);
    augself, how crop, colour, blur and flip of two augmented views differ (augself/...); finetune, accuracy of the
    whole encoder trained with 1 and 10 percent of the labels (finetune_1pct/...)."""
    pretrained: bool = True
    """Published weights for a model given by name; --no-pretrained: untrained, the row `random` of a table, as
    resnet_tiny is always."""
    output: str | None = None
    """JSON file, or its URI, to write."""
    predictions: str | None = None
    """Parquet file, or its URI, to write, with the predictions of every probe for every eval image."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for options that cannot work."""
    try:
        given = options_in(sys.argv[1:] if arguments is None else arguments)
        with parsing():
            command = tyro.cli(Command, args=arguments, prog="eqssl evaluate")
        run_config = RunConfig(data=command.data, evaluate=command.evaluate)
        check_effect(run_config, given)
        check_names(run_config)
        if is_folder(command.model):
            model_of(command.model)
        elif command.model not in ROWS:
            check_encoder(command.model, "MODEL", ("the folder of an encoder", *ROWS))
        for option, file in (("--output", command.output), ("--predictions", command.predictions)):
            if file is not None:
                make_folder(as_path(file, option).parent, option)
                if as_path(file).is_dir():
                    raise ValueError(f"{option} is {file!r}, a folder; allowed: a file")
        if command.output and command.predictions:
            output, predictions = (as_path(file) for file in (command.output, command.predictions))
            if output.resolve() == predictions.resolve():
                raise ValueError(f"--output and --predictions are both {command.output!r}; allowed: two files")
        result = run(command)
        if command.output:
            text = json.dumps(result, indent=2) + "\n"
            write_atomically(as_path(command.output), lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    return 0


def run(command: Command) -> dict[str, Any]:
    """Return the metrics and everything needed to compare them.

    Raises:
        ValueError: if the model or the data are not found, or do not fit each other.
    """
    from eqssl.data import load_data
    from eqssl.evaluation.encoders import load_model
    from eqssl.evaluation.predictions import save_predictions
    from eqssl.evaluation.transforms import digest
    from eqssl.models.backbones import check_published

    unpublished = command.model in (*ROWS, OWN_ENCODER, *ENCODERS) or is_folder(command.model)
    pretrained = command.pretrained and not unpublished
    if pretrained:
        check_published(command.model)
    dataset = load_data(command.data)
    _check_protocols(command.protocols, dataset)
    encoder = load_model(command.model, dataset, pretrained)
    metrics, predictions = _evaluate(command, encoder, dataset)
    if command.predictions:
        save_predictions(predictions, as_path(command.predictions))
    return {
        "model": command.model,
        "pretrained": pretrained,
        "changes": getattr(encoder, "changes", []),
        "protocols": command.protocols,
        "protocol": PROTOCOL_VERSION,
        "transforms": digest(),
        "data": {"name": dataset.name, "digest": dataset.digest},
        "evaluate": dataclasses.asdict(command.evaluate),
        "metrics": metrics,
    }


def _check_protocols(protocols: tuple[str, ...], dataset: "Dataset") -> None:
    absent = {"3diebench": not dataset.paired, "finetune": dataset.train.labels is None}
    allowed = [name for name in get_args(Protocol) if not absent.get(name)]
    for name in protocols:
        if name not in allowed:
            raise ValueError(
                f"--protocols has {name}; allowed for {dataset.name}: {', '.join(allowed)} "
                "(3diebench needs pairs of one object, finetune needs labels)"
            )


def _evaluate(
    command: Command, encoder: "nn.Module", dataset: "Dataset"
) -> tuple[dict[str, float], "list[Prediction]"]:
    """Return the metrics of all protocols, and the predictions of their probes."""
    import torch

    from eqssl.evaluation.augself import augself_predictions
    from eqssl.evaluation.finetune import finetune_predictions
    from eqssl.evaluation.predictions import metrics_of
    from eqssl.evaluation.protocol import evaluate
    from eqssl.evaluation.threediebench import threediebench_predictions
    from eqssl.models.export import load_predictor

    encoder.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    metrics: dict[str, float] = {}
    predictions: list[Prediction] = []
    for name in command.protocols:
        if name == "eqssl":
            metrics |= evaluate(encoder, dataset, config=command.evaluate, predictions=predictions)
            continue
        if name == "3diebench":
            ours = is_folder(command.model) and not model_of(command.model)
            predictor = load_predictor(command.model) if ours else None
            found = threediebench_predictions(encoder, dataset, command.evaluate, predictor)
        elif name == "augself":
            found = augself_predictions(encoder, dataset, command.evaluate)
        else:
            found = finetune_predictions(encoder, dataset, command.evaluate)
        metrics |= metrics_of(found)
        predictions += found
    return metrics, predictions


def show(result: dict[str, Any]) -> None:
    """Print the metrics as a table with one column per part of the features."""
    from rich.console import Console
    from rich.table import Table

    metrics = result["metrics"]
    parts = {"all": "", "invariant": "inv/", "equivariant": "equi/"}
    parts = {title: prefix for title, prefix in parts.items() if any(name.startswith(prefix) for name in metrics)}
    title = f"{result['model']} on {result['data']['name']} ({result['evaluate']['split']})"
    caption = "; ".join([f"protocol {result['protocol']}, transforms {result['transforms']}", *result["changes"]])
    table = Table("metric", *parts, title=title, caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in metrics:
        if not name.startswith(("inv/", "equi/")):
            cells = (metrics.get(prefix + name) for prefix in parts.values())
            table.add_row(name, *("" if value is None else f"{value:.4f}" for value in cells))
    Console().print(table)
