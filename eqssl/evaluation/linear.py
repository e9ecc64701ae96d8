"""Linear classification of frozen features."""

import warnings

from torch import Tensor

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse of the L2 penalty, of standardised features


def linear_accuracy(train: Tensor, train_labels: Tensor, held: Tensor, held_labels: Tensor) -> float:
    """Return the accuracy of multinomial logistic regression, its L2 penalty chosen on a fifth of the training images.

    Args:
        train, held: (N, D) and (M, D).
        train_labels, held_labels: int64 (N,) and (M,).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = train.numpy(), train_labels.numpy()

    def probe(strength: float, images: slice):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
        return model.fit(x[images], y[images])

    chosen, fitted = slice(len(x) // 5), slice(len(x) // 5, None)
    with warnings.catch_warnings():
        # Stopping after 200 steps only regularises; the penalty is chosen with that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = max(STRENGTHS, key=lambda strength: probe(strength, fitted).score(x[chosen], y[chosen]))
        return float(probe(best, slice(None)).score(held.numpy(), held_labels.numpy()))
