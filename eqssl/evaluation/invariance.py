"""How much of a feature's variance is the image's own, rather than the transform's."""

from torch import Tensor


def invariance(views: Tensor) -> float:
    """Return 1 - variance within an image / total variance, both unbiased and summed over dimensions.

    Args:
        views: (N, T, D), features of N images under T transforms.

    Returns:
        1 where no transform changes the feature (a constant feature included: read it beside collapse), about 0 where
        the views of one image are as far apart as those of any.
    """
    views = views.double()
    images, transforms, _ = views.shape
    within = (views - views.mean(1, keepdim=True)).square().sum() / (images * (transforms - 1))
    total = (views - views.mean((0, 1))).square().sum() / (images * transforms - 1)
    return float(1 - within / total) if total > 0 else 1.0
