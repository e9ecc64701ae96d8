"""iBOT (arXiv 2111.07832): DINO, plus predicting the teacher's assignment of every patch hidden from the student."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import Fraction, Positive, PositiveInt
from eqssl.distributed import all_reduce_mean
from eqssl.methods.base import Pair, Sizes
from eqssl.methods.dino import DINO, STUDENT_TEMPERATURE, Centre, warmed_up
from eqssl.methods.presets import MULTI_CROP, imagenet


class IBOT(DINO):
    """DINO's loss on the views plus the masked-patch loss, with one head for both, as in the authors' runs.

    Local crops are never masked. Deliberate differences, in addition to all of DINO's: masked patches are drawn one by
    one (the authors' option `rand`), not in blocks; and the loss on the views compares means over patches, those of the
    student with masks, not class tokens.

    Args:
        width, bottleneck, prototypes, momentum, teacher_temperature: see `DINO`.
        patch_temperature: the teacher's temperature for patches, after the same warm-up.
    """

    # CIFAR: DINO's settings, since no run is published; ImageNet: the authors'.
    scales: ClassVar = {
        "small": {**DINO.scales["small"], "patch_temperature": 0.07},
        "imagenet": {**DINO.scales["imagenet"], "prototypes": 8192, "patch_temperature": 0.07},
    }
    presets: ClassVar = {
        "imagenet": imagenet(
            "the authors' (arXiv 2111.07832), ViT-S/16, ten local crops; here means over patches, not class tokens",
            "linear 77.9 % after 800 epochs",
            encoder="vit_small_patch16_224", optimizer="adamw", lr=5e-4, weight_decay=0.04, weight_decay_end=0.4,
            clip_norm=3.0, warmup_epochs=10.0, epochs=800, batch_size=1024, augment=MULTI_CROP,
        ),
    }  # fmt: skip

    def __init__(
        self, sizes: Sizes, *,
        width: PositiveInt = 512, bottleneck: PositiveInt = 128, prototypes: PositiveInt = 1024,
        momentum: Fraction = 0.99, teacher_temperature: Positive = 0.04, patch_temperature: Positive = 0.04,
    ):  # fmt: skip
        if sizes.width == 0:
            raise ValueError(
                "--method.name ibot masks patches, which this --encoder.name has no place for; allowed: timm's plain "
                "vision transformers, such as vit_tiny_patch16_224"
            )
        super().__init__(
            sizes, width=width, bottleneck=bottleneck, prototypes=prototypes,
            momentum=momentum, teacher_temperature=teacher_temperature,
        )  # fmt: skip
        self.patch_temperature = patch_temperature
        self.patch_centre = Centre(prototypes)
        self.mask_token = nn.Parameter(torch.zeros(sizes.width))

    def forward(self, pair: Pair) -> Tensor:
        mask, teacher = pair.mask, self.teacher_head(pair.teacher)
        targets = self.patch_centre(teacher[mask], warmed_up(self.patch_temperature, self.progress))
        self.patch_centre.update(teacher)
        student = self.head(pair.tokens[mask])
        return super().forward(pair) + all_reduce_mean(ibot_loss(student, targets, mask))

    @staticmethod
    def draw_masks(draws: Tensor) -> Tensor:
        """Return masks bool (N, T): no patch in half of the views, else a share of the patches uniform in [.1, .5).

        Args:
            draws: uniform in [0, 1), float (N, T + 1): the first of a view sets the number of patches, the
                others choose them.
        """
        amount = draws[:, :1]
        rank = draws[:, 1:].argsort(dim=1, stable=True).argsort(dim=1)
        share = (amount >= 0.5) * (0.1 + 0.8 * (amount - 0.5))
        return rank < (share * rank.shape[1]).floor()


def ibot_loss(student: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of masked patches (arXiv 2111.07832, section 3.1).

    A mean over the masked patches of every view, then over views; a view without any counts as 0, as in the authors'
    code.

    Args:
        student: logits of the M masked patches, float (M, K).
        targets: the teacher's probabilities of the same patches, float (M, K).
        mask: bool (N, T), with M true values.
    """
    losses = F.cross_entropy(student / STUDENT_TEMPERATURE, targets, reduction="none")
    masked_in_view = mask.sum(1, keepdim=True).expand_as(mask)[mask]
    return (losses / masked_in_view).sum() / len(mask)
