"""Predictions of probes for held-out examples, their metrics, and files of both.

N examples, k components of a factor.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eqssl.evaluation.r2 import MIN_EXAMPLES, auroc, factor_figures, pose_deg, varying
from eqssl.evaluation.retrieval import pose_error, rank_figures
from eqssl.files import on_disk, write_atomically

LABEL, ALL = "label", "all"  # what is asked for where it is no factor: the class, and all factors together
PROTOCOL, PART = "eqssl", "all"  # whose figures have no prefix
KEYS = ("protocol", "part", "figure", "factor")


@dataclass(frozen=True)
class Prediction:
    """The predictions of one probe for held-out examples about one factor.

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
        for name, value in _score(protocol, figure, asked).items()
    }


def _score(protocol: str, figure: str, asked: dict[str, Prediction]) -> dict[str, float]:
    targets = {factor: prediction.target for factor, prediction in asked.items()}
    predicted = {factor: prediction.predicted for factor, prediction in asked.items()}
    if figure.endswith("r2"):
        head = figure.removesuffix("r2")
        pooled = protocol != PROTOCOL  # SIE's definition belongs to others' protocols
        return {head + name: value for name, value in factor_figures(targets, predicted, pooled).items()}
    if figure.endswith("rank"):
        return {figure.removesuffix("rank") + name: value for name, value in rank_figures(predicted[ALL]).items()}
    measure = next((MEASURES[word] for word in figure.split("_") if word in MEASURES), _accuracy)
    return {
        figure if factor in (LABEL, ALL) else f"{figure}/{factor}": measure(target, predicted[factor])
        for factor, target in targets.items()
        if _has_meaning(measure, target)
    }


def _has_meaning(measure: Callable[[Tensor, Tensor], float], target: Tensor) -> bool:
    """Return whether there are enough examples: of both classes for AUROC, three for a share of variance."""
    if measure is _auroc:
        return len(target.unique()) == 2
    return measure not in (_explained, _kept) or len(target) >= MIN_EXAMPLES


def _auroc(target: Tensor, predicted: Tensor) -> float:
    return auroc(target[:, 0], predicted[:, 0])


def _accuracy(target: Tensor, predicted: Tensor) -> float:
    return float((target == predicted).double().mean())


def _explained(total: Tensor, left: Tensor) -> float:
    """Return by how much of the total the second column of what is left is smaller than the first."""
    (total, _), (blind, seeing) = total.double().sum(0), left.double().sum(0)
    return float((blind - seeing) / total) if total > 0 else 0.0


def _kept(total: Tensor, left: Tensor) -> float:
    """Return the share of the total that is not left; 1 where there is none."""
    return float(1 - left.double().sum() / total.double().sum()) if total.any() else 1.0


MEASURES = {"auroc": _auroc, "equivariance": _explained, "invariance": _kept, "pose": pose_deg, "pre": pose_error}


def save_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a Parquet file: a row for every probe, held-out example and component of the factor.

    Its columns are those of `Prediction`: protocol, part, figure, factor, component (0 to k - 1), example, target,
    predicted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for one in predictions:
        examples, components = one.target.shape
        values = {
            "component": torch.arange(components, dtype=torch.int8).repeat(examples),
            "example": one.examples.repeat_interleave(components),
            "target": one.target.flatten(),
            "predicted": one.predicted.flatten(),
        }
        keys = {key: pa.repeat(getattr(one, key), examples * components) for key in KEYS}
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
    predictions = []
    for row in range(len(groups)):
        component, example, target, predicted = (
            torch.from_numpy(groups[f"{name}_list"][row].values.to_numpy().copy()) for name in values
        )
        shape = (-1, int(component.max()) + 1)
        keys = {key: groups[key][row].as_py() for key in KEYS}
        columns = {"target": target.view(shape), "predicted": predicted.view(shape)}
        predictions.append(Prediction(examples=example.view(shape)[:, 0], **columns, **keys))
    return predictions


Contributions = dict[str, tuple[Tensor, Tensor, Tensor]]  # metric -> units, contributions, weights


