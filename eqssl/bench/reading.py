"""Reading JPEGs from Parquet against decoding only, and the memory of processes that share them.

The images are rendered solids, repeated so that the work per file and per process weighs as little as in a large set.
"""

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
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

OF_DECODING, OWN_AT_MOST = 0.9, 0.1
SIZE, RENDERED, READ, BATCH = 224, 256, 2048, 256  # the side in px, then numbers of images
ANOTHER_PROCESS = """
import re, sys
from pathlib import Path
import torch
import eqssl.data.parquet, eqssl.data.stores
from eqssl.config import DataConfig
from eqssl.data import load_data

def own_kb():
    return int(re.search(r"Anonymous: +(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

path, cache, size = sys.argv[1:]
before = own_kb()
images = load_data(DataConfig(source="parquet", path=path, cache=cache, image_size=int(size))).train.images
for indices in torch.arange(len(images)).split(64):
    images.take(indices)
print(own_kb() - before)
"""


def measure(options: Options) -> list[Row]:
    """Return images per second read into memory and batch by batch over those of decoding only, and the memory."""
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

        def into_memory() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                load_data(replace(config, cache=cache))

        subjects: dict[str, Callable[[], object]] = {
            "decoding alone": lambda: each_batch(decode),
            "Parquet into memory": into_memory,
            "Parquet into the memory of another process": lambda: load_data(config),
            "Parquet batch by batch": lambda: each_batch(store.take),
        }
        seconds = interleave(subjects, options.seconds)
        memory = _another_process(config)
    images_per_s = partial(row, count=READ, unit="images/s")
    bare, *ours = [partial(images_per_s, f"JPEG {SIZE} px: {name}", of) for name, of in seconds.items()]
    compared = [of("decoding alone", seconds["decoding alone"], at_least=OF_DECODING) for of in ours]
    return [bare(), *compared, *memory]


def _another_process(config: DataConfig) -> list[Row]:
    """Return the memory that another process takes for images in the cache, over their size; nothing but on Linux."""
    if sys.platform != "linux":
        return []
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(config.path), config.cache, str(SIZE)]
    own_mb = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e3
    images_mb = (READ + 4) * 3 * SIZE**2 / 1e6
    return [
        Row(
            name="memory of another process for images in memory", value=own_mb, unit="MB",
            against="images' size", ratio=own_mb / images_mb, at_most=OWN_AT_MOST,
        )
    ]  # fmt: skip


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
