"""Reading JPEGs from Parquet against decoding only.

The images are rendered solids, repeated so that the work per file and per process weighs as little as in a large set.
"""

import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from eqssl.bench.command import Options
from eqssl.bench.timing import Row, interleave, row
from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.stores import EncodedImages, in_threads
from eqssl.data.write import image_schema, write_splits

OF_DECODING = 0.9
SIZE, RENDERED, READ, BATCH = 224, 256, 2048, 256  # the side in px, then numbers of images


def measure(options: Options) -> list[Row]:
    """Return images per second read into memory and batch by batch, over those of decoding only."""
    with tempfile.TemporaryDirectory() as folder:
        encoded = _rendered(folder) * (READ // RENDERED)
        rows = [{"image": {"bytes": data, "path": None}, "label": i % 2} for i, data in enumerate(encoded)]
        path = Path(folder, "jpeg")
        write_splits(path, {"train": rows, "val": rows[:2], "test": rows[:2]}, image_schema(["even", "odd"]))
        config = DataConfig(source="parquet", path=str(path), cache=folder, image_size=SIZE)
        store = EncodedImages(pa.chunked_array([encoded]), SIZE, channels=3)

        def decode(indices: torch.Tensor) -> None:
            in_threads(_decoded, [encoded[i] for i in indices.tolist()])

        def each_batch(take: Callable[[torch.Tensor], object]) -> None:
            for indices in torch.randperm(READ).split(BATCH):
                take(indices)

        subjects: dict[str, Callable[[], object]] = {
            "decoding alone": lambda: each_batch(decode),
            "Parquet into memory": lambda: load_data(config),
            "Parquet batch by batch": lambda: each_batch(store.take),
        }
        seconds = interleave(subjects, options.seconds)
    images_per_s = partial(row, count=READ, unit="images/s")
    bare, *ours = [partial(images_per_s, f"JPEG {SIZE} px: {name}", of) for name, of in seconds.items()]
    return [bare(), *(of("decoding alone", seconds["decoding alone"], at_least=OF_DECODING) for of in ours)]


def _rendered(cache: str) -> list[bytes]:
    """Return JPEGs of quality 90."""
    made = load_data(DataConfig(objects=RENDERED // 2, views_per_object=2, image_size=SIZE, cache=cache))
    files = []
    for pixels in made.train.images.take(torch.arange(RENDERED)).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
