"""Write images in the Parquet layout of the Hugging Face hub, so that a half-written set is never seen."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

ROW_GROUP_BYTES = 4 << 20
FILE_BYTES = 512 << 20


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a path beside the target to write a file or a folder to, that becomes the target only at the end.

    A process that is killed leaves no target; of two that write at once the first to finish stays.

    Args:
        target: the file or folder to make; its parents are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.exists():
                raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def make_once(target: Path, make: Callable[[], None]) -> None:
    """Make what a cache lacks; of the processes of a machine that ask at once one makes it, and the others wait.

    Args:
        target: the file or folder.
        make: makes it, atomically.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # a process that is killed lets go of it
        if not target.exists():
            make()


def image_schema(classes: Sequence[str], factors: Mapping[str, int] | None = None) -> pa.Schema:
    """Return the columns image and label and, for a set with factors, object and one of each factor.

    Args:
        classes: names of the labels 0, 1, ...
        factors: name -> number of components, or None.
    """
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    if factors:
        fields.append(("object", pa.int64()))
        features["object"] = {"dtype": "int64", "_type": "Value"}
        for name, length in factors.items():
            value = {"dtype": "float32", "_type": "Value"}
            fields.append((name, pa.float32() if length == 1 else pa.list_(pa.float32(), length)))
            features[name] = value if length == 1 else {"feature": value, "length": length, "_type": "Sequence"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def write_splits(folder: Path, splits: Mapping[str, Iterable[dict[str, Any]]], schema: pa.Schema) -> None:
    """Write `SPLIT-00000-of-00001.parquet` and so on, in row groups and files of bounded size.

    Args:
        folder: where to; made by this call.
        splits: train, val, test -> rows, taken one by one; image is {"bytes": ..., "path": ...}.
        schema: the columns.
    """
    folder.mkdir()
    for split, rows in splits.items():
        parts = _write_parts(folder / split, rows, schema)
        for number, part in enumerate(parts):
            part.rename(folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet")


def _write_parts(stem: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> list[Path]:
    """Write `STEM-0.parquet` and so on and return their paths; how many there will be is known only afterwards."""
    parts: list[Path] = []
    with ExitStack() as current:
        written = FILE_BYTES
        for group in _row_groups(rows):
            if written >= FILE_BYTES:
                current.close()
                parts.append(stem.with_name(f"{stem.name}-{len(parts)}.parquet"))
                # Encoded images neither shrink nor repeat.
                writer = pq.ParquetWriter(parts[-1], schema, compression="none", use_dictionary=False)
                current.enter_context(writer)
                written = 0
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
            written += sum(map(_size, group))
    return parts


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += _size(row)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(row: dict[str, Any]) -> int:
    return len(row["image"]["bytes"])
