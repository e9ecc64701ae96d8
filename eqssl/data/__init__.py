"""Where images, labels and known factors come from: one file per source, all read the same way."""

import dataclasses
import hashlib
import importlib
import logging
from typing import TYPE_CHECKING

from eqssl.config import DataConfig

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset, Source

__all__ = ["load_data", "register_source"]

logger = logging.getLogger(__name__)

SUBSET_SEED = 0
SPLITS = ("train", "val", "test")
NAMED = 5  # objects or classes in a message; more are counted
# Modules rather than functions, so that a source costs its imports only where it is used.
SOURCES: dict[str, "str | Source"] = {
    "solids": "eqssl.data.synthetic.solids",
    "3diebench": "eqssl.data.threediebench",
    "parquet": "eqssl.data.parquet",
    **dict.fromkeys(("imagefolder", "cifar10", "cifar100", "stl10", "fashion_mnist", "imagenet"), "eqssl.data.folders"),
}


def register_source(name: str, loader: "Source") -> None:
    """Make a source of one's own known under a name of `--data.source`.

    Args:
        name: the name; an existing one is replaced.
        loader: takes the DataConfig and returns the Dataset; `load_data` applies image_size, train_images and pairs.
    """
    SOURCES[name] = loader


def load_data(config: DataConfig) -> "Dataset":
    """Return the images of a source, the same in every process for the same configuration.

    Args:
        config: which source, and what of it.

    Raises:
        ValueError: naming the option, its value and what is allowed, for anything that cannot be loaded.
    """
    if config.source not in SOURCES:
        raise ValueError(f"--data.source is {config.source!r}; allowed: {', '.join(sorted(SOURCES))}")
    source = SOURCES[config.source]
    loader = importlib.import_module(source).load if isinstance(source, str) else source
    dataset = loader(config)
    if config.pairs != "auto":
        dataset = dataclasses.replace(dataset, paired=config.pairs == "object")
    if dataset.paired and any(getattr(dataset, name).objects is None for name in SPLITS):
        raise ValueError(f"--data.pairs is 'object', but {config.source} does not say which images show one object; "
                         "allowed: auto, image")  # fmt: skip
    if config.image_size not in (None, dataset.image_size):
        dataset = _resized(dataset, config.image_size)
    if config.train_images is not None:
        dataset = _reduced(dataset, config.train_images)
    where = config.source if config.path is None else f"{config.source}, --data.path {config.path}"
    _check_views(dataset, where)
    _check_labels(dataset, where)
    dataset = _without_one_class(dataset, where)
    _name_missing_classes(dataset, where)
    options = (dataset.digest, dataset.paired, dataset.image_size, config.train_images)
    return dataclasses.replace(dataset, digest=hashlib.sha256(repr(options).encode()).hexdigest()[:16])


def _resized(dataset: "Dataset", size: int) -> "Dataset":
    from eqssl.data.stores import ResizedImages

    splits = {
        name: dataclasses.replace(split, images=ResizedImages(split.images, size))
        for name in SPLITS
        for split in (getattr(dataset, name),)
    }
    return dataclasses.replace(dataset, image_size=size, **splits)


def _reduced(dataset: "Dataset", count: int) -> "Dataset":
    """Return the data set with a part of its training images: whole objects where these make the pairs."""
    import torch

    from eqssl.data.stores import select

    train = dataset.train
    if count > len(train):
        raise ValueError(f"--data.train-images is {count}; allowed: at most {len(train)}, which {dataset.name} has")
    units = train.objects if dataset.paired else torch.arange(len(train))
    names, unit, sizes = units.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SUBSET_SEED))
    chosen = order[sizes[order].cumsum(0) <= count]
    if not len(chosen):
        raise ValueError(f"--data.train-images is {count}; allowed: at least the views of one object")
    kept = torch.isin(unit, chosen).nonzero()[:, 0]
    return dataclasses.replace(dataset, train=select(train, kept))


def _check_views(dataset: "Dataset", where: str) -> None:
    """Refuse objects with a single view where these make the pairs.

    Raises:
        ValueError: naming the source, its folder, the split and some of the objects.
    """
    for name in SPLITS if dataset.paired else ():
        objects, views = getattr(dataset, name).objects.unique(return_counts=True)
        if len(alone := objects[views < 2]):
            raise ValueError(
                f"--data.source {where}: {len(alone)} of {len(objects)} objects of {name} have a single view "
                f"({_few(alone.tolist())}), and a pair is two; allowed: two or more of each, or --data.pairs image"
            )


def _check_labels(dataset: "Dataset", where: str) -> None:
    """Refuse held-out splits without the labels that train has.

    Raises:
        ValueError: naming the source, its folder and the split.
    """
    for name in SPLITS if dataset.train.labels is not None else ():
        if getattr(dataset, name).labels is None:
            raise ValueError(
                f"--data.source {where}: train has labels, {name} has none; allowed: in all or not in train"
            )


def _without_one_class(dataset: "Dataset", where: str) -> "Dataset":
    """Return the data set without labels where all training images have the same, as photos in a single folder."""
    if dataset.train.labels is None or len(dataset.train.labels.unique()) > 1:
        return dataset
    logger.warning("--data.source %s: all images of train are of one class, so no accuracy is measured", where)
    splits = {name: dataclasses.replace(getattr(dataset, name), labels=None) for name in SPLITS}
    return dataclasses.replace(dataset, num_classes=0, **splits)


def _name_missing_classes(dataset: "Dataset", where: str) -> None:
    """Warn of classes that only other splits have: no accuracy speaks of what is never seen or never asked."""
    import torch

    labels = {name: getattr(dataset, name).labels for name in SPLITS}
    classes = {name: of_split.unique() for name, of_split in labels.items() if of_split is not None}
    every = torch.cat([*classes.values(), torch.empty(0, dtype=torch.int64)]).unique()
    lacks = {name: every[~torch.isin(every, known)].tolist() for name, known in classes.items()}
    if any(lacks.values()):
        parts = (f"{name} lacks {len(missing)} ({_few(missing)})" for name, missing in lacks.items() if missing)
        logger.warning("--data.source %s: of %d classes, %s", where, len(every), ", ".join(parts))


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
