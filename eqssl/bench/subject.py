"""What is timed: a training of random images in memory, by the package's own loop."""

import torch

from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.models.model import Model
from eqssl.training.context import Alone, Context
from eqssl.training.loop import Run
from eqssl.views import Batch

CLASSES = 10


def random_dataset(images: int, size: int, held: int = 2) -> Dataset:
    """Return colour images of noise, in memory, with labels.

    Args:
        images: for training.
        size: height and width, px.
        held: for val and test each.
    """
    generator = torch.Generator().manual_seed(0)

    def split(first: int, count: int) -> Split:
        pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        ids = torch.arange(first, first + count)
        return Split(MemoryImages(pixels), ids, ids % CLASSES)

    parts = split(0, images), split(images, held), split(images + held, held)
    return Dataset("noise", *parts, False, 3, size, CLASSES, (0.5,) * 3, (0.29,) * 3, "noise")


def even_run(config: RunConfig, dataset: Dataset, context: Context | None = None) -> Run:
    """Return a run whose steps all cost the same: what an epoch's last one does beside training is left out."""
    run = Run(config, context or Alone(), dataset)
    run.weighs_terms = False
    return run


def start(config: RunConfig, steps: int = 1, context: Context | None = None) -> Run:
    """Return a run whose `next_epoch` takes so many steps on random images."""
    return even_run(config, random_dataset(steps * config.train.batch_size, config.data.image_size), context)


def fixed_batch(run: Run) -> Batch:
    """Return one batch of a run, already on its device."""
    rows, columns = run.model.encoder.grid
    indices = torch.arange(run.config.train.batch_size)
    return run.views.batch(run.dataset.train, indices, epoch=0, tokens=rows * columns)


def step(run: Run, batch: Batch) -> None:
    """Take a training step on a batch that is there already."""
    run.optimizer.zero_grad(set_to_none=True)
    run.model(batch, run.autocast).total.backward()
    run.optimizer.step()
    run.model.update_teachers()


def encoder_pass(model: Model, images: torch.Tensor, autocast: bool) -> None:
    """Run a model's encoder forward and backward: the arithmetic that no training can do without.

    Args:
        model: in training mode.
        images: float32 (2 B, C, S, S), on its device.
        autocast: as the run has it.
    """
    model.encoder.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        tokens = model.encode(model.encoder, images)
    tokens.float().sum().backward()
