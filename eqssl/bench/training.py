"""The training that is timed: random images in memory, the package's own loop; and the parts of its steps."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eqssl.bench.options import Options
from eqssl.bench.timing import finish
from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.models.model import Model
from eqssl.training.context import Context, LocalContext
from eqssl.training.loop import Run
from eqssl.views import Batch

CLASSES = 10


def random_dataset(images: int, size: int, eval_images: int = 2) -> Dataset:
    """Return colour images of noise in memory, with labels.

    Args:
        images: for training.
        size: height and width, px.
        eval_images: for val and test each.
    """
    generator = torch.Generator().manual_seed(0)

    def split(first: int, count: int) -> Split:
        pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        ids = torch.arange(first, first + count)
        return Split(MemoryImages(pixels), ids, ids % CLASSES)

    parts = split(0, images), split(images, eval_images), split(images + eval_images, eval_images)
    return Dataset("noise", *parts, False, 3, size, CLASSES, (0.5,) * 3, (0.29,) * 3, "noise")


def make_run(
    config: RunConfig, dataset: Dataset | None = None, *, steps: int = 1, context: Context | None = None
) -> Run:
    """Return a run whose steps all cost the same, without the extra work at an epoch's last step.

    Args:
        config: of the run.
        dataset: default: random images.
        steps: per epoch, where the dataset is made here.
        context: default: one process.
    """
    if dataset is None:
        size = config.data.image_size
        assert size is not None  # set by every `Options.run`
        dataset = random_dataset(steps * config.train.batch_size, size)
    run = Run(config, context or LocalContext(), dataset)
    run.measures_gradient_share = False
    return run


def fixed_batch(run: Run) -> Batch:
    """Return one batch of a run, on its device."""
    indices = torch.arange(run.config.train.batch_size)
    return run.views.batch(run.dataset.train, indices, epoch=0)


def step(run: Run, batch: Batch) -> None:
    """Train on a batch that is already on the device."""
    run.optimizer.zero_grad(set_to_none=True)
    run.model(batch, run.autocast).total.backward()
    run.optimizer.step()
    run.model.update_teachers()


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


class TimedSteps:
    """A training of one step per epoch, whose parts are timed by hooks, without a synchronisation.

    Args:
        options: sizes.
        encoder: its name.
        recon: add the reconstruction branch.

    Attributes:
        rounds: per step, seconds of each part; `optimizer` includes the teachers' update and the epoch's end.
    """

    def __init__(self, options: Options, encoder: str, recon: bool):
        self.name = "step with reconstruction" if recon else "step"
        self.rounds: list[dict[str, float]] = []
        self._moments: list[tuple[str, Any]] = []
        dataset = random_dataset(options.batch_size, options.image_size)
        images = _TimedImages(dataset.train.images.take(torch.arange(options.batch_size)), self._mark)
        dataset = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))
        self.run = make_run(options.run(encoder, recon=recon, compile=options.compile), dataset)
        self._add_hooks()

    def _add_hooks(self) -> None:
        """Mark the end of each part; the backward pass visits reconstruction, method and encoder in this order."""
        model, mark, encode = self.run.model, self._mark, self.run.model.encode

        def encode_and_mark(encoder: nn.Module, images: Tensor, **masked: Tensor) -> Tensor:
            tokens = encode(encoder, images, **masked)
            if encoder is model.encoder:  # a teacher's pass belongs to the method
                mark("encoder")
                tokens.register_hook(lambda gradient: mark("method"))
            return tokens

        def before_reconstruction(module: nn.Module, inputs: tuple) -> None:
            mark("method")
            for tokens in inputs[0]:
                if tokens.requires_grad:
                    tokens.register_hook(lambda gradient: mark("reconstruction"))

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
        """Note the moment at which a part ends."""
        moment: Any = time.perf_counter()
        if torch.cuda.is_available():
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._moments.append((name, moment))


@dataclasses.dataclass(frozen=True)
class _TimedImages(MemoryImages):
    mark: Callable[[str], None]

    def take(self, indices: Tensor) -> Tensor:
        self.mark("augmentation")  # a pair's parameters are drawn before its images are read
        pixels = super().take(indices)
        self.mark("data")
        return pixels
