"""Find the Parquet files of a data set on any filesystem, and refuse what cannot be read before reading it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

SPLIT_NAME = re.compile(r"(train|val|validation|test)(?![a-zA-Z])")
DIGEST_BYTES = 1 << 16


@dataclass(frozen=True)
class ParquetFile:
    """One file of a data set.

    Args:
        filesystem: where it lies.
        path: in that filesystem.
        size: bytes.
    """

    filesystem: pyarrow.fs.FileSystem
    path: str
    size: int

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def open(self) -> pq.ParquetFile:
        """Open it.

        Raises:
            ValueError: if it is no Parquet.
        """
        try:
            return pq.ParquetFile(self.filesystem.open_input_file(self.path), pre_buffer=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"--data.path: {self.path!r} is no Parquet file: {error}") from error


def find_files(path: str | None) -> dict[str, list[ParquetFile]]:
    """Return the files of each split, in order of their names.

    Args:
        path: a file, a folder or a URI of either.

    Returns:
        train and, where there are, val and test.

    Raises:
        ValueError: if nothing is there, or no Parquet file, or no training file.
    """
    if path is None:
        raise ValueError("--data.path is not given; allowed: a Parquet file, a folder of them, or a URI of either")
    try:
        if "://" in path:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(path)
        else:
            filesystem, root = pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
        info = filesystem.get_file_info(root)
        found = _list(filesystem, info)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"--data.path {path!r} cannot be opened: {error}") from error
    if info.type == pyarrow.fs.FileType.NotFound:
        raise ValueError(f"--data.path {path!r} is not there")
    if not found:
        raise ValueError(f"--data.path {path!r} holds no file *.parquet, nor does its folder data")
    if info.is_file:
        return {"train": found}
    splits: dict[str, list[ParquetFile]] = {}
    for file in found:
        if match := SPLIT_NAME.match(file.name):
            splits.setdefault({"validation": "val"}.get(match[1], match[1]), []).append(file)
    if splits and "train" not in splits:
        raise ValueError(f"--data.path {path!r} has no file train-*.parquet, only {[file.name for file in found]}")
    return {name: splits[name] for name in ("train", "val", "test") if name in splits} or {"train": found}


def _list(filesystem: pyarrow.fs.FileSystem, info: pyarrow.fs.FileInfo) -> list[ParquetFile]:
    """Return a single file as it is, of a folder the *.parquet in it or else in its `data`."""
    if info.is_file:
        return [ParquetFile(filesystem, info.path, info.size)]
    for folder in (info.path, f"{info.path.rstrip('/')}/data"):
        inside = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
        files = [ParquetFile(filesystem, i.path, i.size) for i in inside if i.is_file and i.extension == "parquet"]
        if files:
            return sorted(files, key=lambda file: file.name)
    return []


def common_schema(splits: dict[str, list[ParquetFile]], required: list[str]) -> pa.Schema:
    """Return the columns of the first file, once every file is known to have the same.

    Raises:
        ValueError: for a file that is no Parquet, lacks a required column or differs from the first.
    """
    first: pa.Schema | None = None
    for file in (file for files in splits.values() for file in files):
        with file.open() as parquet:
            schema = parquet.schema_arrow
        for column in required:
            if column not in schema.names:
                raise ValueError(f"column {column!r} is not in {file.path!r}; there are: {', '.join(schema.names)}")
        first = first or schema
        if not schema.equals(first):
            raise ValueError(f"{file.path!r} has other columns than the first file: {schema.names}, not {first.names}")
    return first


def content_digest(splits: dict[str, list[ParquetFile]]) -> str:
    """Return 64 hexadecimal digits of the names, sizes, beginnings and ends of all files.

    The end of a Parquet file is its footer, with the place, size and statistics of every column chunk.
    """
    digest = hashlib.sha256()
    for name, files in splits.items():
        for file in files:
            with file.filesystem.open_input_file(file.path) as stream:
                head = stream.read_at(min(DIGEST_BYTES, file.size), 0)
                tail = stream.read_at(min(DIGEST_BYTES, file.size), max(0, file.size - DIGEST_BYTES))
            for part in (name.encode(), file.name.encode(), str(file.size).encode(), head, tail):
                digest.update(part + b"\0")
    return digest.hexdigest()
