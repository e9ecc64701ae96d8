"""How much of a feature's variance is the image's own, rather than the transform's."""

from torch import Tensor


def variances(views: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each image adds to the total variance and to that within images, summed over dimensions.

    Invariance is 1 - variance within / total variance: 1 where no transform changes the feature (a constant feature
    included: read it beside collapse), about 0 where the views of one image are as far apart as those of any.

    Args:
        views: (N, T, D), features of N images under T transforms.

    Returns:
        float64 (N, 1) each, whose sums are the unbiased variances.
    """
    views = views.double()
    images, transforms, _ = views.shape
    total = (views - views.mean((0, 1))).square().sum((1, 2)) / (images * transforms - 1)
    within = (views - views.mean(1, keepdim=True)).square().sum((1, 2)) / (images * (transforms - 1))
    return total[:, None], within[:, None]
