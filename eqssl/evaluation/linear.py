"""Linear classification of frozen features."""

import warnings

import numpy as np
import torch
from torch import Tensor

from eqssl.evaluation.selection import hold_back

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse of the L2 penalty, of standardised features


def linear_predict(train: Tensor, train_labels: Tensor, held: Tensor, objects: Tensor | None = None) -> Tensor:
    """Return the classes, int64 (M,), that multinomial logistic regression predicts.

    Its L2 penalty is chosen on the first fifth of the training images, or objects. It is the least where these are
    under five, or the others are of one class.

    Args:
        train, held: (N, D) and (M, D).
        train_labels: int64 (N,).
        objects: int64 (N,), which object an image shows; default: every image is its own.

    Raises:
        ValueError: for training images of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = train.numpy(), train_labels.numpy()
    if len(train_labels.unique()) < 2:
        raise ValueError(
            f"the {len(y)} images of the train split that a linear probe is fitted on are all of class {y[0]}; "
            "it needs two or more: take more --evaluate.train-images, or data whose train split has other classes"
        )

    def probe(strength: float, images: np.ndarray | slice):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
        return model.fit(x[images], y[images])

    chosen, fitted = (images.numpy() for images in hold_back(torch.arange(len(x)), 5, objects))
    with warnings.catch_warnings():
        # Stopping after 200 steps only regularises; the penalty is chosen with that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = STRENGTHS[-1]
        if len(chosen) and len(train_labels[fitted].unique()) > 1:
            best = max(STRENGTHS, key=lambda strength: probe(strength, fitted).score(x[chosen], y[chosen]))
        return torch.from_numpy(probe(best, slice(None)).predict(held.numpy()))
