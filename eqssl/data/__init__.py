"""Sources of images, labels and known factors: one file each, with a function `load`."""

import dataclasses
import hashlib
import importlib
import logging
import warnings
from typing import TYPE_CHECKING

from eqssl.config import IN_FOLDERS, DataConfig, check_known, check_source

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset, Source

__all__ = ["load_data", "register_source"]

logger = logging.getLogger(__name__)

# Pillow warns above 90 million pixels, a size that cameras reach, and refuses images of twice as many.
warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit", RuntimeWarning)

SUBSET_SEED = 0
# Names of modules rather than functions, so that a source's imports cost time only if it is used.
SOURCES: dict[str, "str | Source"] = {
    "solids": "eqssl.data.synthetic.solids",
    "3diebench": "eqssl.data.threediebench",
    "parquet": "eqssl.data.parquet",
    **dict.fromkeys(IN_FOLDERS, "eqssl.data.folders"),
}


def register_source(name: str, loader: "Source") -> None:
    """Make a source available as `--data.source NAME`.

    Args:
        name: the name; an existing one is replaced.
        loader: takes the DataConfig and returns the Dataset; `load_data` applies image_size, train_images and pairs.
    """
    SOURCES[name] = loader


def load_data(config: DataConfig) -> "Dataset":
    """Return the images of a source, the same in every process for the same configuration.

    Args:
        config: the source and its options.

    Raises:
        ValueError: naming the option, its value and the allowed values, for anything that cannot be loaded.
    """
    check_known("data.source", config.source, sorted(SOURCES))
    check_source(config, ["path"] if config.path is not None else [])
    from eqssl.data.stores import FramedImages, ResizedImages

    source = SOURCES[config.source]
    loader = importlib.import_module(source).load if isinstance(source, str) else source
    dataset: Dataset = loader(config)
    if config.stored_size is not None and not isinstance(dataset.train.images, FramedImages):
        raise ValueError(
            f"--data.stored-size is {config.stored_size}; allowed for --data.source {config.source}: none, since its "
            "images are squares of --data.image-size"
        )
    if config.pairs != "auto":
        dataset = dataclasses.replace(dataset, paired=config.pairs == "object")
    if dataset.paired and any(split.objects is None for split in dataset.splits.values()):
        raise ValueError(
            f"--data.pairs is 'object', but {config.source} does not say which images show one object; "
            "allowed: auto, image"
        )
    if (size := config.image_size) not in (None, dataset.image_size):
        dataset = dataset.map_splits(lambda split: dataclasses.replace(split, images=ResizedImages(split.images, size)))
        dataset = dataclasses.replace(dataset, image_size=size)
    if config.train_images is not None:
        dataset = _reduced(dataset, config.train_images)
    dataset = _check(dataset, config.source if config.path is None else f"{config.source}, --data.path {config.path}")
    options = (dataset.digest, dataset.paired, dataset.image_size, config.train_images)
    return dataclasses.replace(dataset, digest=hashlib.sha256(repr(options).encode()).hexdigest()[:16])


def _reduced(dataset: "Dataset", count: int) -> "Dataset":
    """Return the data set with a subset of its training images: whole objects if a pair is two views of one object."""
    import torch

    from eqssl.data.stores import select

    train = dataset.train
    if count > len(train):
        raise ValueError(f"--data.train-images is {count}; allowed: at most {len(train)}, which {dataset.name} has")
    units = train.units if dataset.paired else torch.arange(len(train))
    names, unit, sizes = units.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SUBSET_SEED))
    chosen = order[sizes[order].cumsum(0) <= count]
    if not len(chosen):
        raise ValueError(f"--data.train-images is {count}; allowed: at least the views of one object")
    kept = torch.isin(unit, chosen).nonzero()[:, 0]
    return dataclasses.replace(dataset, train=select(train, kept))


def _check(dataset: "Dataset", where: str) -> "Dataset":
    """Return the data set, without labels if all training images have the same one, such as photos in a single folder.

    Args:
        dataset: the data set; classes that a split lacks are named in a warning.
        where: source and path, for messages.

    Raises:
        ValueError: for an object with a single view, invalid values of a factor, or a split without labels if train has
            them.
    """
    import torch

    from eqssl.data.dataset import few
    from eqssl.data.pairs import KNOWN, find_fault

    for name, split in dataset.splits.items() if dataset.paired else ():
        for factor in KNOWN.keys() & split.factors:
            if fault := find_fault(factor, split.factors[factor]):
                raise ValueError(f"--data.source {where}: {factor} of image {fault[0]} of {name} {fault[1]}")
        objects, views = split.units.unique(return_counts=True)
        if len(single := objects[views < 2].tolist()):
            raise ValueError(
                f"--data.source {where}: {len(single)} of {len(objects)} objects of {name} have a single view "
                f"({few(single)}), and a pair is two; allowed: two or more of each, or --data.pairs image"
            )
    labels = {name: split.labels.unique() for name, split in dataset.splits.items() if split.labels is not None}
    if "train" in labels and len(labels) < 3:
        (name, *_) = dataset.splits.keys() - labels.keys()
        raise ValueError(f"--data.source {where}: train has labels, {name} has none; allowed: in all or not in train")
    if "train" in labels and len(labels["train"]) < 2:
        logger.warning("--data.source %s: all images of train are of one class, so no accuracy is measured", where)
        unlabelled = dataset.map_splits(lambda split: dataclasses.replace(split, labels=None))
        return dataclasses.replace(unlabelled, num_classes=0, class_names=())
    every = torch.cat([*labels.values(), torch.empty(0, dtype=torch.int64)]).unique()
    missing = {name: every[~torch.isin(every, of_split)].tolist() for name, of_split in labels.items()}
    if any(missing.values()):
        names = dict(enumerate(dataset.class_names))
        lacks = [
            f"{name} lacks {len(classes)} ({few([names.get(number, number) for number in classes])})"
            for name, classes in missing.items()
            if classes
        ]
        logger.warning("--data.source %s: of %d classes, %s", where, len(every), ", ".join(lacks))
    return dataset
