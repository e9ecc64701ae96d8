"""Linear classification of frozen features."""

import torch
from torch import Tensor

from eqssl.evaluation.ridge import Moments, fit, moments


def linear_predict(train: Tensor, train_labels: Tensor, held: Tensor) -> Tensor:
    """Return the classes, int64 (M,), that a ridge classifier predicts.

    Args:
        train, held: (N, D) and (M, D).
        train_labels: int64 (N,).

    Raises:
        ValueError: for training images of one class.
    """
    return classify(moments(train, one_hot(train_labels)), train_labels, held)


def one_hot(labels: Tensor) -> Tensor:
    """Return float32 (N, classes), a column for each class that occurs, in order.

    Raises:
        ValueError: for images of one class.
    """
    classes, which = labels.unique(return_inverse=True)  # numbers may be large and few
    if len(classes) < 2:
        raise ValueError(
            f"the {len(labels)} images of the train split that a linear probe is fitted on are all of class "
            f"{int(labels[0])}; it needs two or more: take more --evaluate.train-images, or data whose train split "
            "has other classes"
        )
    return torch.nn.functional.one_hot(which, len(classes)).float()


def classify(data: Moments, train_labels: Tensor, held: Tensor) -> Tensor:
    """Return the classes, int64 (M,), of the largest output of a ridge that is fitted on one-hot targets.

    Inputs are standardised; one penalty for all classes has the least generalised cross-validation error.

    Args:
        data: moments of the training features and their `one_hot` labels.
        train_labels: int64 (N,).
        held: (M, D).
    """
    return train_labels.unique()[fit(data, shared_penalty=True).predict(held).argmax(1)]
