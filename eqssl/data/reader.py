"""The rows of Parquet files: columns as one table, images decoded or, if they are too many, encoded."""

import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from pyarrow.fs import FileSystem
from torch import Tensor

from eqssl.config import DataConfig
from eqssl.data import cached
from eqssl.data.dataset import ImageStore, MemoryImages, few
from eqssl.data.stores import Decoded, EncodedImages, FramedImages, bits_of, decode, in_threads
from eqssl.data.write import cache_folder
from eqssl.files import write_atomically

READ_ROWS = 256  # few enough that the allocator reuses the memory of the last batch
DECODED_LIMIT_BYTES = 8 << 30  # of all images; above it they stay encoded
VERSION = 2  # increment whenever a decoded pixel changes
BINARY = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())

logger = logging.getLogger(__name__)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn an error in reading a file into a ValueError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"--data.path: {path!r} is not a readable Parquet file: {error}") from error


def _refuse_double_columns(filesystem: FileSystem, paths: list[str]) -> None:
    for path in paths:
        with _naming(path):
            names = Counter(pq.read_schema(path, filesystem=filesystem).names)
        if double := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"{path} has {names[double[0]]} columns {double[0]!r}; allowed: one of a name")


class ParquetReader:
    """Reads the rows of all files of a data set, in order.

    Args:
        filesystem: of the files.
        paths: of the files of all splits.
        config: path, image_column, label_column, image_size, stored_size, max_bad_images and cache are used.

    Attributes:
        schema: the columns of all files; numbers are promoted to a type that fits every file, dictionaries
            are read as their values, and a column that a file lacks is null there.
        counts: path -> number of rows.

    Raises:
        ValueError: for a file that is not Parquet, a column whose types cannot be reconciled, or an image or label
            column that is missing or has a type that cannot be used.
    """

    def __init__(self, filesystem: FileSystem, paths: list[str], config: DataConfig):
        self.filesystem, self.config = filesystem, config
        self.whole, self.size = config.stored_size is not None, config.stored_size or config.image_size
        self.unreadable: dict[int, str] = {}  # row -> its place
        self.reads_files = False  # whether images are paths of files, which may change while the Parquet files do not
        self.warnings: list[str] = []  # about images
        with _naming(str(config.path)):
            factory = ds.FileSystemDatasetFactory(filesystem, paths, ds.ParquetFileFormat())
            try:
                found: pa.Schema = factory.inspect(promote_options="permissive", fragments=None)
            except pa.ArrowInvalid:
                _refuse_double_columns(filesystem, paths)
                raise
            self.schema = pa.schema(
                [of.with_type(of.type.value_type) if pa.types.is_dictionary(of.type) else of for of in found]
            )
            self.files = list(factory.finish(self.schema).get_fragments())
            self.counts: dict[str, int] = {file.path: file.count_rows() for file in self.files}
        types = {field.name: field.type for field in self.schema}
        image, label = config.image_column, config.label_column
        given = {"label": label} if label != DataConfig.label_column else {}
        for option, column in ({"image": image} | given).items():
            if column not in types:
                raise ValueError(
                    f"--data.{option}-column {column!r} is not in {config.path!r}; there are: {', '.join(types)}"
                )
        fields = {field.name: field.type for field in types[image]} if pa.types.is_struct(types[image]) else {}
        if fields.get("bytes", types[image]) not in BINARY:
            allowed = "struct<bytes: binary, path: string>, binary"
            raise ValueError(f"--data.image-column {image!r} is {types[image]}; allowed: {allowed}")
        if label in types and not (pa.types.is_integer(types[label]) or pa.types.is_null(types[label])):
            raise ValueError(f"--data.label-column {label!r} is {types[label]}; allowed: integers")

    def feature(self, column: str) -> dict[str, Any]:
        """Return the Hugging Face hub's description of a column, the same in all files that have one; else empty.

        Raises:
            ValueError: if the class names of two files differ, since a label is a rank among them.
        """
        found: dict[str, dict[str, Any]] = {}
        for file in self.files:
            with _naming(file.path):
                text = (file.physical_schema.metadata or {}).get(b"huggingface", b"{}")
            try:
                found[file.path] = dict(json.loads(text)["info"]["features"][column])
            except (ValueError, KeyError, TypeError):  # no such description, or another program's
                continue
        described = list(found.items())
        for path, feature in described[1:]:
            first, names, others = described[0][0], described[0][1].get("names"), feature.get("names")
            if names != others:
                raise ValueError(
                    f"column {column!r} has the classes {few(names)} in {first}, and {few(others)} in {path}; "
                    "allowed: the same in the same order, since labels are their ranks"
                )
        return described[0][1] if described else {}

    def place(self, row: int) -> str:
        """Return the file of a row and the row's number in it, for messages."""
        for path, count in self.counts.items():
            if row < count:
                return f"{path} row {row}"
            row -= count
        raise IndexError(row)

    def read_table(self, names: list[str]) -> pa.Table:
        """Return some columns of all rows."""
        tables = []
        for file in self.files:
            with _naming(file.path):
                try:
                    tables.append(file.to_table(self.schema, names))
                except pa.ArrowInvalid:
                    self._refuse_types(file, names)
                    raise
        return pa.concat_tables(tables)

    def _refuse_types(self, file: ds.ParquetFileFragment, names: list[str]) -> None:
        """Raise a ValueError for a column with a value outside the type that fits the column in all files."""
        for name in set(names).intersection(file.physical_schema.names):
            own, common = file.physical_schema.field(name).type, self.schema.field(name).type
            try:
                file.to_table(self.schema, [name])
            except pa.ArrowInvalid as error:
                if own != common:
                    raise ValueError(
                        f"column {name!r} is {own} in {file.path} and {common} for all files together, which does not "
                        f"hold it: {error}; allowed: one type in all files"
                    ) from error

    def read_images(self, name: str) -> tuple[ImageStore, Tensor]:
        """Return the readable images and their rows, int64 (N,).

        The largest value in any of the 16-bit grey images decides the range of all of them.

        Args:
            name: name of the cache file.

        Raises:
            ValueError: for too many unreadable images, none at all, or several sizes.
        """
        found = self._find_or_read(name)
        for text in found.warnings:
            self._warn(text)
        facts = found.facts
        if isinstance(found.images, Tensor):
            images: ImageStore = MemoryImages(found.images)
        else:
            channels, size = pc.max(facts["channels"]).as_py(), facts["size"][0].as_py()
            images = EncodedImages(found.images, size, channels, self._bits(facts), self.whole)
        if self.whole and self.config.image_size:
            images = FramedImages(images, torch.tensor(facts["aspect"].to_numpy()), self.config.image_size)
        return images, torch.tensor(facts["row"].to_numpy())

    def _find_or_read(self, name: str) -> cached.Images:
        """Return the images from the cache, or read them into it."""
        try:
            folder: Path | None = cache_folder(self.config) / f"images-v{cached.VERSION}"
        except ValueError:  # without a home directory, say; decoded images need no cache
            folder = None
        if folder and (
            found := cached.open_decoded(folder / f"{name}.decoded") or cached.open_encoded(folder / f"{name}.encoded")
        ):
            return found
        batches, count = self._decode(), sum(self.counts.values())
        first = next(batches, None)
        if first is None:
            raise ValueError(f"--data.path {self.config.path!r} has no readable image")
        batches = chain([first], batches)
        if count * max(image.pixels.size for image in first[0]) > DECODED_LIMIT_BYTES:
            path = cache_folder(self.config) / f"images-v{cached.VERSION}" / f"{name}.encoded"
            write = partial(cached.write_encoded, batches, self.warnings)
            found = cached.make_and_open(path, lambda: write_atomically(path, write), cached.open_encoded)
            assert found  # the write raises an error if it fails
            return found
        if folder and not self.reads_files and os.access(folder.parent, os.W_OK):
            return self._share(folder / f"{name}.decoded", batches, count)
        return self._decode_all(batches, count)

    def _share(self, path: Path, batches: Iterator[cached.Batch], count: int) -> cached.Images:
        """Return decoded images that a node's processes share; on a full disk, this process's own ones."""
        own = list[cached.Images]()

        def make() -> None:
            own.append(self._decode_all(batches, count))
            try:
                if not self.reads_files:  # which may change while the Parquet files do not
                    write_atomically(path, partial(cached.write_decoded, own[0]))
            except OSError as error:
                self._warn(f"{path} cannot be written ({error.strerror}), so every process has a copy of the images")

        return cached.make_and_open(path, make, cached.open_decoded) or own[0]

    def _decode_all(self, batches: Iterator[cached.Batch], count: int) -> cached.Images:
        """Return at most count decoded images."""
        pixels, facts = cached.decode_all(batches, count)
        if (bits := self._bits(facts)) < 16:
            del pixels  # to free memory for the same images, decoded again
            pixels, _ = cached.decode_all(self._decode(bits), count)
        return cached.Images(torch.from_numpy(pixels), facts, self.warnings)

    def _bits(self, facts: pa.Table) -> int:
        """Return how many of their 16 bits grey values use, judged by the largest one; 16 if there are none."""
        maximum = pc.max(facts["maximum"]).as_py()
        bits = bits_of(maximum) if maximum else 16
        if bits < 16:
            self._warn(
                f"--data.path {self.config.path}: grey images of 16 bits hold at most {maximum}, so {bits} bits are "
                "their range"
            )
        return bits

    def _warn(self, text: str) -> None:
        """Log a warning about images once; other processes, which take them from the cache, repeat it."""
        if text not in self.warnings:
            self.warnings.append(text)
            logger.warning("%s", text)

    def _decode(self, bits: int | None = None) -> Iterator[cached.Batch]:
        """Yield the readable images, and count the others.

        Args:
            bits: bits that 16-bit grey values use; None: 16, and the notes on images are reported at the end.
        """
        row, shape, notes, noted = 0, None, Counter[str](), dict[str, str]()
        for path, cells in self._cells():
            images, encoded, rows = [], [], []
            read = partial(self._read, path, bits or 16)
            for cell, result in zip(cells, in_threads(read, cells), strict=True):
                if isinstance(result, Exception):
                    self._count_unreadable(row, cell, result)
                else:
                    image, data = result
                    shape = shape or image.pixels.shape[1:]
                    if image.pixels.shape[1:] != shape:
                        sizes = f"{shape[0]} px and, in {self._place(row, cell)}, {image.pixels.shape[1]} px"
                        raise ValueError(f"images have different sizes ({sizes}): give --data.image-size")
                    if image.note:
                        notes[image.note] += 1
                        noted[image.note] = noted.get(image.note) or self._place(row, cell)
                    images.append(image)
                    encoded.append(data)
                    rows.append(row)
                row += 1
            if images:
                yield images, encoded, rows
        for note, count in notes.items() if bits is None else ():
            self._warn(f"{count} of {row} images, such as {noted[note]}: each {note}")

    def _cells(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield a file's path and the image cells of some of its rows."""
        column = self.config.image_column
        for file in self.files:
            with _naming(file.path):
                for batch in file.to_batches(self.schema, [column], batch_size=READ_ROWS, batch_readahead=1):
                    yield file.path, [c if isinstance(c, dict) else {"bytes": c} for c in batch.column(0).to_pylist()]

    def _read(self, path: str, bits: int, cell: dict[str, Any]) -> tuple[Decoded, bytes] | Exception:
        """Return an image, decoded and encoded, from the cell's bytes, else from the file that it names."""
        data = cell["bytes"]
        try:
            if data is None and cell.get("path"):
                self.reads_files = True
                with self.filesystem.open_input_file(posixpath.join(posixpath.dirname(path), cell["path"])) as file:
                    data = file.read()
            return decode(data or b"", self.size, bits=bits, whole=self.whole), data
        except FileNotFoundError:
            return ValueError("a path without bytes, and no such file")
        except UnidentifiedImageError:  # its message is an address in memory
            return ValueError("no image that Pillow reads" if data else "no bytes")
        except Image.DecompressionBombError:
            return ValueError(f"more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that Pillow reads")
        except Exception as error:  # Pillow's plugins raise many kinds for a broken file
            return error

    def _place(self, row: int, cell: dict[str, Any]) -> str:
        """Return an image's own name, if it has one, and its place."""
        path = cell.get("path")
        return f"{path} in {self.place(row)}" if path and cell["bytes"] else path or self.place(row)

    def _count_unreadable(self, row: int, cell: dict[str, Any], error: Exception) -> None:
        if row in self.unreadable:  # counted in an earlier pass
            return
        limit, place = self.config.max_bad_images, self._place(row, cell)
        self.unreadable[row] = place
        self._warn(f"unreadable image {len(self.unreadable)} of at most {limit}: {place}: {error}")
        if len(self.unreadable) > limit:
            raise ValueError(
                f"--data.max-bad-images is {limit}; unreadable: {', '.join(self.unreadable.values())} ({error})"
            )
