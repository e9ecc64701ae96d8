"""k nearest neighbours by cosine similarity."""

import torch.nn.functional as F
from torch import Tensor

K = 20
BLOCK = 1024


def knn_accuracy(train: Tensor, train_labels: Tensor, held: Tensor, held_labels: Tensor, k: int = K) -> float:
    """Return the accuracy of a majority vote among the k most similar training features.

    Args:
        train, held: float32 (N, D) and (M, D).
        train_labels, held_labels: int64 (N,) and (M,).
        k: neighbours, each with one vote; the lowest class wins a tie.
    """
    train = F.normalize(train, dim=1)
    classes = int(train_labels.max()) + 1
    correct = 0
    for block, labels in zip(held.split(BLOCK), held_labels.split(BLOCK), strict=True):
        nearest = (F.normalize(block, dim=1) @ train.T).topk(min(k, len(train))).indices
        votes = F.one_hot(train_labels[nearest], classes).sum(1)
        correct += int((votes.argmax(1) == labels).sum())
    return correct / len(held)
