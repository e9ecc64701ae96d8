"""The Parquet layout of the Hugging Face hub, on any filesystem that pyarrow opens.

Splits are told by the files' names (train-*, val-* or validation-*, test-*) in the folder or in its `data`; a single
file, or files named otherwise, are train. A missing val is 10 % of train, a missing test is half of val, and where both
lack they are 10 % of train each: drawn once by a fixed seed, by object where there is a column `object`. A val or test
without labels counts as missing where train has them, as many a hub's test. The image column is a struct<bytes, path>
or binary; each further column of numbers or of equally long lists of numbers is a factor, others are not read.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from eqssl.config import DataConfig
from eqssl.data.dataset import Dataset, ImageStore, Split
from eqssl.data.decoding import BadImages, Reader
from eqssl.data.pairs import altered_by
from eqssl.data.parquet_files import common_schema, content_digest, find_files
from eqssl.data.stores import channel_statistics, select

logger = logging.getLogger(__name__)

CUT_SEED = 0
OBJECT_COLUMN = "object"


def load(config: DataConfig) -> Dataset:
    """Return the images of a Parquet file or folder.

    Args:
        config: path, image_column, label_column, image_size, max_bad_images and cache are used.

    Raises:
        ValueError: for a path that is not there, no or broken Parquet, a missing column, too many bad images, or
            images of several sizes without image_size.
    """
    files = find_files(config.path)
    labelled = [config.label_column] if config.label_column != DataConfig.label_column else []
    schema = common_schema(files, required=[config.image_column, *labelled])
    digest = _digest(content_digest(files), config)
    asked = (config.label_column, OBJECT_COLUMN)
    columns = [field.name for field in schema if field.name in asked or _is_numeric(field.type)]
    reader = Reader(config.image_column, columns, config.image_size, BadImages(config.max_bad_images))
    splits, first_id = {}, 0
    for name, of_split in files.items():
        cached = Path(config.cache).expanduser() / "encoded" / f"{digest}-{name}.arrow"
        images, table = reader.read(of_split, cached)
        splits[name] = _split(images, table, config.label_column, first_id)
        first_id += len(images)
    splits = _complete(_with_labels(splits, config.path))
    train = splits["train"]
    shapes = {name: split.images.take(torch.zeros(1, dtype=torch.int64)).shape[1:] for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        known = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"--data.path {config.path!r}: the splits' images differ in channels or size: {known}")
    mean, std = channel_statistics(train.images)
    return Dataset(
        name="parquet",
        **splits,
        paired=OBJECT_COLUMN in schema.names,
        channels=shapes["train"][0],
        image_size=shapes["train"][1],
        num_classes=0 if train.labels is None else max(int(split.labels.max()) + 1 for split in splits.values()),
        mean=mean,
        std=std,
        digest=digest,
        altered_by=altered_by(train.factors),
    )


def _digest(content: str, config: DataConfig) -> str:
    options = (content, config.image_size, config.image_column, config.label_column, config.max_bad_images)
    return hashlib.sha256(repr(options).encode()).hexdigest()[:16]


def _split(images: ImageStore, table: pa.Table, label_column: str, first_id: int) -> Split:
    """Return a split whose images are numbered from first_id on."""
    labels = objects = None
    factors = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name == label_column:
            labels = _labels(column, name)
        elif name == OBJECT_COLUMN:
            objects = _objects(column)
        elif _is_ragged(column):
            logger.warning("column %r is no factor, since its lists are not equally long", name)
        else:
            factors[name] = _factor(column, name)
    return Split(images, torch.arange(first_id, first_id + len(images)), labels, objects, factors)


def _is_numeric(kind: pa.DataType) -> bool:
    kind = kind.value_type if _is_list(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_ragged(column: pa.Array) -> bool:
    return _is_list(column.type) and len(pc.list_value_length(column).unique()) > 1


def _labels(column: pa.Array, name: str) -> Tensor | None:
    """Return classes, or None where all are -1, the hub's mark of unknown ones."""
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"--data.label-column {name!r} is {column.type}, {column.null_count} null; allowed: integers")
    labels = torch.from_numpy(column.to_numpy().astype(np.int64))
    if bool((labels == -1).all()):
        return None
    if int(labels.min()) < 0:
        raise ValueError(f"--data.label-column {name!r} holds {int(labels.min())}; allowed: 0 or more")
    return labels


def _objects(column: pa.Array) -> Tensor:
    """Return numbers as they are, and the rank of names of any other type."""
    names = column.to_numpy(zero_copy_only=False)
    if not pa.types.is_integer(column.type):
        names = np.unique(names, return_inverse=True)[1]
    return torch.from_numpy(names.astype(np.int64))


def _factor(column: pa.Array, name: str) -> Tensor:
    flat = column.flatten() if _is_list(column.type) else column
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    if column.null_count or not np.isfinite(values).all():
        raise ValueError(f"column {name!r} is a factor, and has values that are missing or not finite")
    return torch.from_numpy(values.reshape(len(column), -1))


def _with_labels(splits: dict[str, Split], path: str) -> dict[str, Split]:
    """Return the splits without those that cannot be asked for the classes which train has."""
    if splits["train"].labels is None:
        return splits
    for name in [name for name, split in splits.items() if split.labels is None]:
        logger.warning("--data.path %s: %s has no labels, and its place is taken by images with labels", path, name)
        del splits[name]
    return splits


def _complete(splits: dict[str, Split]) -> dict[str, Split]:
    """Return train, val and test, the missing ones cut from the others."""
    train, val, test = (splits.get(name) for name in ("train", "val", "test"))
    if val is None:
        train, val = _cut(train, 0.1 if test else 0.2)
    if test is None:
        val, test = _cut(val, 0.5)
    return {"train": train, "val": val, "test": test}


def _cut(split: Split, share: float) -> tuple[Split, Split]:
    """Return the rest and a share of a split, no object in both."""
    units = torch.arange(len(split)) if split.objects is None else split.objects
    names = units.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(CUT_SEED))
    held = torch.isin(units, names[order[: max(1, round(share * len(names)))]])
    if bool(held.all()):
        raise ValueError(f"{len(split)} images of {len(names)} objects are too few to cut train, val and test from")
    return select(split, (~held).nonzero()[:, 0]), select(split, held.nonzero()[:, 0])
