"""`eqssl bench`: speed as ratios measured in one run, in one table that is saved as JSON. --help needs no torch."""

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from eqssl.config import (
    AugmentConfig,
    DataConfig,
    EncoderConfig,
    MethodConfig,
    ReconConfig,
    RunConfig,
    TrainConfig,
    check_known,
)
from eqssl.files import as_path
from eqssl.training.memory import keep_freed

PARTS = {  # name of the part and of its module -> minutes on two idle cores, and the content
    "step": (4, "a training step by part, with and without reconstruction, over the encoder alone, and the evaluation"),
    "peers": (5, "steps and whole trainings over those of lightly and of a plain torchvision v2 loop"),
    "workers": (2, "two gloo workers of a trial, and two trials side by side, over one alone"),
    "reading": (1, "JPEG at 224 px from Parquet over bare decoding"),
    "trials": (3, "seconds that a study adds to a trial"),
    "scale": (5, "resume, summary, report and memory of a study as its trials grow, and entries that MLflow loses"),
    "gpu": (8, "step and peers with ResNet-18 at 64 px, ResNet-50 and ViT-S/16 at 224 px, skipped without CUDA"),
}
PARTS_HELP = "; ".join(f"{name} ({minutes} min): {text}" for name, (minutes, text) in PARTS.items())
# SimCLR's augmentations, the same families and ranges as in lightly's transform. Ours change every view, while SimCLR's
# change the colour of four in five views and blur every second one.
SIMCLR_AUGMENT = AugmentConfig(
    crop=1.0, translation=0.0, rotation=0.0, flip=1.0,
    brightness=1.0, contrast=1.0, saturation=1.0, hue=1.0, grayscale=0.5, blur=1.0, solarize=0.0,
)  # fmt: skip
Precision = Literal["bf16", "fp32"]
NEVER_LAST = 10**6  # epochs: no epoch of a bench ends with an evaluation


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure speed as ratios of one run: against the encoder's own arithmetic, other libraries and one worker."""

    parts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART,PART,...", help=PARTS_HELP)] = tuple(PARTS)
    encoders: tuple[str, ...] = ("resnet_tiny", "resnet18")
    """Encoders of the parts step, peers and workers; the first also for lightly's methods and for trials."""
    methods: tuple[str, ...] = ("simclr", "vicreg", "barlow_twins")
    """Methods whose steps the part peers compares with lightly's."""
    image_sizes: tuple[int, ...] = (32, 64)
    """Heights and widths of the part step, in pixels; the other parts take the last."""
    precisions: tuple[Precision, ...] = ("bf16", "fp32")
    """Arithmetic of the encoder in the part step; the other parts take the first, on all sides alike. bf16 is left out
    if the device has no instructions for it."""
    batch_size: int = 64
    """Images (pairs of views) per step."""
    compile: bool = False
    """Compile the encoder (torch.compile) of the parts step, peers and gpu, on all sides alike."""
    threads: int | None = None
    """CPU threads of this process; default: all."""
    study_trials: tuple[int, ...] = (64, 256, 1024)
    """Numbers of trials of the part scale; 1000 3000 10000 take half an hour."""
    simulated: tuple[int, int] = (200, 20)
    """Trials and epochs of the study that it runs in Ray Tune without training; 10000 100 take hours."""
    seconds: float = 20.0
    """Time for a comparison, filled by three or more rounds."""
    output: str = "results/bench"
    """Folder for bench.json."""

    def run(
        self, encoder: str, size: int = 0, precision: Precision | None = None, *,
        method: str = "simclr", recon: float = 0.0, equi_fraction: float = 0.5,
    ) -> RunConfig:  # fmt: skip
        """Return the configuration of a training that never evaluates.

        Args:
            encoder, method: their names.
            size: height and width, px; default: the last of the options.
            precision: default: the first of the options.
            recon: weight of the reconstruction.
            equi_fraction: of the encoder.
        """
        train = TrainConfig(
            epochs=NEVER_LAST, batch_size=self.batch_size,
            precision=precision or self.precisions[0], compile=self.compile, threads=self.threads,
        )  # fmt: skip
        return RunConfig(
            data=DataConfig(image_size=size or self.image_sizes[-1]),
            augment=SIMCLR_AUGMENT,
            encoder=EncoderConfig(name=encoder, equi_fraction=equi_fraction),
            method=MethodConfig(name=method),
            recon=ReconConfig(weight=recon),
            train=train,
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts, save and print the table, and return the exit code: 0, or 2 for options that cannot work."""
    options = tyro.cli(Options, args=arguments, description=Options.__doc__, prog="eqssl bench")
    parts = [name for text in options.parts for name in text.split(",") if name]
    try:
        for name in parts:
            check_known("parts", name, PARTS)
        output = as_path(options.output, "--output")
        keep_freed()  # as in a training; here for the other libraries as well
        import torch

        from eqssl.bench.timing import machine, markdown, save
        from eqssl.devices import supports_bf16

        if options.threads:
            torch.set_num_threads(options.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if "bf16" in options.precisions and not supports_bf16(device):
            print(f"bf16 is left out: {device} has no instructions for it", file=sys.stderr)
            options = dataclasses.replace(options, precisions=("fp32",))
        rows, about, chosen = [], machine(), {k: str(v) for k, v in dataclasses.asdict(options).items()}
        for part in parts:
            print(f"measuring {part}", file=sys.stderr, flush=True)
            measured = importlib.import_module(f"eqssl.bench.{part}").measure(options)
            rows += [dataclasses.replace(row, part=part) for row in measured]
            save(output, about, chosen, rows)  # results stay if a later part fails
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(about, chosen, rows))
    return 0
