import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.dataset import Dataset


@pytest.fixture
def png():
    """Return a function that encodes an image of random pixels."""

    def encode(seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB", kind: str = "PNG") -> bytes:
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels, mode).save(file, kind)
        return file.getvalue()

    return encode


@pytest.fixture
def write():
    """Return a function that writes one Parquet file of images in the layout of the hub."""

    def parquet(path: Path, images: list[bytes], **columns: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        column = pa.array([{"bytes": image, "path": None} for image in images],
                          pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
        pq.write_table(pa.table({"image": column, **columns}), path, row_group_size=7)
        return path

    return parquet


@pytest.fixture(scope="session")
def solids_config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(cache=str(tmp_path_factory.mktemp("cache")), objects=24, views_per_object=3, image_size=32)


@pytest.fixture(scope="session")
def solids(solids_config: DataConfig) -> Dataset:
    return load_data(solids_config)
