"""The Parquet layout of the Hugging Face hub, on any filesystem that pyarrow opens.

Files or their folders have the hub's usual split names (`eqssl.data.splits`); a single file, or files without such
names, are train. A missing val is 10 % of train, a missing test is half of val; if both are missing, each is 10 % of
train. They are drawn once by a fixed seed, by object if there is a column `object`. A val or test without labels, such
as many a test split on the hub, counts as missing if train has labels. The image column is a struct<bytes, path> or
binary; every other column of numbers or of equally long lists of numbers is a factor; the rest are not read.

Metrics use only the factors in `eqssl.data.pairs.KNOWN`, and only with pairs of objects. Invalid values in one of these
are an error; any other factor with invalid values is left out, with a warning.
"""

import hashlib
import logging
import posixpath
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem
from torch import Tensor

from eqssl.config import DataConfig
from eqssl.data.dataset import Dataset, Split, few
from eqssl.data.pairs import HUES, KNOWN, find_fault
from eqssl.data.reader import VERSION, ParquetReader
from eqssl.data.splits import SPLIT_NAMES, group_by_split
from eqssl.data.stores import channel_statistics, select
from eqssl.files import as_path, first_answer

OBJECT_COLUMN = "object"
CUT_SEED = 0
DIGEST_BYTES = 1 << 16
TOLERANCE = 1e-3  # of a quaternion's length and of a turn; rounding to float32 or text stays within it
OBJECT_TYPES = (
    pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_null,
)  # fmt: skip
SCHEMES = ("file://", "s3://", "gs://", "abfs://", "hdfs://", "hf://")  # that pyarrow opens

logger = logging.getLogger(__name__)


def load(config: DataConfig) -> Dataset:
    """Return the images of a Parquet file or folder.

    Args:
        config: path, image_column, label_column, image_size, stored_size, max_bad_images and cache are used.

    Raises:
        ValueError: for a path that does not exist, missing or broken Parquet, a column that is missing or cannot be
            used, too many unreadable images, or images of several sizes without image_size.
    """
    filesystem, files = find_files(config.path)
    digest = _digest(filesystem, files, config)
    reader = ParquetReader(filesystem, [file.path for file in chain(*files.values())], config)
    counts = {name: sum(reader.counts[file.path] for file in of_split) for name, of_split in files.items()}
    for name in files:
        if not counts[name]:
            raise _no_image(name, files[name], "no row")
    stops = np.cumsum([*counts.values()])
    special = (config.label_column, OBJECT_COLUMN)
    table = reader.read_table([f.name for f in reader.schema if f.name in special or _is_numeric(f.type)])
    labels, class_names = _labels(reader, table, stops)
    objects, factors = _objects(reader, table, dict(zip(files, stops.tolist(), strict=True))), _factors(reader, table)
    if mode := reader.feature(config.image_column).get("mode"):
        logger.warning(
            "column %r: its mode %s is not applied, images keep their own channels", config.image_column, mode
        )
    # The digest, of the files' ends, misses a change in between that leaves a file's size and footer.
    changed = [(file.path, file.mtime_ns) for file in chain(*files.values())]
    images, rows = reader.read_images(f"{digest}-{hashlib.sha256(repr(changed).encode()).hexdigest()[:16]}")
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
            raise _no_image(name, files[name], f"{counts[name]} rows, none of them readable")
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


def _no_image(split: str, files: list[FileInfo], content: str) -> ValueError:
    paths = few([file.path for file in files])
    return ValueError(f"--data.path: {split} has no readable image: {content} in {paths}; allowed: one or more")


