"""DINO (arXiv 2104.14294): self-distillation by a student that predicts its teacher's assignment to prototypes."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import Fraction, Positive, PositiveInt
from eqssl.distributed import all_reduce_mean
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.presets import MULTI_CROP, cifar, imagenet
from eqssl.models.teacher import Teacher

STUDENT_TEMPERATURE, WARMUP_TEMPERATURE = 0.1, 0.04
WARMUP = 0.1  # share of the training: 30 of 300 epochs, as published
CENTRE_MOMENTUM = 0.9
PUBLISHED: dict[str, float | str] = {"width": 2048, "bottleneck": 256, "teacher_temperature": 0.07}


class DINO(Method):
    """Prototype head, its teacher, and the cross-entropy to the teacher's centred and sharpened assignment.

    The student sees the local crops, the teacher does not. Deliberate differences from the authors' code: the
    representation is the mean over patch tokens, not the class token; the student is exported and evaluated, not the
    teacher; the teacher's temperature warms up by steps, not by epochs; and the prototypes are not frozen in the first
    epoch, where the learning rate warms up anyway.

    Args:
        width: of the head's hidden layers.
        bottleneck: width of its normalised output, which is compared with the prototypes.
        prototypes: K.
        momentum: of the teacher at the start.
        teacher_temperature: tau_t after its linear warm-up from .04; .07 is too high if the loss of a short run stays
            at ln K.
    """

    # CIFAR: solo-learn's heads; ImageNet: the authors'.
    takes_local_crops: ClassVar[bool] = True
    scales: ClassVar = {
        "small": PUBLISHED | {"prototypes": 4096, "momentum": 0.9995},
        "imagenet": PUBLISHED | {"prototypes": 65536, "momentum": 0.996},
    }
    presets: ClassVar = {
        "cifar": cifar("kNN .840 after 200 epochs; .848 after 800 in batches of 512"),
        "imagenet": imagenet(
            "the authors' (arXiv 2104.14294), ViT-S/16, ten local crops; here means over patches, not class tokens",
            "linear 77.0 % after 800 epochs",
            encoder="vit_small_patch16_224", optimizer="adamw", lr=5e-4, weight_decay=0.04, weight_decay_end=0.4,
            clip_norm=3.0, warmup_epochs=10.0, epochs=800, batch_size=1024, augment=MULTI_CROP,
        ),
    }  # fmt: skip

    def __init__(
        self, sizes: Sizes, *,
        width: PositiveInt = 512, bottleneck: PositiveInt = 128, prototypes: PositiveInt = 1024,
        momentum: Fraction = 0.99, teacher_temperature: Positive = 0.04,
    ):  # fmt: skip
        super().__init__()
        self.momentum, self.teacher_temperature = momentum, teacher_temperature
        self.head = PrototypeHead(sizes.inv, width, bottleneck, prototypes)
        self.teacher_head = Teacher(self.head)
        self.centre = Centre(prototypes)

    def forward(self, pair: Pair) -> Tensor:
        teacher = self.teacher_head(pair.teacher.mean(1))
        targets = self.centre(teacher, warmed_up(self.teacher_temperature, self.progress))
        self.centre.update(teacher)
        crops = pair.inv if pair.local is None else torch.cat([pair.inv, pair.local])
        return all_reduce_mean(dino_loss(self.head(crops), targets))


class PrototypeHead(nn.Module):
    """Three-layer perceptron with GELU, then the cosine to every prototype (arXiv 2104.14294, appendix C).

    Both factors are normalised anew in every pass, which is the authors' weight normalisation without gain.

    Args:
        dim, width, bottleneck: of the input, the hidden layers and the output of the perceptron.
        prototypes: K.
    """

    def __init__(self, dim: int, width: int, bottleneck: int, prototypes: int):
        super().__init__()
        layers = [nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, bottleneck)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., K) in [-1, 1] from features (..., dim)."""
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes.weight, dim=-1))


class Centre(nn.Module):
    """Running mean of a teacher's logits over all workers, which keeps one prototype from taking all images.

    Args:
        prototypes: K.
    """

    mean: Tensor

    def __init__(self, prototypes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(prototypes))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the targets (..., K), centred and sharpened (arXiv 2104.14294, Eq. 1 with the centre of Eq. 4)."""
        return F.softmax((logits - self.mean) / temperature, dim=-1)

    def update(self, logits: Tensor) -> None:
        """Move towards the mean of logits (..., K) by Eq. 4, in training mode only."""
        if self.training:
            self.mean.lerp_(all_reduce_mean(logits.flatten(0, -2).mean(0)), 1 - CENTRE_MOMENTUM)


def warmed_up(temperature: float, progress: float) -> float:
    """Return the teacher's temperature at `progress` of the training in [0, 1); a high one is unstable at first."""
    return WARMUP_TEMPERATURE + (temperature - WARMUP_TEMPERATURE) * min(1.0, progress / WARMUP)


def dino_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all pairs of a student's crop and a target of another view.

    Equation 3 of arXiv 2104.14294: a view is compared with the target of the other view, a local crop with both.

    Args:
        student: logits, float ((2 + N) B, K), of first views, second ones, and N local crops of every image.
        targets: the teacher's probabilities of the views, float (2 B, K).
    """
    views, local = student.tensor_split([len(targets)])
    loss = F.cross_entropy(views / STUDENT_TEMPERATURE, targets.roll(len(targets) // 2, 0))
    if not len(local):
        return loss
    log_p = F.log_softmax(local / STUDENT_TEMPERATURE, dim=-1).unflatten(0, (-1, len(targets) // 2))
    # The mean of a crop's cross-entropies to both targets is its cross-entropy to their mean.
    both = targets.unflatten(0, (2, -1)).mean(0)
    of_local = -(both * log_p.mean(0)).sum(-1).mean()
    return (loss + len(log_p) * of_local) / (1 + len(log_p))
