"""Whether a predicted feature finds the view that it predicts, as SIE's code measures it (arXiv 2302.10283).

N objects, T views of each, D features. Similarity is cosine.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

HITS = (1, 2, 5, 10)
BLOCK = 1024


def ranks(predicted: Tensor, views: Tensor) -> Tensor:
    """Return how high the true view ranks among the T of its own object, the first, which predictions start from, too.

    Args:
        predicted: (N, T, D), what each view is predicted to be.
        views: (N, T, D), what they are.

    Returns:
        int64 (N, T), 1 to T; views that do not differ rank in their order.
    """
    similarity = F.normalize(predicted.double(), dim=-1) @ F.normalize(views.double(), dim=-1).mT
    # What is closer together than features, float32, can tell is a tie.
    order = similarity.float().argsort(dim=-1, descending=True, stable=True)
    target = torch.arange(views.shape[1])[:, None]
    return (order == target).double().argmax(-1) + 1


def rank_figures(rank: Tensor) -> dict[str, float]:
    """Return what ranks (N, T) among T views come to.

    Returns:
        `mrr`, the mean of 1 / rank, `views`, T, and of `h1`, `h2`, `h5`, `h10`, how often the rank is at most that,
        those below T. By chance, T = 50: mrr .090, h1 .02, h5 .10; so too for views that do not differ.
    """
    views = rank.shape[1]
    hits = {f"h{k}": float((rank <= k).double().mean()) for k in HITS if k < views}
    return {"mrr": float((1 / rank.double()).mean()), **hits, "views": float(views)}


def found_pose(predicted: Tensor, stored: Tensor, stored_pose: Tensor) -> Tensor:
    """Return the pose (n, 4) of the stored feature that is most similar to each prediction.

    Args:
        predicted: (n, D).
        stored: (M, D).
        stored_pose: (M, 4), unit quaternions.
    """
    stored = F.normalize(stored.float(), dim=1)
    # The length of what is predicted is the same beside all that is stored.
    nearest = torch.cat([(block @ stored.T).argmax(1) for block in predicted.float().split(BLOCK)])
    return stored_pose[nearest]


def pose_error(pose: Tensor, found: Tensor) -> float:
    """Return PRE, the mean of 1 - <q, q'>^2 over poses that were asked for and those that were found, both (n, 4).

    Returns:
        0 (the same rotation) to 1 (half a turn apart); .627 between random poses of 3DIEBench.
    """
    return float(1 - (pose.double() * found.double()).sum(1).square().mean())
