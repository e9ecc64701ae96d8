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
    classes, which = train_labels.unique(return_inverse=True)  # numbers may be large and few
    predicted = []
    for block in held.split(BLOCK):
        nearest = (F.normalize(block, dim=1) @ train.T).topk(min(k, len(train))).indices
        votes = torch.zeros(len(block), len(classes), dtype=torch.int32, device=block.device)
        votes.scatter_add_(1, which[nearest], torch.ones_like(nearest, dtype=torch.int32))
        predicted.append(classes[votes.argmax(1)])
    return torch.cat(predicted)
