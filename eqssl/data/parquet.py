"""The Parquet layout of the Hugging Face hub, on any filesystem that pyarrow opens.

Files or their folders have the hub's usual names of splits (`eqssl.data.splits`); a single file, or files without such
names, are train. A missing val is 10 % of train, a missing test is half of val, and where both are
missing they are 10 % of train each: drawn once by a fixed seed, by object where there is a column `object`. A val or
test without labels counts as missing where train has them, as many a hub's test. The image column is a struct<bytes,
path> or binary; each further column of numbers or of equally long lists of numbers is a factor, others are not read.
"""

import hashlib
import logging
import posixpath
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem
from torch import Tensor

from eqssl.config import DataConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.data.reader import VERSION, ParquetReader
from eqssl.data.splits import SPLIT_NAMES, group_by_split
from eqssl.data.stores import channel_statistics, select

OBJECT_COLUMN = "object"
CUT_SEED = 0
DIGEST_BYTES = 1 << 16

logger = logging.getLogger(__name__)


def load(config: DataConfig) -> Dataset:
    """Return the images of a Parquet file or folder.

    Args:
        config: path, image_column, label_column, image_size, stored_size, max_bad_images and cache are used.

    Raises:
        ValueError: for a path that does not exist, no or broken Parquet, a column that is missing or cannot be used,
            too many unreadable images, or images of several sizes without image_size.
    """
    filesystem, files = find_files(config.path)
    digest = _digest(filesystem, files, config)
    reader = ParquetReader(filesystem, [file.path for file in chain(*files.values())], config)
    if not any(reader.counts.values()):
        raise ValueError(f"--data.path {config.path!r} has no readable image, since it has no row")
    stops = np.cumsum([sum(reader.counts[file.path] for file in of_split) for of_split in files.values()])
    special = (config.label_column, OBJECT_COLUMN)
    table = reader.read_table([f.name for f in reader.schema if f.name in special or _is_numeric(f.type)])
    labels, class_names = _labels(reader, table, stops)
    objects, factors = _objects(reader, table), _factors(reader, table)
    if mode := reader.feature(config.image_column).get("mode"):
        logger.warning(
            "column %r: its mode %s is not applied, images keep their own channels", config.image_column, mode
        )
    images, rows = reader.read_images(digest)
    whole = Split(
        images,
        ids=torch.arange(len(images)),
        labels=None if labels is None else labels[rows],
        objects=None if objects is None else objects[rows],
        factors={name: values[rows] for name, values in factors.items()},
    )
    splits, start = {}, 0
    for name, stop in zip(files, np.searchsorted(rows, stops).tolist(), strict=True):
        if start == stop:
            raise ValueError(f"--data.path {config.path!r} has no readable image of {name}")
        splits[name] = select(whole, slice(start, stop))
        start = stop
    splits = _complete(splits, config.path)
    if splits["train"].labels is None:
        class_names = []
    mean, std = channel_statistics(splits["train"].images)
    channels, size = images.take(torch.tensor([0])).shape[1:3]
    return Dataset(
        name="parquet",
        **splits,
        paired=objects is not None,
        channels=channels,
        image_size=size,
        num_classes=len(class_names),
        mean=mean,
        std=std,
        digest=digest,
        class_names=tuple(class_names),
    )


