"""Whether features move predictably with the transform: z2 from z1 and the transform's parameters theta.

N pairs, D features, k components of theta.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqssl.evaluation.pairs import Pairs
from eqssl.evaluation.predictions import ALL, Prediction
from eqssl.evaluation.r2 import varying
from eqssl.evaluation.ridge import Ridge, fit, moments
from eqssl.evaluation.transforms import SEED
from eqssl.random import permutation

COMPONENTS = 64
RESOLUTION = 1e-13  # a share of the squared features below which a variance is float32's rounding


@dataclass(frozen=True)
class Motion:
    """A ridge from [z1, theta, z1 x theta] to z2.

    Args:
        mean, basis: (D,) and (D, up to 64), of the principal components that stand for z1.
        theta_mean, theta_std: (k,), of the training pairs; infinite is the deviation of what does not vary there.
        ridge: the regression.
    """

    mean: Tensor
    basis: Tensor
    theta_mean: Tensor
    theta_std: Tensor
    ridge: Ridge

    def predict(self, first: Tensor, theta: Tensor) -> Tensor:
        """Return z2, float64 (N, D), from z1 (N, D) and theta (N, k)."""
        return self.ridge.predict(self._inputs(first, theta))

    def _inputs(self, first: Tensor, theta: Tensor) -> Tensor:
        return _inputs((first.double() - self.mean) @ self.basis, (theta.double() - self.theta_mean) / self.theta_std)


def fit_motion(first: Tensor, theta: Tensor, second: Tensor) -> Motion:
    """Return the regression of training pairs.

    Args:
        first, second: (N, D).
        theta: (N, k); a component that does not vary is left out.
    """
    first, theta = first.double(), theta.double()
    mean, theta_mean = first.mean(0), theta.mean(0)
    theta_std = torch.where(varying(theta), theta.std(0), torch.inf)
    centred = first - mean
    spectrum, basis = torch.linalg.eigh(centred.T @ centred)
    # What never varies in training may do so in held-out pairs, and standardising would blow it up beyond all measure.
    basis = basis[:, spectrum > RESOLUTION * first.square().sum()].flip(1)[:, :COMPONENTS]
    inputs = _inputs(centred @ basis, (theta - theta_mean) / theta_std)
    return Motion(mean, basis, theta_mean, theta_std, fit(moments(inputs, second)))


def _inputs(z: Tensor, theta: Tensor) -> Tensor:
    return torch.cat([z, theta, (z[:, :, None] * theta[:, None, :]).flatten(1)], dim=1)


def explain_motion(train: Pairs, held: Pairs) -> tuple[list[Prediction], Motion]:
    """Return how much of the held-out z2 theta explains beyond z1, pair by pair.

    Args:
        train, held: pairs that the ridge is fitted and scored on.

    Returns:
        Of all factors together, what each pair adds to the total variance of z2, and what it adds to what is left of
        it by a ridge whose theta is shuffled among pairs, refitted, and by the ridge itself; the difference of these is
        the gain in R2, `equivariance`. Of a factor, `equivariance/<factor>`, the same with this factor alone shuffled:
        all others keep their true values, so what is counted is what this factor alone explains, on the very pairs of
        the overall figure. Also the ridge itself.
    """
    motion = fit_motion(train.first, train.theta, train.second)
    total = _squared(held.second.double() - held.second.double().mean(0))
    left = _squared(held.second - motion.predict(held.first, held.theta))

    def explained(name: str, *factors: str) -> Prediction:
        blind = fit_motion(train.first, _shuffled(train, factors), train.second)
        left_blind = _squared(held.second - blind.predict(held.first, _shuffled(held, factors)))
        columns = torch.stack([left_blind, left], dim=1)
        return Prediction("equivariance", name, held.ids, total[:, None].expand(-1, 2).float(), columns.float())

    return [explained(ALL, *train.targets), *(explained(name, name) for name in train.targets)], motion


def _squared(distance: Tensor) -> Tensor:
    return distance.double().square().sum(1)


def _shuffled(pairs: Pairs, factors: tuple[str, ...]) -> Tensor:
    """Return theta with some factors taken from another pair, the same other one for all of them."""
    order = permutation(SEED, 1, len(pairs.first))
    targets = {name: value[order] if name in factors else value for name, value in pairs.targets.items()}
    return torch.cat(list(targets.values()), dim=1)
