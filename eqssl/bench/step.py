"""A training step by part, without and with reconstruction, against the encoder's own arithmetic; the evaluation.

The training is the package's own loop on random images in memory; other parts of the bench use it too.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eqssl.bench.command import Options, Precision
from eqssl.bench.timing import Row, finish, interleave, row
from eqssl.config import EvaluateConfig, RunConfig, TrainConfig
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.evaluation.protocol import evaluate
from eqssl.models.model import Model
from eqssl.training.context import Context, LocalContext
from eqssl.training.loop import Run
from eqssl.views import Read

# (device, encoder, image size) -> minimum step efficiency without and with reconstruction, and the maximum of the step
# with reconstruction over the one without.
AIMS = {
    ("cpu", "resnet18", 64): (0.85, 0.75, 1.15),
    ("cuda", "resnet18", 64): (0.9, None, 1.15),
    ("cuda", "resnet50", 224): (0.9, None, None),
    ("cuda", "vit_small_patch16_224", 224): (0.9, None, None),
}
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices whose product is a device's peak
EVALUATION, EVALUATION_AT_MOST = EvaluateConfig(images=2048), 0.1
CLASSES = 10


def measure(options: Options) -> list[Row]:
    """Return the rows of every encoder, image size and precision, and of the evaluation."""
    rows = []
    for precision in options.precisions:
        for encoder in options.encoders:
            for size in options.image_sizes:
                rows += steps_of(options, encoder, size, precision)
    return [*rows, evaluation(options)]


def steps_of(options: Options, encoder: str, size: int, precision: Precision) -> list[Row]:
    """Return images per second, step efficiency, shares of a step's parts, and the encoder's rate over the device peak.

    Step efficiency is the time of the encoder alone, forward and backward, over that of the step.

    Args:
        options: batch size and duration.
        encoder: its name.
        size: height and width, px.
        precision: of the encoder.
    """
    plain, recon = (TimedSteps(options.run(encoder, size, precision, recon=weight)) for weight in (0.0, 1.0))
    run = plain.run
    images = torch.rand(2 * options.batch_size, 3, size, size, device=run.device)
    side = PRODUCT[run.device.type]
    a, b = torch.rand(2, side, side, device=run.device).to(torch.bfloat16 if run.autocast else torch.float32)
    subjects = {
        "encoder": lambda: encoder_pass(run.model, images, run.autocast),
        plain.name: plain.step,
        recon.name: recon.step,
        "product": lambda: a @ b,
    }
    seconds = interleave(subjects, options.seconds)
    *efficiencies, at_most = AIMS.get((run.device.type, encoder, size), (None, None, None))
    name, base = f"{encoder}, {size} px, {precision}", seconds[plain.name]
    rows = [row(f"{name}: step", base, count=options.batch_size, unit="images/s")]
    for steps, aim in zip((plain, recon), efficiencies, strict=True):
        against = f"{steps.name} (step efficiency)"
        rows.append(row(f"{name}: encoder alone", seconds["encoder"], against, seconds[steps.name], at_least=aim))
        counted = steps.rounds[-len(base) :]
        whole = np.array([sum(parts.values()) for parts in counted])
        shares = {part: np.array([parts[part] for parts in counted]) for part in counted[0]}
        rows += [row(f"{name}: {part}", of, steps.name, whole) for part, of in shares.items()]
    rows.append(row(f"{name}: {recon.name}", seconds[recon.name], plain.name, base, at_most=at_most))
    flops = encoder_flops(run.model, images)
    at_peak = seconds["product"] * flops / (2 * side**3)  # seconds that the product takes for as many operations
    name, against = f"{name}: encoder alone", "a large matrix product"
    rate = flops / 1e9
    return [*rows, row(name, seconds["encoder"], against, at_peak, count=rate, unit="GFLOP/s")]


def evaluation(options: Options) -> Row:
    """Return the time of the evaluation over that of the default number of epochs on its training images."""
    encoder, sizes, size = options.encoders[0], EVALUATION, options.image_sizes[-1]
    dataset = random_dataset(sizes.train_images, size, eval_images=sizes.images)
    run = make_run(options.run(encoder, recon=1.0), steps=8)
    seconds = interleave(
        {"epoch": run.next_epoch, "evaluation": lambda: evaluate(run.model.encoder, dataset, config=sizes)},
        options.seconds,
    )
    epochs = TrainConfig().epochs
    training_s = seconds["epoch"] * epochs * sizes.train_images / len(run.dataset.train)
    name = f"{encoder}, {size} px: {sizes.level} evaluation, {sizes.train_images} + {sizes.images} images"
    training = f"training of {epochs} epochs on {sizes.train_images} images"
    return row(name, seconds["evaluation"], training, training_s, at_most=EVALUATION_AT_MOST)


def encoder_pass(model: Model, images: Tensor, autocast: bool) -> None:
    """Run a model's encoder forward and backward: the arithmetic that no training can avoid.

    Args:
        model: in training mode.
        images: float32 (2 B, C, S, S), on its device.
        autocast: bf16, as in the run.
    """
    model.encoder.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        tokens = model.encode(model.encoder, images)
    tokens.float().sum().backward()


def encoder_flops(model: Model, images: Tensor) -> float:
    """Return the floating-point operations of `encoder_pass`, counted on two of the images."""
    with FlopCounterMode(display=False) as counter:  # it cannot see into compiled code
        model.encoder.tokens(images[:2]).sum().backward()
    return counter.get_total_flops() * len(images) / 2


def random_dataset(images: int, size: int, eval_images: int = 2) -> Dataset:
    """Return a dataset of colour noise in memory, with labels.

    Args:
        images: number for training.
        size: height and width, px.
        eval_images: number each for val and test.
    """
    counts = [images, eval_images, eval_images]
    ids, generator = torch.arange(sum(counts)), torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(ids), 3, size, size), dtype=torch.uint8, generator=generator)
    parts = zip(pixels.split(counts), ids.split(counts), strict=True)
    train, val, test = (Split(MemoryImages(images), ids, ids % CLASSES) for images, ids in parts)
    return Dataset("noise", train, val, test, False, 3, size, CLASSES, (0.5,) * 3, (0.29,) * 3, "noise")


def make_run(config: RunConfig, *, steps: int = 1, context: Context | None = None) -> Run:
    """Return a run whose steps all cost the same, without the extra work at an epoch's last step.

    Args:
        config: of the run.
        steps: per epoch.
        context: default: one process.
    """
    assert config.data.image_size is not None  # set by every `Options.run`
    dataset = random_dataset(steps * config.train.batch_size, config.data.image_size)
    run = Run(config, context or LocalContext(), dataset)
    run.measures_gradient_share = False
    return run


class TimedSteps:
    """A training of one step per epoch, whose parts are timed by hooks, without a synchronisation.

    Args:
        config: of the training.

    Attributes:
        rounds: per step, seconds of each part; `optimizer` includes the teachers' update and the epoch's end.
    """

    def __init__(self, config: RunConfig):
        self.name = "step with reconstruction" if config.recon.weight else "step"
        self.rounds: list[dict[str, float]] = []
        self._moments: list[tuple[str, Any]] = []
        self.run = make_run(config)
        self._add_hooks()

    def _add_hooks(self) -> None:
        """Mark the end of each part; the backward pass visits reconstruction, method and encoder in this order."""
        model, mark, encode, read = self.run.model, self._mark, self.run.model.encode, self.run.views.read

        def read_and_mark(split: Split, indices: Tensor, epoch: int) -> Read:
            mark("augmentation")
            stored = read(split, indices, epoch)
            mark("data")
            return stored

        def encode_and_mark(encoder: nn.Module, images: Tensor, **masked: Tensor) -> Tensor:
            tokens = encode(encoder, images, **masked)
            if encoder is model.encoder:  # a teacher's pass belongs to the method
                mark("encoder")
                tokens.register_hook(lambda gradient: mark("method"))
            return tokens

        def before_reconstruction(module: nn.Module, inputs: tuple) -> None:
            mark("method")
            for tokens in inputs:
                if tokens.requires_grad:
                    tokens.register_hook(lambda gradient: mark("reconstruction"))

        self.run.views.read = read_and_mark  # type: ignore[method-assign]
        model.register_forward_pre_hook(lambda *_: mark("augmentation"))
        model.encode = encode_and_mark  # a hook of the module would break the compiled graph in two
        last = "method" if model.reconstruction is None else "reconstruction"
        if model.reconstruction is not None:
            model.reconstruction.register_forward_pre_hook(before_reconstruction)
        model.register_forward_hook(lambda *_: mark(last))
        self.run.optimizer.register_step_pre_hook(lambda *_: mark("encoder"))

    def step(self) -> None:
        """Train one epoch, which is one step, and add its parts to `rounds`."""
        self._moments.clear()
        self._mark("")
        self.run.next_epoch()
        self._mark("optimizer")
        finish()
        seconds: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._moments, self._moments[1:], strict=False):
            passed = before.elapsed_time(after) / 1000 if torch.cuda.is_available() else after - before
            seconds[name] = seconds.get(name, 0.0) + passed
        self.rounds.append(seconds)

    def _mark(self, name: str) -> None:
        """Record the moment at which a part ends."""
        moment: Any = time.perf_counter()
        if torch.cuda.is_available():
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._moments.append((name, moment))