def find_files(path: str | None) -> tuple[FileSystem, dict[str, list[FileInfo]]]:
    """Return a filesystem and, in it, the Parquet files of train and, where there are, val and test, in order of names.

    Args:
        path: a file, a folder or a URI of either; of a folder, the files in it, else those in its `data`, else those
            in folders named like splits.

    Raises:
        ValueError: for no file, no training file, or a split in some names but not in others.
    """
    if path is None:
        raise ValueError("--data.path is not given; allowed: a Parquet file, a folder of them, or a URI of either")
    where = f"--data.path {path!r}"
    try:
        if "://" in path:
            filesystem, root = FileSystem.from_uri(path)
        else:
            filesystem, root = LocalFileSystem(), str(Path(path).expanduser().absolute())
        info = filesystem.get_file_info(root)
        if info.is_file:
            return filesystem, {"train": [info]}
        if info.type == FileType.NotFound:
            raise ValueError(f"{where} is not there")
        folders = [i for i in filesystem.get_file_info(FileSelector(root)) if i.type == FileType.Directory]
        data = [folder.path for folder in folders if folder.base_name == "data"]
        named = [folder.path for folder in folders if folder.base_name.lower() in SPLIT_NAMES]
        found: dict[str, FileInfo] = {}
        for candidates in ([root], data, named):
            inside = chain(*(filesystem.get_file_info(FileSelector(folder)) for folder in candidates))
            parquet = (
                i for i in inside if i.is_file and i.extension.lower() == "parquet" and not i.base_name.startswith(".")
            )
            found = found or {posixpath.relpath(i.path, root): i for i in parquet}
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{where} cannot be opened: {error}") from error
    if not found:
        raise ValueError(f"{where} holds no file *.parquet, nor does its folder data")
    splits = group_by_split(found, where) or {"train": sorted(found)}
    return filesystem, {split: [found[name] for name in names] for split, names in splits.items()}


