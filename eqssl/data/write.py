"""Write images in the Parquet layout of the Hugging Face hub; a half-written data set is never visible."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from eqssl.config import DataConfig
from eqssl.files import as_path

ROW_GROUP_BYTES = 4 << 20
FILE_BYTES = 512 << 20
FILES = ".files.json"  # in a written folder: name -> size in bytes; hidden, since readers of Parquet skip it

logger = logging.getLogger(__name__)

Row = dict[str, Any]  # column -> value; image is {"bytes": ..., "path": ...}


def cache_folder(config: DataConfig) -> Path:
    """Make and return the folder of `--data.cache`; ValueError if that fails, such as without a home directory."""
    try:
        folder = as_path(config.cache, "--data.cache")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--data.cache is {config.cache!r}; allowed: a folder that can be made: {error}") from error
    return folder


def make_once(target: Path, make: Callable[[], None], find_fault: Callable[[Path], str | None] | None = None) -> None:
    """Make a missing file or folder of a cache; one of the machine's processes makes it while the others wait.

    Args:
        target: the file or folder.
        make: makes it, atomically.
        find_fault: returns why an existing target is to be made again, see `missing_file`; default: never.
    """

    def fault() -> str | None:
        return find_fault(target) if find_fault and target.exists() else None

    if target.exists() and not fault():
        return
    lock = FileLock(target.with_name(f".{target.name}.lock"))  # released if its process is killed
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except OSError as error:
        raise _refusal(target, error) from error
    with held:
        if found := fault():
            logger.warning("%s is made again: %s", target, found)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        if not target.exists():
            make()


def _refusal(target: Path, error: OSError) -> ValueError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    needed = "a writable folder on a disk with room for it"
    return ValueError(f"{str(target)!r} cannot be written: {reason}; needed: {needed}")


def missing_file(folder: Path) -> str | None:
    """Return which file of `write_splits` was removed, cut or added since, in words; None for a whole folder.

    Otherwise a lost split would silently be drawn from another one, see `eqssl.data.parquet`.
    """
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.parquet")}
    try:
        written = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{FILES}, the list of its files, cannot be read"
    changed = sorted(name for name in sizes.keys() | written if sizes.get(name) != written.get(name))
    return f"{', '.join(changed[:5])} differ from the list of its files" if changed else None


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

    Raises:
        ValueError: for a folder that cannot be written, such as on a full disk.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for split, rows in splits.items():
            _write_split(temporary, split, rows, schema)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        (temporary / FILES).write_text(json.dumps(sizes), encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        if folder.exists():
            return
        at = Path(error.filename or temporary)
        if error.errno is None or not (at.is_relative_to(temporary) or temporary.is_relative_to(at)):
            raise  # of a row
        raise _refusal(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(folder: Path, split: str, rows: Iterable[Row], schema: pa.Schema) -> None:
    parts: list[Path] = []  # their number is known only afterwards
    groups = _row_groups(rows, schema)
    for group in groups:
        parts.append(folder / f"{split}-{len(parts)}")
        # Encoded images neither compress further nor repeat.
        with pq.ParquetWriter(parts[-1], schema, compression="none", use_dictionary=False) as writer:
            written, content = 0, hashlib.sha256()
            while group is not None:
                writer.write_table(group)
                written += group.nbytes
                for image in group["image"].to_pylist():
                    content.update(image["bytes"] or b"")
                group = next(groups, None) if written < FILE_BYTES else None
            # In the footer, so that a digest of the file's ends is one of all its images.
            writer.add_key_value_metadata({"images_sha256": content.hexdigest()})
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
