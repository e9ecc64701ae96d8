"""What probes say of held-out examples: figures are made of it, and the file it is saved in makes them again.

N examples, k components of a factor.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eqssl.evaluation.r2 import auroc, factor_figures
from eqssl.evaluation.retrieval import pose_error, rank_figures
from eqssl.files import on_disk, write_atomically

LABEL, ALL = "label", "all"  # what is asked for where it is no factor: the class, and all factors together
PROTOCOL, PART = "eqssl", "all"  # whose figures have no prefix
KEYS = ("protocol", "part", "figure", "factor")


@dataclass(frozen=True)
class Prediction:
    """What one probe says of held-out examples about one factor.

    Args:
        figure: how it is scored, and called: a name that ends in `r2` or `rank`, has a key of `MEASURES` among its
            words, or any other for an accuracy.
        factor: what is asked for, or `LABEL` or `ALL`.
        examples: int64 (N,), identities of the images; of a pair the first one's.
        target, predicted: float32 (N, k); of a figure that weighs variances, shares of the total and of what is left;
            of ranks, the first of each and itself.
        protocol, part: where it belongs; part is all, inv or equi.
    """

    figure: str
    factor: str
    examples: Tensor
    target: Tensor
    predicted: Tensor
    protocol: str = PROTOCOL
    part: str = PART


def predictions_of(
    figure: str, examples: Tensor, targets: dict[str, Tensor], predicted: Tensor, protocol: str = PROTOCOL
) -> list[Prediction]:
    """Return a probe's predictions, one a factor.

    Args:
        figure, examples, protocol: as `Prediction` has them.
        targets: factor -> (N, k).
        predicted: (N, sum of k), in the same order.
    """
    columns = predicted.float().split([target.shape[1] for target in targets.values()], dim=1)
    return [
        Prediction(figure, factor, examples, target.float(), column, protocol)
        for (factor, target), column in zip(targets.items(), columns, strict=True)
    ]


def class_prediction(
    figure: str, examples: Tensor, labels: Tensor, predicted: Tensor, protocol: str = PROTOCOL
) -> list[Prediction]:
    """Return what a classifier says, labels and predicted classes being int64 (N,)."""
    return predictions_of(figure, examples, {LABEL: labels[:, None]}, predicted[:, None], protocol)


def prefix(protocol: str = PROTOCOL, part: str = PART) -> str:
    """Return what the figures' names begin with."""
    return ("" if part == PART else f"{part}/") + ("" if protocol == PROTOCOL else f"{protocol}/")


def figures_of(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Return figure -> value of everything that the predictions were scored by, means over factors included."""
    groups: dict[tuple[str, str, str], dict[str, Prediction]] = defaultdict(dict)
    for prediction in predictions:
        groups[prediction.protocol, prediction.part, prediction.figure][prediction.factor] = prediction
    return {
        prefix(protocol, part) + name: value
        for (protocol, part, figure), asked in groups.items()
        for name, value in _score(figure, asked).items()
    }


def _score(figure: str, asked: dict[str, Prediction]) -> dict[str, float]:
    targets = {factor: prediction.target for factor, prediction in asked.items()}
    predicted = {factor: prediction.predicted for factor, prediction in asked.items()}
    if figure.endswith("r2"):
        head = figure.removesuffix("r2")
        return {head + name: value for name, value in factor_figures(targets, predicted).items()}
    if figure.endswith("rank"):
        return {figure.removesuffix("rank") + name: value for name, value in rank_figures(predicted[ALL]).items()}
    measure = next((MEASURES[word] for word in figure.split("_") if word in MEASURES), _accuracy)
    return {
        figure if factor in (LABEL, ALL) else f"{figure}/{factor}": measure(target, predicted[factor])
        for factor, target in targets.items()
    }


def _accuracy(target: Tensor, predicted: Tensor) -> float:
    return float((target == predicted).double().mean())


def _explained(total: Tensor, left: Tensor) -> float:
    """Return by how much of the total the second column of what is left is smaller than the first."""
    (total, _), (blind, seeing) = total.double().sum(0), left.double().sum(0)
    return float((blind - seeing) / total) if total > 0 else 0.0


def _kept(total: Tensor, left: Tensor) -> float:
    """Return the share of the total that is not left; 1 where there is none."""
    return float(1 - left.double().sum() / total.double().sum()) if total.any() else 1.0


MEASURES = {"auroc": lambda target, predicted: auroc(target[:, 0], predicted[:, 0]), "equivariance": _explained,
            "invariance": _kept, "pre": pose_error}  # fmt: skip


def save_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a Parquet file: one row for every example and component of what every probe was asked.

    Its columns are those of `Prediction`: protocol, part, figure, factor, component (0 to k - 1), example, target,
    predicted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for said in predictions:
        examples, components = said.target.shape
        values = {
            "component": torch.arange(components, dtype=torch.int8).repeat(examples),
            "example": said.examples.repeat_interleave(components),
            "target": said.target.flatten(),
            "predicted": said.predicted.flatten(),
        }
        keys = {key: pa.repeat(getattr(said, key), examples * components) for key in KEYS}
        tables.append(pa.table(keys | {name: value.numpy() for name, value in values.items()}))
    table = pa.concat_tables(tables)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def load_predictions(path: Path) -> list[Prediction]:
    """Return what `save_predictions` wrote; `figures_of` it are the figures."""
    import pyarrow.parquet as pq

    values = ("component", "example", "target", "predicted")
    with on_disk(path) as local:
        grouped = pq.read_table(local).group_by(list(KEYS), use_threads=False)
    groups = grouped.aggregate([(name, "list") for name in values])
    said = []
    for row in range(len(groups)):
        component, example, target, predicted = (
            torch.from_numpy(groups[f"{name}_list"][row].values.to_numpy().copy()) for name in values
        )
        shape = (-1, int(component.max()) + 1)
        keys = {key: groups[key][row].as_py() for key in KEYS}
        columns = {"target": target.view(shape), "predicted": predicted.view(shape)}
        said.append(Prediction(examples=example.view(shape)[:, 0], **columns, **keys))
    return said