def find_files(path: str | None) -> tuple[FileSystem, dict[str, list[FileInfo]]]:
    """Return a filesystem and its Parquet files of train and, if present, val and test, sorted by name.

    Args:
        path: a file, a folder or a URI of either; for a folder, the files in it, in its subfolder `data` and in
            subfolders named like splits.

    Raises:
        ValueError: if there is no file or no training file, or only some of the names contain a split.
    """
    if path is None:
        raise ValueError("--data.path is not given; allowed: a Parquet file, a folder of them, or a URI of either")
    where = f"--data.path {path!r}"
    try:
        filesystem, root, info = first_answer(partial(_open, path)) if "://" in path else _open(path)
    except Exception as error:  # each storage's library has its own types
        raise ValueError(
            f"{where} cannot be opened: {str(error).rstrip('. ')}; allowed: a file or folder on a disk, or a URI with "
            f"{', '.join(SCHEMES)}"
        ) from error
    if info.is_file:
        return filesystem, {"train": [info]}
    if info.type == FileType.NotFound:
        raise ValueError(f"{where} is not there")
    try:
        folders = [i for i in filesystem.get_file_info(FileSelector(root)) if i.type == FileType.Directory]
        inner = [folder.path for folder in folders if folder.base_name.lower() in ("data", *SPLIT_NAMES)]
        inside = chain(*(filesystem.get_file_info(FileSelector(folder)) for folder in (root, *inner)))
        found = {
            posixpath.relpath(i.path, root): i
            for i in inside
            if i.is_file and i.extension.lower() == "parquet" and not i.base_name.startswith(".")
        }
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{where} cannot be opened: {error}") from error
    if not found:
        raise ValueError(f"{where} holds no file *.parquet, nor do its folders data, train, val and test")
    splits = group_by_split(found, where) or {"train": sorted(found)}
    return filesystem, {split: [found[name] for name in names] for split, names in splits.items()}


def _open(path: str) -> tuple[FileSystem, str, FileInfo]:
    """Return the filesystem of a path or URI, the path in it, and its `FileInfo`."""
    if "://" in path:
        filesystem, root = FileSystem.from_uri(path)
    else:
        filesystem, root = LocalFileSystem(), str(as_path(path, "--data.path").absolute())
    return filesystem, root, filesystem.get_file_info(root)


