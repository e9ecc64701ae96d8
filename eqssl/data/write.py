"""Write images in the Parquet layout of the Hugging Face hub; a half-written data set is never visible."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from eqssl.config import DataConfig

ROW_GROUP_BYTES = 4 << 20
FILE_BYTES = 512 << 20

Row = dict[str, Any]  # column -> value; image is {"bytes": ..., "path": ...}


def cache_folder(config: DataConfig) -> Path:
    """Make and return the folder of `--data.cache`; ValueError if that fails, such as without a home directory."""
    try:
        folder = Path(config.cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"--data.cache is {config.cache!r}; allowed: a folder that can be made: {error}") from error
    return folder


def make_once(target: Path, make: Callable[[], None]) -> None:
    """Make a missing file or folder of a cache; one of the machine's processes makes it while the others wait.

    Args:
        target: the file or folder.
        make: makes it, atomically.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):  # released if its process is killed
            if not target.exists():
                make()


def image_schema(classes: Sequence[str], factors: Mapping[str, int] | None = None) -> pa.Schema:
    """Return the columns image and label (int64) and, with factors, object (int64) and one column per factor.

    Args:
        classes: names of the labels 0, 1, ...
        factors: name -> number of components (float32), or None.
    """
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    if factors:
        fields.append(("object", pa.int64()))
        features["object"] = {"dtype": "int64", "_type": "Value"}
    for name, length in (factors or {}).items():
        value = {"dtype": "float32", "_type": "Value"}
        fields.append((name, pa.float32() if length == 1 else pa.list_(pa.float32(), length)))
        features[name] = value if length == 1 else {"feature": value, "length": length, "_type": "Sequence"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def write_splits(folder: Path, splits: Mapping[str, Iterable[Row]], schema: pa.Schema) -> None:
    """Write `SPLIT-00000-of-00001.parquet` and so on, in row groups and files of bounded size.

    A killed process leaves no folder; of two that write at once, the first to finish wins.

    Args:
        folder: to be made by this call, with its parents.
        splits: train, val, test -> rows, read one by one.
        schema: the columns.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for split, rows in splits.items():
            _write_split(temporary, split, rows, schema)
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(folder: Path, split: str, rows: Iterable[Row], schema: pa.Schema) -> None:
    parts: list[Path] = []  # their number is known only afterwards
    groups = _row_groups(rows, schema)
    for group in groups:
        parts.append(folder / f"{split}-{len(parts)}")
        # Encoded images neither compress further nor repeat.
        with pq.ParquetWriter(parts[-1], schema, compression="none", use_dictionary=False) as writer:
            writer.write_table(group)
            written = group.nbytes
            while written < FILE_BYTES and (group := next(groups, None)) is not None:
                writer.write_table(group)
                written += group.nbytes
    for number, part in enumerate(parts):
        part.rename(folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet")


def _row_groups(rows: Iterable[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"] or row["image"]["path"] or "")
        if size >= ROW_GROUP_BYTES:
            yield pa.Table.from_pylist(group, schema)
            group, size = [], 0
    if group:
        yield pa.Table.from_pylist(group, schema)
