"""Probes of frozen features: ridge regression and classification in closed form, k nearest neighbours, and an MLP.

n training samples, N evaluated ones, p inputs, m outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.evaluation.features import Pairs
from eqssl.evaluation.predictions import LABEL, Prediction, factor_predictions, varying

BLOCK = 2048  # samples converted to float64 at a time
PENALTIES = torch.logspace(-5, 3, 17, dtype=torch.float64)  # per sample, of standardised inputs
NEIGHBOURS = 20
HIDDEN, EPOCHS, BATCH = 128, 15, 64
LR = 3e-3  # for 128 hidden units; inversely proportional to their number
PATIENCE = 3  # epochs without improvement after which the MLP's training ends


def moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the moments of inputs (n, p) and outputs (n, m), float64, converting a few samples at a time.

    Returns:
        Means of x and y, (p,) and (m,); centred sums of products xx, xy and yy, (p, p), (p, m) and (m,).
    """
    mean_x, mean_y = (torch.stack([block.double().sum(0) for block in t.split(BLOCK)]).sum(0) / len(t) for t in (x, y))
    xx, xy, yy = (mean_x.new_zeros(shape) for shape in ((x.shape[1], x.shape[1]), (x.shape[1], y.shape[1]), y.shape[1]))
    for block_x, block_y in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
        block_x, block_y = block_x.double() - mean_x, block_y.double() - mean_y
        xx += block_x.T @ block_x
        xy += block_x.T @ block_y
        yy += block_y.square().sum(0)
    return mean_x, mean_y, xx, xy, yy


