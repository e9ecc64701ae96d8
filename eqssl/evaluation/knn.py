"""k nearest neighbours by cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

K = 20
BLOCK = 1024


def knn_predict(train: Tensor, train_labels: Tensor, held: Tensor, k: int = K) -> Tensor:
    """Return the classes, int64 (M,), that most of the k most similar training features have.

    Args:
        train, held: float32 (N, D) and (M, D).
        train_labels: int64 (N,).
        k: neighbours, each with one vote; the lowest class wins a tie.
    """
    train = F.normalize(train, dim=1)
    classes = int(train_labels.max()) + 1
    predicted = []
    for block in held.split(BLOCK):
        nearest = (F.normalize(block, dim=1) @ train.T).topk(min(k, len(train))).indices
        votes = F.one_hot(train_labels[nearest], classes).sum(1)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)
