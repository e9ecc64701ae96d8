"""Read the images of Parquet files into a store: decoded in memory, or encoded in a memory-mapped file if too large."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from eqssl.data.dataset import ImageStore, MemoryImages
from eqssl.data.parquet_files import ParquetFile
from eqssl.data.stores import EncodedImages, decode, in_threads
from eqssl.data.write import atomic, make_once

MEMORY_LIMIT_BYTES = 8 << 30  # of a split's decoded images; above it they stay encoded
READ_ROWS = 256  # few enough that the memory of the last ones is taken again

logger = logging.getLogger(__name__)


@dataclass
class BadImages:
    """Counts and names the images that cannot be decoded.

    Args:
        limit: how many are allowed.
    """

    limit: int
    places: list[str] = field(default_factory=list)

    def add(self, place: str, error: Exception) -> None:
        """Count one.

        Raises:
            ValueError: naming all so far, if there are more than the limit.
        """
        self.places.append(place)
        logger.warning("unreadable image %d of at most %d: %s: %s", len(self.places), self.limit, place, error)
        if len(self.places) > self.limit:
            raise ValueError(f"--data.max-bad-images is {self.limit}; unreadable: {', '.join(self.places)}")


@dataclass(frozen=True)
class Reader:
    """How the images of one data set are read.

    Args:
        image_column: struct<bytes, path> or binary.
        columns: the others that are read.
        size: height and width to decode to, px; None: that of all images.
        bad: where unreadable images are counted.
    """

    image_column: str
    columns: list[str]
    size: int | None
    bad: BadImages

    def read(self, files: list[ParquetFile], cached: Path) -> tuple[ImageStore, pa.Table]:
        """Return the images and, row by row, the other columns that are read.

        Args:
            files: of one split.
            cached: the Arrow file that a split too large for memory is kept in.

        Raises:
            ValueError: for too many unreadable images, none at all, or several sizes.
        """
        if cached.exists():
            return _open(cached, self.columns)
        batches = self._batches(files)
        first = next(batches, None)
        if first is None:
            raise ValueError(f"no readable image in {', '.join(file.path for file in files)}")
        rows = sum(parquet.metadata.num_rows for parquet in map(ParquetFile.open, files))
        batches = chain([first], batches)
        if rows * max(image.size for image in first[0]) <= MEMORY_LIMIT_BYTES:
            return _to_memory(batches, rows)
        make_once(cached, lambda: _to_file(batches, cached))
        return _open(cached, self.columns)

    def _batches(self, files: list[ParquetFile]) -> Iterator[tuple[list[np.ndarray], pa.Array, pa.Table]]:
        """Yield decoded images, the same encoded, and the other columns, without the unreadable."""
        shape: tuple[int, ...] | None = None
        for file in files:
            row = 0
            with file.open() as parquet:
                for batch in parquet.iter_batches(READ_ROWS, columns=[self.image_column, *self.columns]):
                    column = batch.column(self.image_column)
                    encoded = column.field("bytes") if pa.types.is_struct(column.type) else column
                    images = in_threads(self._try, encoded, size=encoded.nbytes)
                    good = [i for i, image in enumerate(images) if not isinstance(image, Exception)]
                    for i, image in enumerate(images):
                        if isinstance(image, Exception):
                            self.bad.add(f"{file.path} row {row + i}", image)
                        elif image.shape[1:] != (shape := shape or image.shape[1:]):
                            raise ValueError(
                                f"images have different sizes ({shape[0]} px and, in {file.path} row {row + i}, "
                                f"{image.shape[1]} px): give --data.image-size"
                            )
                    row += len(images)
                    others = pa.Table.from_batches([batch.drop_columns([self.image_column])])
                    if len(good) < len(images):
                        images, encoded, others = [images[i] for i in good], encoded.take(good), others.take(good)
                    if good:
                        yield images, encoded, others

    def _try(self, image: pa.Scalar) -> np.ndarray | Exception:
        try:
            return decode(image.as_py() or b"", self.size)
        except Exception as error:  # Pillow's plugins raise many kinds for a broken file
            return error


def _to_memory(
    batches: Iterator[tuple[list[np.ndarray], pa.Array, pa.Table]], rows: int
) -> tuple[MemoryImages, pa.Table]:
    """Return the images, each decoded into its place, so that the peak is little more than they take themselves."""
    pixels, tables, count = np.empty(0, np.uint8), [], 0
    for images, _, others in batches:
        shape = rows, max(image.shape[0] for image in images), *images[0].shape[1:]
        if not tables:
            pixels = np.empty(shape, np.uint8)
        elif shape[1] > pixels.shape[1]:  # only grey ones so far
            pixels = np.broadcast_to(pixels, shape).copy()
        place = pixels[count : count + len(images)]
        in_threads(place.__setitem__, range(len(images)), images, size=place.nbytes)
        count += len(images)
        tables.append(others)
    return MemoryImages(torch.from_numpy(pixels[:count])), pa.concat_tables(tables)


def _to_file(batches: Iterator[tuple[list[np.ndarray], pa.Array, pa.Table]], path: Path) -> None:
    """Write image, channels, size and the other columns as an Arrow file.

    All images have been decoded once by then, so that a broken one is found before training and not in its midst.
    """
    writer = None
    with atomic(path) as temporary:
        for images, encoded, others in batches:
            table = others.append_column("__image", encoded.cast(pa.large_binary()))
            table = table.append_column("__channels", pa.array([image.shape[0] for image in images], pa.uint8()))
            table = table.append_column("__size", pa.array([image.shape[1] for image in images], pa.int32()))
            writer = writer or pa.ipc.new_file(str(temporary), table.schema)
            writer.write_table(table)
        writer.close()


def _open(path: Path, columns: list[str]) -> tuple[EncodedImages, pa.Table]:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    images = EncodedImages(
        column=table["__image"],
        size=table["__size"][0].as_py(),
        channels=pc.max(table["__channels"]).as_py(),
    )
    return images, table.select(columns)