class Ridge(NamedTuple):
    """A fitted regression.

    Args:
        weight, intercept: float64 (p, m) and (m,), for unstandardised inputs.
        penalty: float64 (m,), per sample; scikit-learn's alpha on standardised inputs is n times this.
    """

    weight: Tensor
    intercept: Tensor
    penalty: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Return float64 (N, m) for inputs (N, p)."""
        return torch.cat([block.double() @ self.weight + self.intercept for block in x.split(BLOCK)])


def fit_ridge(x: Tensor, y: Tensor, shared_penalty: bool = False) -> Ridge:
    """Return the ridge regression on standardised inputs.

    The penalty minimises the generalised cross-validation error (Golub, Heath and Wahba, Technometrics 1979).

    Args:
        x, y: (n, p) and (n, m). An input that does not vary is left out.
        shared_penalty: one penalty for all outputs, by the sum of their errors, as classes need; default: one each.
    """
    n, (mean_x, mean_y, xx, xy, yy) = len(x), moments(x, y)
    scale = (xx.diagonal() / n).clamp(min=0).sqrt()
    # A spread below float32's resolution is rounding error, which standardising would amplify to noise.
    scale = torch.where(scale > 1e-7 * mean_x.abs(), scale, torch.inf)
    spectrum, basis = torch.linalg.eigh(xx / scale[:, None] / scale / n)
    spectrum = spectrum.clamp(min=0)
    projected = basis.T @ (xy / scale[:, None]) / n
    explained = torch.where(spectrum > 1e-12, 1 / spectrum, 0)[:, None] * projected**2
    unexplained = (yy / n - explained.sum(0)).clamp(min=0)
    errors = []
    for penalty in PENALTIES:
        shrinkage = penalty / (spectrum + penalty)
        residual = unexplained + (shrinkage[:, None] ** 2 * explained).sum(0)
        degrees = 1 + (1 - shrinkage).sum()
        errors.append(residual / (1 - degrees / n) ** 2)
    error = torch.stack(errors)  # (penalties, m)
    if shared_penalty:
        error = error.sum(1, keepdim=True).expand_as(error)
    chosen = PENALTIES[error.argmin(0)]
    weight = basis @ (projected / (spectrum[:, None] + chosen)) / scale[:, None]
    return Ridge(weight, mean_y - mean_x @ weight, chosen)


def linear_predict(train: Tensor, train_labels: Tensor, features: Tensor) -> Tensor:
    """Return the classes, int64 (N,), with the largest outputs of a ridge regression to one-hot labels.

    Args:
        train, features: (n, p) and (N, p).
        train_labels: int64 (n,).

    Raises:
        ValueError: if all training images are of one class.
    """
    classes, which = train_labels.unique(return_inverse=True)  # class numbers may be large and few
    if len(classes) < 2:
        raise ValueError(
            f"the {len(train_labels)} images of the train split that a linear probe is fitted on are all of class "
            f"{int(train_labels[0])}; it needs two or more: take more --evaluate.train-images, or data whose train "
            "split has other classes"
        )
    one_hot = F.one_hot(which, len(classes)).float()
    return classes[fit_ridge(train, one_hot, shared_penalty=True).predict(features).argmax(1)]


def knn_predict(train: Tensor, train_labels: Tensor, features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Return the most frequent classes, int64 (N,), among the k training features with the largest cosine similarity.

    The lowest class wins a tie. If all training features are equal, all of them vote.

    Args:
        train, features: float32 (n, p) and (N, p).
        train_labels: int64 (n,).
        k: neighbours, each with one vote.
    """
    train = F.normalize(train, dim=1)
    k = len(train) if bool((train == train[0]).all()) else min(k, len(train))
    classes, which = train_labels.unique(return_inverse=True)  # class numbers may be large and few
    predicted = []
    for block in features.split(BLOCK // 2):
        nearest = (F.normalize(block, dim=1) @ train.T).topk(k).indices
        votes = torch.zeros(len(block), len(classes), dtype=torch.int32)
        votes.scatter_add_(1, which[nearest], torch.ones_like(nearest, dtype=torch.int32))
        predicted.append(classes[votes.argmax(1)])
    return torch.cat(predicted)


def mlp_predict(x: Tensor, y: Tensor, features: Tensor, hidden: int = HIDDEN, objects: Tensor | None = None) -> Tensor:
    """Return the predictions of an MLP with two hidden layers, from the epoch with the least validation error.

    A tenth of the objects is held out for validation. Inputs and outputs are standardised; Adam, one cosine decay.
    Torch's own random state is not altered.

    Args:
        x, y: (n, p) and (n, m) of one factor, since factors differ in how long they take to fit.
        features: (N, p).
        hidden: units of each hidden layer.
        objects: int64 (n,), the samples' objects; default: every sample is an object.

    Returns:
        float32 (N, m).
    """
    mean_x, std_x, mean_y = x.mean(0), x.std(0), y.mean(0)
    # A spread below float32's resolution is rounding error: such an input becomes 0, and such an output its mean.
    std_x = torch.where(std_x > 1e-7 * mean_x.abs(), std_x, torch.inf)
    std_y = torch.where(varying(y), y.std(0), torch.inf)
    x, y, features = (x - mean_x) / std_x, (y - mean_y) / std_y, (features - mean_x) / std_x
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        validation, fitted = split_by_object(torch.randperm(len(x)), objects)
        layers = [nn.Linear(x.shape[1], hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        model = nn.Sequential(*layers, nn.Linear(hidden, y.shape[1]))
        optimizer = torch.optim.Adam(model.parameters(), LR * HIDDEN / hidden, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        best_error, best_epoch, predicted = float("inf"), 0, torch.full((len(features), y.shape[1]), torch.nan)
        for epoch in range(EPOCHS):
            for rows in fitted[torch.randperm(len(fitted))].split(BATCH):
                optimizer.zero_grad()
                F.mse_loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                error = float(F.mse_loss(model(x[validation]), y[validation]))
                if error < best_error:
                    best_error, best_epoch, predicted = error, epoch, model(features)
            if epoch - best_epoch >= PATIENCE:
                break
    return torch.where(std_y.isinf(), mean_y, predicted * std_y + mean_y)


def split_by_object(order: Tensor, objects: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the samples for validation, from the first tenth of the objects, and those for fitting, both in order.

    If there is only one object, every sample counts as one.
    """
    if objects is None or bool((objects == objects[:1]).all()):
        objects = torch.arange(len(order))
    names, first = np.unique(objects[order], return_index=True)
    chosen = names[first.argsort()[: max(1, len(names) // 10)]]
    is_chosen = torch.isin(objects[order], torch.from_numpy(chosen))
    return order[is_chosen], order[~is_chosen]


def class_predictions(
    metric: str, train: Pairs, eval_pairs: Pairs, predict: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[Prediction]:
    """Return the classes of the first views by `linear_predict` or `knn_predict`; empty without labels."""
    if train.labels is None or eval_pairs.labels is None:
        return []
    predicted = predict(train.first, train.labels, eval_pairs.first)
    return factor_predictions(metric, eval_pairs.ids, {LABEL: eval_pairs.labels[:, None]}, predicted[:, None])


def ridge_predictions(metric: str, train: Pairs, eval_pairs: Pairs) -> list[Prediction]:
    """Return the predictions of all targets of the eval pairs by ridge regression."""
    predicted = fit_ridge(train.inputs, train.target).predict(eval_pairs.inputs)
    return factor_predictions(metric, eval_pairs.ids, eval_pairs.targets, predicted)


def mlp_predictions(metric: str, train: Pairs, eval_pairs: Pairs, hidden: int = HIDDEN) -> list[Prediction]:
    """Return the predictions of all targets of the eval pairs by MLPs, one for each factor."""
    inputs, eval_inputs = train.inputs, eval_pairs.inputs
    predicted = [mlp_predict(inputs, target, eval_inputs, hidden, train.objects) for target in train.targets.values()]
    return factor_predictions(metric, eval_pairs.ids, eval_pairs.targets, torch.cat(predicted, dim=1))