def _digest(filesystem: FileSystem, files: dict[str, list[FileInfo]], config: DataConfig) -> str:
    """Return a hash of all files' names, sizes, beginnings and ends, and of the options: 16 hexadecimal digits.

    The end of a Parquet file is its footer, with the position, size and statistics of every column chunk.
    """
    content = hashlib.sha256()
    for split, file in ((split, file) for split, of_split in files.items() for file in of_split):
        with filesystem.open_input_file(file.path) as stream:
            head = stream.read_at(min(DIGEST_BYTES, file.size), 0)
            tail = stream.read_at(min(DIGEST_BYTES, file.size), max(0, file.size - DIGEST_BYTES))
        for part in (split.encode(), file.base_name.encode(), str(file.size).encode(), head, tail):
            content.update(part + b"\0")
    options = config.image_size, config.stored_size, config.image_column, config.label_column, config.max_bad_images
    return hashlib.sha256(repr((content.hexdigest(), VERSION, *options)).encode()).hexdigest()[:16]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_numeric(kind: pa.DataType) -> bool:
    kind = kind.value_type if _is_list(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _values(reader: ParquetReader, table: pa.Table, name: str) -> np.ndarray:
    """Return the values of a column; those of lists are concatenated.

    Raises:
        ValueError: for nulls, naming the first one's place.
    """
    column = table[name]
    if column.null_count:
        place = reader.place(pc.index(pc.is_null(column), True).as_py())
        raise ValueError(f"column {name!r} has {column.null_count} null, the first in {place}; allowed: none")
    return (pc.list_flatten(column) if _is_list(column.type) else column).to_numpy()


def _labels(reader: ParquetReader, table: pa.Table, stops: np.ndarray) -> tuple[Tensor | None, list[str]]:
    """Return each row's class, int64 (N,), and the names of the classes.

    A class is the label itself for the hub's ClassLabel, else the label's rank among all labels. In a split where all
    labels are null or -1, the hub's marker of unknown labels, all classes are -1.

    Args:
        reader, table: with all rows.
        stops: the end of each split's rows.
    """
    name = reader.config.label_column
    if name not in table.column_names or pa.types.is_null(table[name].type):
        similar = [column for column in reader.schema.names if column != name and "label" in column.lower()]
        if similar:
            logger.warning("no labels in a column %r; --data.label-column can name another: %s", name, few(similar))
        return None, []
    starts = [0, *stops[:-1].tolist()]
    of_splits = [table[name].slice(start, stop - start) for start, stop in zip(starts, stops.tolist(), strict=True)]
    filled = [pc.fill_null(column, 0) if column.null_count == len(column) else column for column in of_splits]
    chunks = pa.chunked_array(list(chain(*(column.chunks for column in filled))), table[name].type)
    labels = _values(reader, pa.table({name: chunks}), name)
    for start, part in zip(starts, np.split(labels, stops[:-1]), strict=True):
        if (part < 0).any() and (part != -1).any():
            place = reader.place(start + int(part.argmin()))
            raise ValueError(f"--data.label-column {name!r} holds {part.min()}, in {place}; allowed: 0 or more")
    unknown = np.concatenate([np.full(len(column), column.null_count == len(column)) for column in of_splits])
    unknown |= labels < 0
    known = labels[~unknown]
    largest = int(known.max()) if len(known) else -1
    names = reader.feature(name).get("names") or []  # those of a ClassLabel, whose labels are already ranks
    if names and largest >= len(names):
        allowed = f"0 to {len(names) - 1}, the ranks of its {len(names)} classes"
        place = reader.place(int(labels.argmax()))
        raise ValueError(f"--data.label-column {name!r} holds {largest}, in {place}; allowed: {allowed}")
    values = np.arange(largest + 1) if names else np.unique(known)
    if not names and len(values) and len(values) <= values[-1]:
        logger.warning("column %r: %d labels from %d to %d are numbered from 0", name, len(values), *values[[0, -1]])
    classes = np.where(unknown, -1, np.searchsorted(values, labels))
    return torch.from_numpy(classes), [names[v] if v < len(names) else str(v) for v in values.tolist()]


def _objects(reader: ParquetReader, table: pa.Table, stops: dict[str, int]) -> Tensor | None:
    """Return each row's object, int64 (N,): integers unchanged, names and other numbers as ranks; None without objects.

    Args:
        reader, table: with all rows.
        stops: split -> end of its rows. Objects in several splits are reported.
    """
    if OBJECT_COLUMN not in table.column_names:
        return None
    column = table[OBJECT_COLUMN]
    if not any(test(column.type) for test in OBJECT_TYPES):
        raise ValueError(f"column {OBJECT_COLUMN!r} is {column.type}; allowed: integers or names")
    names = _values(reader, table, OBJECT_COLUMN)
    if names.dtype.kind == "f" and np.isnan(names).any():
        place = reader.place(int(np.isnan(names).argmax()))
        raise ValueError(f"column {OBJECT_COLUMN!r} holds {np.nan}, in {place}; allowed: integers or names")
    if names.dtype.kind not in "iu":
        names = np.unique(names.astype(str), return_inverse=True)[1]
    objects = torch.from_numpy(names.astype(np.int64))
    shared, start = [], 0
    for split, stop in stops.items():
        seen = torch.isin(objects[start:stop], objects[:start])
        if count := len(objects[start:stop][seen].unique()):
            example = column[start + int(seen.nonzero()[0])].as_py()
            shared.append(f"{count} of {split}, such as {example!r},")
        start = stop
    if shared:
        logger.warning(
            "--data.path %s: objects %s are in another split too: unless each split numbers its own objects, metrics "
            "are of objects seen in training", reader.config.path, " and ".join(shared),
        )  # fmt: skip
    return objects


def _factors(reader: ParquetReader, table: pa.Table) -> dict[str, Tensor]:
    """Return the factors: all other columns of numbers or of equally long lists, float32 (N, k).

    Raises:
        ValueError: for invalid values in a factor that metrics use; any other is left out, with a warning.
    """
    pairs, has_objects = reader.config.pairs, OBJECT_COLUMN in table.column_names
    used = KNOWN if has_objects and pairs != "image" else ()
    known = [name for name in KNOWN if name in reader.schema.names]
    if known and not has_objects and pairs == "auto":
        logger.warning("no metric of %s: it needs pairs, by a column %r", few(known), OBJECT_COLUMN)
    factors = {}
    for name in dict.fromkeys([*table.column_names, *(name for name in known if name in used)]):
        if name in (reader.config.label_column, OBJECT_COLUMN):
            continue
        try:
            factors[name] = _factor(reader, table, name)
        except ValueError as error:
            if name in used:
                raise
            logger.warning("%s; the column is left out, since no metric uses it", error)
    return factors


def _factor(reader: ParquetReader, table: pa.Table, name: str) -> Tensor:
    """Return a column of numbers or of equally long lists, float32 (N, k); quaternions are scaled to length 1.

    Raises:
        ValueError: for values that cannot be a factor, naming the first one's place.
    """
    if name not in table.column_names:
        where = f"column {name!r} of --data.path {reader.config.path!r}"
        raise ValueError(f"{where} is {reader.schema.field(name).type}; allowed: numbers or lists of numbers")
    exact, column = _values(reader, table, name), table[name]
    if _is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy()
        if (odd := (lengths != lengths[0]) | (lengths == 0)).any():
            row = int(odd.argmax())
            raise ValueError(
                f"column {name!r} is not a factor: its lists have {lengths[0]} numbers and, in {reader.place(row)}, "
                f"{lengths[row]}; allowed: equally long lists that are not empty"
            )
    values = torch.from_numpy(exact.astype(np.float64).reshape(len(table), -1))
    if fault := find_fault(name, values):
        row, reason = fault
        raise ValueError(f"column {name!r} {reason}, in {reader.place(row)}")
    if exact.dtype.kind in "iu" and (exact.astype(np.float32).astype(exact.dtype) != exact).any():
        logger.warning("column %r is a factor, whose integers up to %d are rounded to float32", name, exact.max())
    if name in HUES and (largest := values.abs().max()) > 1 + TOLERANCE:
        logger.warning("column %r has values up to %g: a hue is in turns, 0 to 1", name, largest)
    if name == "quaternion":
        length = values.norm(dim=1, keepdim=True)
        if (scaled := (length - 1).abs() > TOLERANCE).any():
            logger.warning("column %r: %d of %d are scaled to length 1", name, scaled.sum(), len(values))
            values = torch.where(scaled, values / length, values)
    return values.float()


def _complete(splits: dict[str, Split], path: str | None) -> dict[str, Split]:
    """Return train, val and test; a missing one is cut from the others.

    Labels that are all -1 count as absent. A val or test without labels counts as missing if train has them.
    """
    for name, split in list(splits.items()):
        if split.labels is not None and bool((split.labels < 0).all()):
            splits[name] = replace(split, labels=None)
            if splits["train"].labels is not None:
                logger.warning("--data.path %s: %s has no labels; images with labels take its place", path, name)
                del splits[name]
    train, val, test = splits["train"], splits.get("val"), splits.get("test")
    if val is None:
        train, val = _cut(train, 0.1 if test else 0.2, path)
    if test is None:
        val, test = _cut(val, 0.5, path)
    return {"train": train, "val": val, "test": test}


def _cut(split: Split, share: float, path: str | None) -> tuple[Split, Split]:
    """Return the rest of a split and a share of it, with no object in both."""
    names = split.units.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(CUT_SEED))
    chosen = torch.isin(split.units, names[order[: max(1, round(share * len(names)))]])
    if bool(chosen.all()):
        raise ValueError(
            f"--data.path {path!r}: {len(split)} images of {len(names)} objects are too few to cut val or test from"
        )
    return select(split, (~chosen).nonzero()[:, 0]), select(split, chosen.nonzero()[:, 0])
