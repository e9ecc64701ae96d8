"""Images a second read from Parquet, against decoding alone and against an image folder in a DataLoader.

The images are rendered solids, as JPEG and as PNG without compression. They are repeated, so that the work per file and
per process weighs as little as in a large data set.
"""

import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, interleave, row
from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.stores import EncodedImages, in_threads
from eqssl.data.write import image_schema, write_splits

OF_DECODING = 0.9
FORMATS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 0}}
BATCH = 256


def measure(options: Options) -> list[Row]:
    """Return images a second of every size and format."""
    rows = []
    for size in options.data_sizes:
        with tempfile.TemporaryDirectory() as folder:
            pixels = _rendered(options.data_images, size, folder)
            for kind in FORMATS:
                images = _encoded(pixels, kind) * max(1, options.data_pixels // (len(pixels) * size**2))
                rows += _measure(options, images, kind, size, Path(folder))
    return rows


def _rendered(count: int, size: int, folder: str) -> np.ndarray:
    """Return solids, uint8 (N, S, S, 3)."""
    rendered = load_data(DataConfig(objects=count // 2, views_per_object=2, image_size=size, cache=folder))
    return rendered.train.images.take(torch.arange(count)).permute(0, 2, 3, 1).numpy()


def _encoded(pixels: np.ndarray, kind: str) -> list[bytes]:
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **FORMATS[kind])
        files.append(file.getvalue())
    return files


def _measure(options: Options, encoded: list[bytes], kind: str, size: int, folder: Path) -> list[Row]:
    """Time reading the file into memory, decoding batch by batch, decoding alone, and an image folder."""
    rows = [{"image": {"bytes": data, "path": None}, "label": 0} for data in encoded]
    path = folder / kind
    write_splits(path, {"train": rows, "val": rows[:1], "test": rows[:1]}, image_schema(["solid"]))
    config = DataConfig(source="parquet", path=str(path), cache=str(folder), image_size=size)
    column = pq.read_table(path / "train-00000-of-00001.parquet")["image"].combine_chunks().field("bytes")
    store = EncodedImages(pa.chunked_array([column]), size, channels=3)

    def each_batch(take: Callable[[torch.Tensor], object]) -> None:
        for indices in torch.randperm(len(encoded)).split(BATCH):
            take(indices)

    def decode(indices: torch.Tensor) -> None:
        chosen = [encoded[i] for i in indices.tolist()]
        in_threads(_pixels, chosen, size=sum(map(len, chosen)))

    bare, from_folder = "decoding alone", "image folder, DataLoader"
    loader = _loader(options, encoded, kind, folder / f"{kind} files")
    seconds = interleave(
        {
            bare: lambda: each_batch(decode),
            "Parquet into memory": lambda: load_data(config),
            "Parquet image by image": lambda: each_batch(store.take),
            from_folder: partial(list, loader),
        },
        options.seconds,
    )
    images_per_s = partial(row, "data", count=len(encoded), unit="images/s")
    made = [images_per_s(f"{kind} {size} px: {name}", seconds[name]) for name in (bare, from_folder)]
    for name in ("Parquet into memory", "Parquet image by image"):
        ours = partial(images_per_s, f"{kind} {size} px: {name}", seconds[name])
        made += [ours(bare, seconds[bare], at_least=OF_DECODING), ours(from_folder, seconds[from_folder])]
    return made


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _loader(options: Options, encoded: list[bytes], kind: str, folder: Path) -> torch.utils.data.DataLoader:
    """Return torchvision's way: a folder for each class, decoded by persistent workers."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    (folder / "solid").mkdir(parents=True)
    for i, data in enumerate(encoded):
        (folder / "solid" / f"{i}.{kind.lower()}").write_bytes(data)
    return torch.utils.data.DataLoader(
        ImageFolder(folder, PILToTensor()),
        BATCH,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
