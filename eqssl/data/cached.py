"""Files of a data set's images that all processes of a node map into memory, so that they share one copy.

A file has two parts: the images, either decoded, as one Arrow tensor, or encoded, as an Arrow stream; then the facts
about each of them, an Arrow stream, with the warnings of the process that read the images as metadata.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eqssl.data.stores import Decoded
from eqssl.data.write import make_once

VERSION = 3  # increment whenever the layout of a file changes
ENCODED = pa.schema([("image", pa.large_binary())])
FACTS = pa.schema(
    [
        ("row", pa.int64()), ("channels", pa.uint8()), ("size", pa.int32()), ("maximum", pa.uint16()),
        ("aspect", pa.float64()),
    ]
)  # fmt: skip
WARNINGS = b"warnings"

# Readable images, decoded and encoded, and their rows.
Batch = tuple[list[Decoded], list[bytes], list[int]]


class Images(NamedTuple):
    """The readable images of a data set.

    Args:
        images: uint8 (N, C, H, W), or N encoded images, (large) binary.
        facts: the columns of `FACTS`, N rows.
        warnings: what to report about the images.
    """

    images: Tensor | pa.ChunkedArray
    facts: pa.Table
    warnings: list[str]


def decode_all(batches: Iterable[Batch], count: int) -> tuple[np.ndarray, pa.Table]:
    """Return at most count images, uint8 (N, C, H, W), and their facts.

    Each image is copied into its place, so that peak memory is little more than the images' own size.
    """
    pixels, facts = np.empty((0, 0, 0, 0), np.uint8), list[pa.RecordBatch]()
    start = 0
    for images, _, rows in batches:
        channels, stop = max(image.pixels.shape[0] for image in images), start + len(images)
        if not start:
            pixels = np.empty((count, channels, *images[0].pixels.shape[1:]), np.uint8)
        elif channels > pixels.shape[1]:  # only grey ones so far
            pixels = np.broadcast_to(pixels, (count, channels, *pixels.shape[2:])).copy()
        for place, image in zip(pixels[start:stop], images, strict=True):
            place[:] = image.pixels
        facts.append(_facts(images, rows))
        start = stop
    return pixels[:start], pa.Table.from_batches(facts, FACTS)


def write_decoded(decoded: Images, path: Path) -> None:
    """Write decoded images."""
    with pa.OSFile(str(path), "wb") as file:
        pa.ipc.write_tensor(pa.Tensor.from_numpy(decoded.images.numpy()), file)
        _write_facts(decoded.facts, decoded.warnings, file)


def write_encoded(batches: Iterable[Batch], warnings: list[str], path: Path) -> None:
    """Write encoded images.

    All of them have been decoded once by then, so that a broken one is found before training, not during it.

    Args:
        batches: the images.
        warnings: see `Images`; complete after the last batch.
        path: of the file.
    """
    facts = []
    with pa.OSFile(str(path), "wb") as file:
        with pa.ipc.new_stream(file, ENCODED) as stream:
            for images, encoded, rows in batches:
                stream.write_batch(pa.record_batch([encoded], schema=ENCODED))
                facts.append(_facts(images, rows))
        _write_facts(pa.Table.from_batches(facts, FACTS), warnings, file)


def open_decoded(path: Path) -> Images | None:
    """Return the images of a file of `write_decoded`; None if it is missing or damaged."""
    return _open(path, lambda file: _as_tensor(pa.ipc.read_tensor(file)))


def open_encoded(path: Path) -> Images | None:
    """Return the images of a file of `write_encoded`; None if it is missing or damaged."""
    return _open(path, lambda file: pa.ipc.open_stream(file).read_all()["image"])


def make_and_open(path: Path, make: Callable[[], None], opened: Callable[[Path], Images | None]) -> Images | None:
    """Return the images of a file, which one of the node's processes makes if it is missing or damaged.

    Args:
        path: of the file.
        make: makes it, atomically, or fails to.
        opened: `open_decoded` or `open_encoded`.

    Returns:
        None if the file was not made.
    """
    make_once(path, make, lambda path: None if opened(path) else "it is damaged")
    return opened(path)


def _facts(images: list[Decoded], rows: list[int]) -> pa.RecordBatch:
    columns = zip(*((*image.pixels.shape[:2], image.maximum, image.aspect) for image in images), strict=True)
    return pa.record_batch([rows, *columns], schema=FACTS)


def _write_facts(facts: pa.Table, warnings: list[str], file: pa.NativeFile) -> None:
    facts = facts.replace_schema_metadata({WARNINGS: json.dumps(warnings)})
    with pa.ipc.new_stream(file, facts.schema) as stream:
        stream.write_table(facts)


def _as_tensor(tensor: pa.Tensor) -> Tensor:
    with catch_warnings():  # that the memory is read-only, which protects the file
        simplefilter("ignore", UserWarning)
        return torch.from_numpy(tensor.to_numpy())


def _open(path: Path, read: Callable[[pa.MemoryMappedFile], Any]) -> Images | None:
    try:
        file = pa.memory_map(str(path))
        images = read(file)
        facts = pa.ipc.open_stream(file).read_all()
    except (OSError, pa.ArrowException):
        return None
    if len(facts) != len(images):  # a stream may end after any of its batches
        return None
    return Images(images, facts, json.loads(facts.schema.metadata[WARNINGS]))
