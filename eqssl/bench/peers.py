"""lightly's methods, built from its public heads and losses as in its examples: one view after the other.

The backbone is ours on both sides, the widths of the heads are those of our scale `tiny`. Imports lightly (extra
`test`), and so 10 s of torchvision and timm.
"""

import copy
from collections.abc import Callable
from functools import partial

import lightly.loss as losses
import torch
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from eqssl.models.encoder import Encoder

MakeHead = Callable[[], nn.Module]

WIDTH, EMBEDDING, PROTOTYPES, MOMENTUM, TEMPERATURE = 512, 128, 1024, 0.99, 0.2


class Peer(nn.Module):
    """Encoder and projection head; the loss compares the two views' projections.

    Args:
        encoder: images -> features, without a split.
        autocast: bf16 in the encoder.
        make_head: makes the projection head.
        criterion: lightly's loss.
    """

    def __init__(self, encoder: Encoder, autocast: bool, make_head: MakeHead, criterion: nn.Module):
        super().__init__()
        self.encoder, self.autocast, self.head, self.criterion = encoder, autocast, make_head(), criterion

    def tokens(self, encoder: Encoder, images: Tensor, **masked: Tensor) -> Tensor:
        """Return tokens (B, T, D) in float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return encoder.tokens(images, **masked).float()

    def project(self, images: Tensor) -> Tensor:
        """Return the projections of one view."""
        return self.head(self.tokens(self.encoder, images).mean(1))

    def forward(self, *views: Tensor) -> Tensor:
        """Return the loss of two views, float32 (B, C, S, S) each; iBOT takes their mask as well."""
        return self.criterion(*map(self.project, views))

    def update(self) -> None:
        """Follow the student, where there is a teacher."""


class Predicting(Peer):
    """SimSiam: a predictor of the other view's target."""

    def __init__(
        self, encoder: Encoder, autocast: bool, make_head: MakeHead, criterion: nn.Module, predictor: nn.Module
    ):
        super().__init__(encoder, autocast, make_head, criterion)
        self.predictor = predictor

    def forward(self, *views: Tensor) -> Tensor:
        first, second = views
        z1, z2 = self.project(first), self.project(second)
        t1, t2 = self.target(first, z1), self.target(second, z2)
        return (self.criterion(self.predictor(z1), t2) + self.criterion(self.predictor(z2), t1)) / 2

    def target(self, images: Tensor, projection: Tensor) -> Tensor:
        """Return the prediction target of one view: its own projection, without gradient."""
        return projection.detach()


class Taught(Peer):
    """DINO: a teacher of encoder and head."""

    def __init__(self, encoder: Encoder, autocast: bool, make_head: MakeHead, criterion: nn.Module):
        super().__init__(encoder, autocast, make_head, criterion)
        self.teacher, self.teacher_head = copy.deepcopy(encoder), make_head()
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Return the teacher's projections of one view."""
        return self.teacher_head(self.tokens(self.teacher, images).mean(1))

    def forward(self, *views: Tensor) -> Tensor:
        return self.criterion([self.targets(view) for view in views], [self.project(view) for view in views])

    def update(self) -> None:
        update_momentum(self.encoder, self.teacher, MOMENTUM)
        update_momentum(self.head, self.teacher_head, MOMENTUM)


class TaughtPredicting(Predicting, Taught):
    """BYOL and MoCo v3: a predictor of the teacher's projections."""

    def target(self, images: Tensor, projection: Tensor) -> Tensor:
        return self.targets(images)


class Masked(Taught):
    """iBOT as published: the student sees masked views only, the teacher whole ones, one head for views and patches."""

    def __init__(self, encoder: Encoder, autocast: bool, make_head: MakeHead, criterion: nn.Module):
        super().__init__(encoder, autocast, make_head, criterion)
        self.patch_criterion = losses.IBOTPatchLoss(PROTOTYPES)
        self.mask_token = nn.Parameter(torch.zeros(int(encoder.backbone.width)))

    def forward(self, *views: Tensor) -> Tensor:
        first, second, mask = views
        images = torch.cat([first, second])
        student = self.tokens(self.encoder, images, mask=mask, mask_token=self.mask_token)
        with torch.no_grad():
            teacher = self.tokens(self.teacher, images)
            targets, patches = self.teacher_head(teacher.mean(1)), self.teacher_head(teacher[mask])
        dino = self.criterion(list(targets.chunk(2)), list(self.head(student.mean(1)).chunk(2)))
        return dino + self.patch_criterion(patches, self.head(student[mask]), mask.unflatten(1, self.encoder.grid))


def build_peer(name: str, encoder: Encoder, autocast: bool) -> Peer:
    """Return lightly's method of our name.

    Args:
        name: one of `PEERS`.
        encoder: without a split; copied.
        autocast: bf16 in the encoder.
    """
    encoder, dim = copy.deepcopy(encoder), encoder.dim
    if name in ("dino", "ibot"):
        make_head = partial(heads.DINOProjectionHead, dim, WIDTH, EMBEDDING, PROTOTYPES)
        return (Taught if name == "dino" else Masked)(encoder, autocast, make_head, losses.DINOLoss(PROTOTYPES))
    if name in JOINT:
        return Peer(encoder, autocast, *JOINT[name](dim))
    make_head, predictor, criterion = PREDICTING[name](dim)
    return (Predicting if name == "simsiam" else TaughtPredicting)(encoder, autocast, make_head, criterion, predictor)


JOINT = {
    "simclr": lambda dim: (partial(heads.SimCLRProjectionHead, dim, WIDTH, EMBEDDING), losses.NTXentLoss(TEMPERATURE)),
    "vicreg": lambda dim: (partial(heads.VICRegProjectionHead, dim, WIDTH, WIDTH), losses.VICRegLoss()),
    "barlow_twins": lambda dim: (partial(heads.BarlowTwinsProjectionHead, dim, WIDTH, WIDTH), losses.BarlowTwinsLoss()),
}
PREDICTING = {
    "byol": lambda dim: (
        partial(heads.BYOLProjectionHead, dim, WIDTH, EMBEDDING),
        heads.BYOLPredictionHead(EMBEDDING, WIDTH, EMBEDDING),
        losses.NegativeCosineSimilarity(),
    ),
    "simsiam": lambda dim: (
        partial(heads.SimSiamProjectionHead, dim, WIDTH, WIDTH),
        heads.SimSiamPredictionHead(WIDTH, 128, WIDTH),
        losses.NegativeCosineSimilarity(),
    ),
    # lightly has the heads of MoCo v3, but no loss against the batch's keys alone: NT-Xent compares all with all.
    "moco_v3": lambda dim: (
        partial(heads.MoCoProjectionHead, dim, WIDTH, EMBEDDING, num_layers=3, batch_norm=True),
        heads.MoCoProjectionHead(EMBEDDING, WIDTH, EMBEDDING, num_layers=2, batch_norm=True),
        losses.NTXentLoss(TEMPERATURE),
    ),
}
PEERS = (*JOINT, *PREDICTING, "dino", "ibot")
