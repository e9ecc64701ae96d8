"""The interface of a method: heads and a loss on a batch of pairs.

B pairs, T tokens, D width. Tensors of both views contain all first views, then all second ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from eqssl.methods.presets import Preset

ABSENT: Any = None  # a field that the method does not require


@dataclass(frozen=True)
class Sizes:
    """The sizes that heads depend on.

    Args:
        inv, equi: width of the invariant and of the equivariant part; without a split `inv` is the whole and `equi` 0.
        width: of the tokens inside a vision transformer, for a mask token; 0 for other backbones.
        tokens: T.
        num_classes: 0 without labels.
        theta: factor -> number of components of the transformation from the first view to the second.
        factors: factor -> number of components of the known factors of one view of an object; None without.
    """

    inv: int
    equi: int = 0
    width: int = 0
    tokens: int = 1
    num_classes: int = 0
    theta: dict[str, int] | None = None
    factors: dict[str, int] | None = None


@dataclass(frozen=True)
class Pair:
    """The input of a method: the features of a batch of pairs, and the other data that it requires.

    Args:
        inv: float32 (2 B, D), the pooled invariant part.
        equi: float32 (2 B, D'), the pooled equivariant part.
        tokens: float32 (2 B, T, D), the invariant channels of every token.
        teacher: the same from the teacher, which sees whole views, without gradient; None for a method without one.
        theta: factor -> float32 (B, k), the transformation from the first view to the second, in units of its range;
            None unless the method requires it.
        mask: bool (2 B, T), the patches hidden from the student; None unless the method masks.
        labels: int64 (B,) or None.
        factors: factor -> float32 (2 B, k), the known factors of each view; None unless the method requires them.
        local: float32 (N B, D), the pooled invariant part of N local crops of every image, all first ones before all
            second ones; None without.
    """

    inv: Tensor
    equi: Tensor = ABSENT
    tokens: Tensor = ABSENT
    teacher: Tensor = ABSENT
    theta: dict[str, Tensor] = ABSENT
    mask: Tensor = ABSENT
    labels: Tensor = ABSENT
    factors: dict[str, Tensor] = ABSENT
    local: Tensor = ABSENT


class Method(nn.Module):
    """A self-supervised method: made with `(sizes, **options)`, called with a `Pair`, returns the batch's loss.

    The loss is that of all workers together: from gathered embeddings, or a mean over workers.

    Attributes:
        requires_labels: the method is trained on labels.
        requires_transform: it is conditioned on the transformation between the views.
        requires_factors: it is trained on the known factors, absolute ones of objects or the transformation's.
        takes_local_crops: its loss takes the local crops of `--augment.local-crops`.
        draw_masks: uniform draws in [0, 1), (N, T + 1), one row per view -> bool (N, T), the patches whose embedding
            the student replaces by the parameter `mask_token` (width,); None for a method without masks.
        momentum: of the teacher at the start, with a cosine schedule to 1; None for a method without a teacher.
        progress: share of the training that is done, in [0, 1), set before every step.
        init_args: arguments of `build_method` as plain data.
        scales: published settings of heads and loss, `small` (CIFAR) and `imagenet`, as options; the defaults are for a
            CPU.
        presets: published settings of the whole training by name, see `--method.preset`.
    """

    requires_labels: ClassVar[bool] = False
    requires_transform: ClassVar[bool] = False
    requires_factors: ClassVar[bool] = False
    takes_local_crops: ClassVar[bool] = False
    draw_masks: ClassVar[Callable[..., Tensor] | None] = None
    scales: ClassVar[dict[str, dict[str, float | str]]] = {}
    presets: ClassVar[dict[str, Preset]] = {}
    momentum: float | None = None
    progress: float = 0.0
    init_args: dict[str, Any] | None = None

    def momentum_now(self) -> float:
        """Return the teacher's momentum at this point of the training (arXiv 2006.07733, section 3.2)."""
        assert self.momentum is not None
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * self.progress)) / 2

    def forward(self, pair: Pair) -> Tensor:
        raise NotImplementedError


class Predictive(Method):
    """A method that predicts the second view's embedding from the first one's and the transformation.

    Attributes:
        factors: factor of the transformation -> number of components, in the order of `predict`'s `theta`.
        parts: names of the modules of `embed` and `predict`, which are exported with the encoder.
    """

    requires_transform: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ()
    factors: dict[str, int]

    def embed(self, representation: Tensor) -> Tensor:
        """Return the embeddings (N, E) of representations (N, D)."""
        raise NotImplementedError

    def predict(self, embedding: Tensor, theta: Tensor) -> Tensor:
        """Return the predicted second embeddings (N, E) of first ones (N, E) and the transformation theta (N, K)."""
        raise NotImplementedError
