"""Ridge regression in closed form, from moments alone, so that parts of the features share one pass over the data.

n samples, p inputs, m outputs; float64 throughout.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2048  # samples that are in float64 at a time
PENALTIES = torch.logspace(-5, 3, 17, dtype=torch.float64)  # per sample, of standardised inputs


@dataclass(frozen=True)
class Moments:
    """What a ridge needs to know of its data.

    Args:
        n: samples.
        mean_x, mean_y: (p,) and (m,).
        xx, xy, yy: centred sums of products, (p, p), (p, m) and (m,).
    """

    n: int
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def select(self, columns: Tensor, outputs: slice = slice(None)) -> "Moments":
        """Return the moments of some of the inputs, by index (q,), and of some of the outputs."""
        xx, xy = self.xx[columns][:, columns], self.xy[columns][:, outputs]
        return Moments(self.n, self.mean_x[columns], self.mean_y[outputs], xx, xy, self.yy[outputs])


@dataclass(frozen=True)
class Ridge:
    """A fitted regression.

    Args:
        weight, intercept: (p, m) and (m,), for inputs as they are.
        penalty: (m,), chosen for each output, per sample; sklearn's alpha is n times this, on standardised inputs.
    """

    weight: Tensor
    intercept: Tensor
    penalty: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Return float64 (N, m) for inputs (N, p)."""
        return torch.cat([block.double() @ self.weight + self.intercept for block in x.split(BLOCK)])


def moments(x: Tensor, y: Tensor) -> Moments:
    """Return the moments of inputs (n, p) and outputs (n, m)."""
    mean_x, mean_y = (sum(part.double().sum(0) for part in t.split(BLOCK)) / len(t) for t in (x, y))
    xx, xy, yy = 0, 0, 0
    for part_x, part_y in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
        part_x, part_y = part_x.double() - mean_x, part_y.double() - mean_y
        xx, xy, yy = xx + part_x.T @ part_x, xy + part_x.T @ part_y, yy + part_y.square().sum(0)
    return Moments(len(x), mean_x, mean_y, xx, xy, yy)


def fit(data: Moments, shared_penalty: bool = False) -> Ridge:
    """Return the ridge on standardised inputs whose penalty, one an output, has the least generalised
    cross-validation error (Golub, Heath and Wahba, Technometrics 1979).

    Args:
        data: of the training samples. An input that does not vary is left out.
        shared_penalty: one penalty for all outputs, by the sum of their errors, as a classifier's outputs need.
    """
    n = data.n
    scale = (data.xx.diagonal() / n).clamp(min=0).sqrt()
    # Below float32's resolution a spread is rounding, and standardising would make noise of it.
    scale = torch.where(scale > 1e-7 * data.mean_x.abs(), scale, torch.inf)
    spectrum, basis = torch.linalg.eigh(data.xx / scale[:, None] / scale / n)
    spectrum = spectrum.clamp(min=0)
    projected = basis.T @ (data.xy / scale[:, None]) / n
    explained = torch.where(spectrum > 1e-12, 1 / spectrum, 0)[:, None] * projected**2
    unexplained = (data.yy / n - explained.sum(0)).clamp(min=0)
    errors = []
    for penalty in PENALTIES:
        shrinkage = penalty / (spectrum + penalty)
        residual = unexplained + (shrinkage[:, None] ** 2 * explained).sum(0)
        degrees = 1 + (1 - shrinkage).sum()
        errors.append(residual / (1 - degrees / n) ** 2)
        if shared_penalty:
            errors[-1] = errors[-1].sum().expand_as(errors[-1])
    penalty = PENALTIES[torch.stack(errors).argmin(0)]
    weight = basis @ (projected / (spectrum[:, None] + penalty)) / scale[:, None]
    return Ridge(weight, data.mean_y - data.mean_x @ weight, penalty)
