"""Options of the bench: parts and sizes. Nothing here imports torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from eqssl.config import (
    BASE_METHODS,
    AugmentConfig,
    DataConfig,
    EncoderConfig,
    EvaluateConfig,
    MethodConfig,
    ReconConfig,
    RunConfig,
    TrainConfig,
)

Part = Literal["step", "methods", "pipelines", "data", "evaluation", "scaling", "study", "scale"]
PARTS: tuple[Part, ...] = get_args(Part)

# SimCLR's augmentations, the same families and ranges as in lightly's transform. Ours change every view where SimCLR's
# change colour in four of five views and blur every second.
SIMCLR_AUGMENT = AugmentConfig(
    crop=1.0, translation=0.0, rotation=0.0, flip=1.0,
    brightness=1.0, contrast=1.0, saturation=1.0, hue=1.0, grayscale=0.5, blur=1.0, solarize=0.0,
)  # fmt: skip
NEVER_LAST = 10**6  # epochs: no epoch of a bench ends with an evaluation


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure speed side by side with the device's limit and with other libraries; ratios, from one run."""

    parts: tuple[Part, ...] = PARTS
    """step: shares of a training step, and the encoder's rate over that of a matrix product; methods: each against
    lightly's; pipelines: whole trainings against lightly's and a plain loop; data: reading; evaluation: against
    training; scaling: a second worker; study: overhead of a trial; scale: growth of a study's resume, summary and
    report with its trials, and memory of its process, all without training."""
    encoders: tuple[str, ...] = ("resnet_tiny", "resnet18")
    """Encoders of the parts step, pipelines and scaling; the first also of evaluation, methods and study."""
    vit: str = "vit_tiny_patch16_224"
    """Vision transformer for methods that mask patches."""
    methods: tuple[str, ...] = tuple(BASE_METHODS)
    """Methods that are compared with lightly's."""
    image_size: int = 64
    """Height and width in pixels."""
    batch_size: int = 64
    """Images (pairs of views) a step."""
    steps: int = 8
    """Steps an epoch of the part evaluation; pipelines trains some seconds."""
    data_images: int = 512
    """Images that the part data renders."""
    data_pixels: int = 1 << 27
    """Pixels that it reads, the images again and again: 32,768 images of 64 px."""
    data_sizes: tuple[int, ...] = (64, 224)
    """Their heights and widths in pixels."""
    study_trials: tuple[int, ...] = (64, 256, 1024)
    """Numbers of trials against which the times of the part scale are fitted."""
    simulated: tuple[int, int] = (200, 20)
    """Trials and epochs of the study that the part scale runs without training."""
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(images=2048))
    """The evaluation that is timed."""
    trials: int = 5
    """Trials whose overhead is measured; two or more."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder, on all sides alike, as in training."""
    compile: bool = False
    """Compile the encoder (torch.compile) of the parts step and pipelines, on all sides alike."""
    threads: int | None = None
    """CPU threads of this process; default: all."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """DataLoader workers of the other libraries; their trainings take none or half of them where that is faster."""
    seconds: float = 20.0
    """Time for a comparison; its rounds, three or more, fill it."""
    output: Path = Path("results/bench")
    """Folder for bench.json and bench.md."""

    def run(
        self,
        encoder: str,
        *,
        method: str = "simclr",
        equi_fraction: float = 0.5,
        recon: bool = False,
        compile: bool = False,
    ) -> RunConfig:
        """Return a training that never evaluates.

        Args:
            encoder, method: names.
            equi_fraction: share of the channels that is equivariant, in [0, 1].
            recon: add the reconstruction branch with its defaults.
            compile: compile the encoder.
        """
        return RunConfig(
            data=DataConfig(image_size=self.image_size),
            augment=SIMCLR_AUGMENT,
            encoder=EncoderConfig(name=encoder, equi_fraction=equi_fraction),
            method=MethodConfig(name=method),
            recon=ReconConfig(weight=float(recon)),
            train=TrainConfig(
                epochs=NEVER_LAST, batch_size=self.batch_size,
                precision=self.precision, compile=compile, threads=self.threads,
            ),
        )  # fmt: skip