def unit_contributions(predictions: Iterable[Prediction], objects: Mapping[int, int] | None = None) -> Contributions:
    """Return how much every held-out unit contributes to a metric, for the sampling variance of held-out units.

    A metric that is a ratio of sums, 1 - left / total, is linearised (delta method): the contribution of an example is
    the metric plus the example's influence on it, so that weights do not depend on the encoder and the variance of the
    contributions is that of the metric.

    Args:
        predictions: of one evaluation.
        objects: example -> object, where units are objects with all their views; default: a unit is an image.

    Returns:
        Metric -> unit identities int64 (U,), ascending; contributions float32 (U,), whose weighted mean is the metric;
        weights float32 (U,), the unit's number of examples. The metrics are those of all features among `knn`,
        `linear`, R2 and equivariance of every factor, their means, `invariance`, and `inv/invariance`.
    """
    per_example: dict[str, tuple[Tensor, Tensor]] = {}
    r2: dict[str, dict[str, tuple[Tensor, Tensor]]] = {"r2": {}, "mlp_r2": {}}
    for one in predictions:
        if len(one.target) < MIN_EXAMPLES or one.protocol != PROTOCOL:
            continue
        if one.part != PART and (one.part, one.figure) != ("inv", "invariance"):
            continue
        if one.figure in r2 and varying(one.target).any():
            r2[one.figure][one.factor] = one.examples, _r2_influence(one)
        elif one.figure in INFLUENCES:
            name = one.figure if one.factor in (LABEL, ALL) else f"{one.figure}/{one.factor}"
            per_example[prefix(part=one.part) + name] = one.examples, INFLUENCES[one.figure](one)
    for figure, of_factors in r2.items():
        per_example |= {f"{figure}/{factor}": value for factor, value in of_factors.items()}
        if of_factors:
            examples = next(iter(of_factors.values()))[0]
            influences = [influence for _, influence in of_factors.values()]
            per_example[f"{figure}_mean"] = examples, torch.stack(influences).mean(0)
    return {metric: _by_unit(*value, objects) for metric, value in per_example.items()}


def _by_unit(examples: Tensor, values: Tensor, objects: Mapping[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
    if objects is not None:
        examples = torch.tensor([objects[example] for example in examples.tolist()], dtype=torch.int64)
    units, which = examples.unique(return_inverse=True)
    weight = torch.zeros(len(units), dtype=torch.float64).index_add(0, which, torch.ones_like(values))
    total = torch.zeros(len(units), dtype=torch.float64).index_add(0, which, values)
    return units, (total / weight).float(), weight.float()


def _ratio_influence(part: Tensor, whole: Tensor) -> Tensor:
    """Return contributions (N,) whose mean is sum(part) / sum(whole), both (N,), to first order in the sample."""
    mean = whole.mean()
    ratio = part.mean() / mean
    return ratio + (part - ratio * whole) / mean


def _r2_influence(one: Prediction) -> Tensor:
    varies = varying(one.target)
    target, predicted = one.target[:, varies].double(), one.predicted[:, varies].double()
    total, left = (target - target.mean(0)).square(), (target - predicted).square()
    per_component = [_ratio_influence(t - e, t) for t, e in zip(total.unbind(1), left.unbind(1), strict=True)]
    return torch.stack(per_component).mean(0)


def _accuracy_influence(one: Prediction) -> Tensor:
    return (one.target == one.predicted)[:, 0].double()


def _equivariance_influence(one: Prediction) -> Tensor:
    total, (blind, seeing) = one.target[:, 0].double(), one.predicted.double().unbind(1)
    return _ratio_influence(blind - seeing, total) if total.any() else torch.zeros_like(total)


def _invariance_influence(one: Prediction) -> Tensor:
    total, within = one.target[:, 0].double(), one.predicted[:, 0].double()
    return _ratio_influence(total - within, total) if total.any() else torch.ones_like(total)


INFLUENCES = {"knn": _accuracy_influence, "linear": _accuracy_influence, "equivariance": _equivariance_influence,
              "invariance": _invariance_influence}  # fmt: skip


def save_contributions(predictions: Iterable[Prediction], path: Path, objects: Mapping[int, int] | None = None) -> None:
    """Write the `unit_contributions` of an evaluation as a Parquet file: metric, unit, value, weight.

    Args:
        predictions, objects: as `unit_contributions` takes them.
        path: local or in a bucket.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"metric": pa.dictionary(pa.int8(), pa.string()), "unit": pa.int64(), "value": pa.float32(),
                        "weight": pa.float32()})  # fmt: skip
    tables = [schema.empty_table()]
    for metric, (units, values, weights) in unit_contributions(predictions, objects).items():
        names = pa.DictionaryArray.from_arrays(pa.array([0] * len(units), pa.int8()), [metric])
        columns = [names, units.numpy(), values.numpy(), weights.numpy()]
        tables.append(pa.table(columns, schema=schema))
    table = pa.concat_tables(tables).unify_dictionaries()
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def load_contributions(path: Path) -> Contributions:
    """Return what `save_contributions` wrote, as `unit_contributions` returns it."""
    import pyarrow.parquet as pq

    with on_disk(path) as local:
        table = pq.read_table(local)
    metrics = table["metric"].to_numpy()
    columns = [table[name].to_numpy() for name in ("unit", "value", "weight")]
    return {
        metric: tuple(torch.from_numpy(column[metrics == metric].copy()) for column in columns)
        for metric in dict.fromkeys(metrics.tolist())
    }