def _digest(filesystem: FileSystem, files: dict[str, list[FileInfo]], config: DataConfig) -> str:
    """Return 16 hexadecimal digits of all files' names, sizes, beginnings and ends, and of the options.

    The end of a Parquet file is its footer, with the place, size and statistics of every column chunk.
    """
    content = hashlib.sha256()
    for split, file in ((split, file) for split, of_split in files.items() for file in of_split):
        with filesystem.open_input_file(file.path) as stream:
            head = stream.read_at(min(DIGEST_BYTES, file.size), 0)
            tail = stream.read_at(min(DIGEST_BYTES, file.size), max(0, file.size - DIGEST_BYTES))
        for part in (split.encode(), file.base_name.encode(), str(file.size).encode(), head, tail):
            content.update(part + b"\0")
    options = (
        VERSION,
        config.image_size,
        config.stored_size,
        config.image_column,
        config.label_column,
        config.max_bad_images,
    )
    return hashlib.sha256(repr((content.hexdigest(), *options)).encode()).hexdigest()[:16]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_numeric(kind: pa.DataType) -> bool:
    kind = kind.value_type if _is_list(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _values(reader: ParquetReader, table: pa.Table, name: str) -> np.ndarray:
    """Return the values of a column, of lists the values of all in turn.

    Raises:
        ValueError: for nulls, with the first one's place.
    """
    column = table[name]
    if column.null_count:
        place = reader.place(pc.index(pc.is_null(column), True).as_py())
        raise ValueError(f"column {name!r} has {column.null_count} null, the first in {place}; allowed: none")
    return (pc.list_flatten(column) if _is_list(column.type) else column).to_numpy()


def _labels(reader: ParquetReader, table: pa.Table, stops: np.ndarray) -> tuple[Tensor | None, list[str]]:
    """Return each row's class, int64 (N,), and the names of the classes.

    A class is the label of a hub's ClassLabel, else the label's rank among all. In a split where all are null or -1,
    the hub's mark of unknown labels, all are -1.

    Args:
        reader, table: of all rows.
        stops: the end of each split's rows.
    """
    name = reader.config.label_column
    if name not in table.column_names or pa.types.is_null(table[name].type):
        return None, []
    starts = [0, *stops[:-1].tolist()]
    of_splits = [table[name].slice(start, stop - start) for start, stop in zip(starts, stops.tolist(), strict=True)]
    known = [pc.fill_null(column, -1) if column.null_count == len(column) else column for column in of_splits]
    chunks = pa.chunked_array(list(chain(*(column.chunks for column in known))), table[name].type)
    labels = _values(reader, pa.table({name: chunks}), name)
    for part in np.split(labels, stops[:-1]):
        if (part < 0).any() and (part != -1).any():
            raise ValueError(f"--data.label-column {name!r} holds {part.min()}; allowed: 0 or more")
    names = reader.feature(name).get("names") or []  # of a ClassLabel, whose labels are ranks already
    if names and labels.max(initial=-1) >= len(names):
        allowed = f"0 to {len(names) - 1}, the ranks of its {len(names)} classes"
        raise ValueError(f"--data.label-column {name!r} holds {labels.max()}; allowed: {allowed}")
    values = np.arange(labels.max(initial=-1) + 1) if names else np.unique(labels[labels >= 0])
    if not names and len(values) and len(values) <= values[-1]:
        logger.warning("column %r: %d labels from %d to %d are numbered from 0", name, len(values), *values[[0, -1]])
    classes = np.where(labels < 0, -1, np.searchsorted(values, labels))
    return torch.from_numpy(classes), [names[v] if v < len(names) else str(v) for v in values.tolist()]


def _objects(reader: ParquetReader, table: pa.Table) -> Tensor | None:
    """Return integers unchanged, and the rank of names of any other type."""
    if OBJECT_COLUMN not in table.column_names:
        return None
    names = _values(reader, table, OBJECT_COLUMN)
    if names.dtype.kind == "f" and np.isnan(names).any():
        raise ValueError(f"column {OBJECT_COLUMN!r} has values that are no number; allowed: integers or names")
    if names.dtype.kind not in "iu":
        names = np.unique(names.astype(str), return_inverse=True)[1]
    return torch.from_numpy(names.astype(np.int64))


def _factors(reader: ParquetReader, table: pa.Table) -> dict[str, Tensor]:
    """Return all other columns of numbers or of equally long lists, float32 (N, k)."""
    factors = {}
    for name in table.column_names:
        if name in (reader.config.label_column, OBJECT_COLUMN):
            continue
        lengths = pc.list_value_length(table[name]).unique().to_pylist() if _is_list(table[name].type) else [1]
        if len(lengths) > 1 or lengths == [0]:
            logger.warning("column %r is no factor, since its lists are not equally long or empty", name)
            continue
        exact = _values(reader, table, name)
        values = exact.astype(np.float32)
        if exact.dtype.kind in "iu" and (values.astype(exact.dtype) != exact).any():
            logger.warning("column %r is a factor, whose integers up to %d are rounded to float32", name, exact.max())
        if not np.isfinite(values).all():
            raise ValueError(f"column {name!r} is a factor, and has values that are missing or not finite")
        factors[name] = torch.from_numpy(values.reshape(len(table), -1))
    return factors


def _complete(splits: dict[str, Split], path: str | None) -> dict[str, Split]:
    """Return train, val and test, a missing one cut from the others.

    Labels that are all -1 are none. A val or test without labels, where train has them, counts as missing.
    """
    for name, split in list(splits.items()):
        if split.labels is not None and bool((split.labels < 0).all()):
            splits[name] = replace(split, labels=None)
            if splits["train"].labels is not None:
                logger.warning("--data.path %s: %s has no labels; images with labels take its place", path, name)
                del splits[name]
    train, val, test = splits["train"], splits.get("val"), splits.get("test")
    if val is None:
        train, val = _cut(train, 0.1 if test else 0.2)
    if test is None:
        val, test = _cut(val, 0.5)
    return {"train": train, "val": val, "test": test}


def _cut(split: Split, share: float) -> tuple[Split, Split]:
    """Return the rest and a share of a split, no object in both."""
    names = split.units.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(CUT_SEED))
    chosen = torch.isin(split.units, names[order[: max(1, round(share * len(names)))]])
    if bool(chosen.all()):
        raise ValueError(f"{len(split)} images of {len(names)} objects are too few to cut train, val and test from")
    return select(split, (~chosen).nonzero()[:, 0]), select(split, chosen.nonzero()[:, 0])
