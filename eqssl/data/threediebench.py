"""3DIEBench in its own layout (Garrido et al., arXiv 2302.10283): `SYNSET/OBJECT/image_0.jpg` and `latent_0.npy`.

A latent is seven numbers: angles about x, y, z (rad), hue of the floor (turns), polar angle and azimuth of the lamp
(rad), hue of the lamp (turns). A pair is two views of one object; an epoch starts one from every image, whereas
the reference code starts one from every object.

Splits are by object. `train_images.npy` and `val_images.npy` of the reference code are used if they are in the folder
or next to it; if one of them is missing, its split gets all objects that the other does not list; if both are, val is a
fifth of the objects. There is no test split: half of val becomes one, drawn by a hash of the object's name.

Latents and paths of images are written to the cache as Parquet, once.
"""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from eqssl.config import DataConfig
from eqssl.data import parquet
from eqssl.data.dataset import Dataset
from eqssl.data.rotation import euler_to_quaternion
from eqssl.data.stores import workers
from eqssl.data.write import Row, cache_folder, image_schema, make_once, missing_file, write_splits
from eqssl.files import as_path

VERSION = 2  # increment whenever the written files change
DEFAULT_SIZE = 256  # of the published images, px
LATENT = {"euler": 3, "floor_hue": 1, "light_theta": 1, "light_phi": 1, "light_hue": 1}
FILE_NAMES = (re.compile(r"image_(\d+)\.jpg"), re.compile(r"latent_(\d+)\.npy"))

Views = dict[str, list[int]]  # "SYNSET/OBJECT" -> the numbers of its views, both sorted

logger = logging.getLogger(__name__)


def load(config: DataConfig) -> Dataset:
    """Return 3DIEBench.

    Args:
        config: path, image_size, stored_size, max_bad_images and cache are used.

    Raises:
        ValueError: naming the file or folder, for one that is missing or not in the layout, an object with fewer than
            two views, a latent that is not seven finite numbers, or a list of objects that does not fit the folder.
    """
    folder = None if config.path is None else as_path(config.path, "--data.path").absolute()
    if folder is None or not folder.is_dir():
        raise ValueError(f"--data.path is {config.path!r}; allowed: a folder with SYNSET/OBJECT/image_0.jpg")
    views = _find_views(folder)
    splits = _split_objects(folder, list(views))
    # Reading the times of every latent would take minutes if there are millions. The time of a file's last change also
    # tells sets apart that an archive has given equal modification times.
    found = [os.stat(folder / name / file) for name in views for file in ("", f"latent_{views[name][0]}.npy")]
    changed = [(of.st_mtime_ns, of.st_ctime_ns, of.st_ino) for of in found]
    key = hashlib.sha256(repr((str(folder), views, splits, changed)).encode()).hexdigest()[:16]
    out = cache_folder(config) / f"3diebench-v{VERSION}-{key}"
    make_once(out, lambda: _write(folder, views, splits, out), missing_file)
    size = config.image_size or DEFAULT_SIZE
    written = DataConfig(
        source="parquet", path=str(out), cache=config.cache, image_size=size, stored_size=config.stored_size,
        max_bad_images=config.max_bad_images,
    )  # fmt: skip
    dataset = parquet.load(written)
    # The files contain absolute paths, but the same images elsewhere are the same data.
    content = hashlib.sha256(repr((views, splits, size, config.stored_size)).encode())
    for split in dataset.splits.values():
        for values in split.factors.values():
            content.update(values.numpy().tobytes())
    return dataclasses.replace(dataset, name="3diebench", digest=content.hexdigest()[:16])


def _find_views(folder: Path) -> Views:
    """Return the views of every object that have a latent, from one pass over the folder."""
    views = {}
    for name in (f"{synset}/{item}" for synset in _subfolders(folder) for item in _subfolders(folder / synset)):
        files = os.listdir(folder / name)
        images, latents = ({int(m[1]) for m in map(kind.fullmatch, files) if m} for kind in FILE_NAMES)
        if without := images - latents:
            raise ValueError(f"'{folder}/{name}/latent_{min(without)}.npy' is missing, and its image is there")
        if len(images) < 2:
            raise ValueError(f"{str(folder / name)!r} has {len(images)} views; a pair needs two or more")
        views[name] = sorted(latents)
    if not views:
        raise ValueError(f"--data.path {str(folder)!r} holds no SYNSET/OBJECT/image_0.jpg")
    return views


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _split_objects(folder: Path, objects: list[str]) -> dict[str, list[str]]:
    """Return the objects of train, val and test."""
    train, val = (_read_list(folder, f"{name}_images.npy", set(objects)) for name in ("train", "val"))
    shuffled = sorted(objects, key=lambda name: hashlib.sha256(name.encode()).digest())
    if val is None:
        val = set(shuffled[: max(2, len(objects) // 5)]) if train is None else set(objects) - train
    if train is None:
        train = set(objects) - val
    if both := train & val:
        raise ValueError(f"object {min(both)!r} is in both train_images.npy and val_images.npy")
    rest = [name for name in shuffled if name in val]
    splits = {"train": sorted(train), "val": sorted(rest[::2]), "test": sorted(rest[1::2])}
    if empty := [name for name, chosen in splits.items() if not chosen]:
        raise ValueError(f"--data.path {str(folder)!r}: its {len(objects)} objects leave none for {', '.join(empty)}")
    return splits


def _read_list(folder: Path, file_name: str, objects: set[str]) -> set[str] | None:
    """Return the objects in a list of the reference code, each "/SYNSET/OBJECT/" there; None if the list is missing."""
    for path in (folder / file_name, folder.parent / file_name):
        if path.is_file():
            names = {str(name).strip("/") for name in _read_array(path)}
            if absent := names - objects:
                raise ValueError(f"{str(path)!r} lists {min(absent)!r}, not in the folder ({len(absent)} such)")
            return names
    return None


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not a readable .npy file: {error}") from error


def _read_latent(path: Path) -> np.ndarray:
    latent = _read_array(path)
    if latent.shape != (sum(LATENT.values()),) or latent.dtype.kind != "f" or not np.isfinite(latent).all():
        raise ValueError(f"{str(path)!r} holds {latent.dtype} {latent.shape} {latent}; allowed: seven finite numbers")
    return latent


def _write(folder: Path, views: Views, splits: dict[str, list[str]], out: Path) -> None:
    """Write labels, objects, latents and paths of images as Parquet."""
    logger.info("reading the latents of %d objects, once", len(views))
    synsets = sorted({name.split("/")[0] for name in views})
    number = {name: i for i, name in enumerate(views)}

    def read(name: str) -> list[Row]:
        latents = torch.from_numpy(
            np.stack([_read_latent(folder / name / f"latent_{view}.npy") for view in views[name]])
        )
        factors = dict(zip(LATENT, latents.double().split(list(LATENT.values()), dim=1), strict=True))
        factors["quaternion"] = euler_to_quaternion(factors["euler"])
        columns = {factor: values.squeeze(1).tolist() for factor, values in factors.items()}
        return [
            {
                "image": {"bytes": None, "path": f"{folder}/{name}/image_{view}.jpg"},
                "label": synsets.index(name.split("/")[0]),
                "object": number[name],
                **{factor: values[i] for factor, values in columns.items()},
            }
            for i, view in enumerate(views[name])
        ]

    def rows(names: list[str]) -> Iterator[Row]:
        for of_object in workers().map(read, names):
            yield from of_object

    schema = image_schema(synsets, {**LATENT, "quaternion": 4})
    write_splits(out, {split: rows(names) for split, names in splits.items()}, schema)
