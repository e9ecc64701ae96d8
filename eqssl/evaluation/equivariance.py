"""Whether features move predictably with the transform: z2 from z1 and the transform's parameters theta.

N pairs, D features, k components of theta.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqssl.evaluation.pairs import Pairs
from eqssl.evaluation.r2 import r2_weighted, varying
from eqssl.evaluation.ridge import Ridge, fit, moments
from eqssl.evaluation.transforms import SEED
from eqssl.random import permutation

COMPONENTS = 64


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
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :COMPONENTS]
    inputs = _inputs(centred @ basis, (theta - theta_mean) / theta_std)
    return Motion(mean, basis, theta_mean, theta_std, fit(moments(inputs, second)))


def _inputs(z: Tensor, theta: Tensor) -> Tensor:
    return torch.cat([z, theta, (z[:, :, None] * theta[:, None, :]).flatten(1)], dim=1)


def equivariance_figures(train: Pairs, held: Pairs) -> tuple[dict[str, float], Motion]:
    """Return how much of the held-out z2 theta explains beyond z1.

    Args:
        train, held: pairs that the ridge is fitted and scored on.

    Returns:
        `equivariance`: the R2 of the ridge minus that of one whose theta is shuffled among pairs, refitted;
        `equivariance/<factor>`: minus that of one where this factor alone is shuffled. All other factors keep their
        true values, so what is counted is what this factor alone explains, on the very pairs of the overall figure.
        Also the ridge itself.
    """
    motion = fit_motion(train.first, train.theta, train.second)
    score = r2_weighted(held.second, motion.predict(held.first, held.theta))

    def loss_without(*factors: str) -> float:
        theta, held_theta = _shuffled(train, factors), _shuffled(held, factors)
        blind = fit_motion(train.first, theta, train.second)
        return score - r2_weighted(held.second, blind.predict(held.first, held_theta))

    figures = {"equivariance": loss_without(*train.targets)}
    return figures | {f"equivariance/{name}": loss_without(name) for name in train.targets}, motion


def _shuffled(pairs: Pairs, factors: tuple[str, ...]) -> Tensor:
    """Return theta with some factors taken from another pair, the same other one for all of them."""
    order = permutation(SEED, 1, len(pairs.first))
    targets = {name: value[order] if name in factors else value for name, value in pairs.targets.items()}
    return torch.cat(list(targets.values()), dim=1)
