"""The evaluation against the training that it ends."""

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, interleave, row
from eqssl.bench.training import make_run, random_dataset
from eqssl.config import TrainConfig
from eqssl.evaluation.protocol import evaluate

AT_MOST = 0.1


def measure(options: Options) -> list[Row]:
    """Return the time of the evaluation over that of the default number of epochs on its training images."""
    sizes, encoder = options.evaluate, options.encoders[0]
    dataset = random_dataset(sizes.train_images, options.image_size, eval_images=sizes.images)
    run = make_run(options.run(encoder, recon=True), steps=options.steps)
    seconds = interleave(
        {"epoch": run.next_epoch, "evaluation": lambda: evaluate(run.model.encoder, dataset, config=sizes)},
        options.seconds,
    )
    epochs = TrainConfig().epochs
    training_s = seconds["epoch"] * epochs * sizes.train_images / len(run.dataset.train)
    name = f"{encoder}: {sizes.level} evaluation, {sizes.train_images} + {sizes.images} images"
    training = f"training of {epochs} epochs on {sizes.train_images} images"
    return [row("evaluation", name, seconds["evaluation"], training, training_s, at_most=AT_MOST)]
