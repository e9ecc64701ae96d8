"""3DIEBench in its own layout (Garrido et al., arXiv 2302.10283): `SYNSET/OBJECT/image_0.jpg` and `latent_0.npy`.

A latent is seven numbers: angles about x, y, z (rad), hue of the floor (turns), polar angle and azimuth of the lamp
(rad), hue of the lamp (turns). A pair is two views of one object; an epoch starts one from every image, where the
reference code starts one from every object.

Splits are by object. `train_images.npy` and `val_images.npy` of the reference code are used where they lie in the
folder or beside it; where one of them lacks, its objects are those that the other leaves, and where both lack, val is a
fifth of the objects. There is no test split: half of val becomes one. What is drawn is drawn by a hash of the object's
name. A class is the rank of its synset among those in the folder, whatever a split holds of it.
"""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eqssl.config import DataConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.data.decoding import BadImages
from eqssl.data.pairs import altered_by
from eqssl.data.stores import channel_statistics, decode, select, stack, workers
from eqssl.data.synthetic.rotation import euler_to_quaternion
from eqssl.data.write import atomic, make_once

DEFAULT_SIZE = 256  # of the published images, px
LATENT = {"euler": 3, "floor_hue": 1, "light_theta": 1, "light_phi": 1, "light_hue": 1}
FILE_NAMES = (re.compile(r"image_(\d+)\.jpg"), re.compile(r"latent_(\d+)\.npy"))

Views = dict[str, list[int]]  # "SYNSET/OBJECT" -> the numbers of its views, both in order

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Images in files of their own, read and decoded when taken; an unreadable one is counted, named and black.

    Args:
        folder: of the data set.
        objects: "SYNSET/OBJECT" of each object.
        object: int64 (N,), which object an image shows.
        view: int64 (N,), the number in its name.
        size: height and width to decode to, px.
        bad: where unreadable images are counted.
    """

    folder: Path
    objects: list[str]
    object: Tensor
    view: Tensor
    size: int
    bad: BadImages

    def __len__(self) -> int:
        return len(self.view)

    def take(self, indices: Tensor) -> Tensor:
        places = zip(self.object[indices].tolist(), self.view[indices].tolist(), strict=True)
        paths = [_image_path(self.folder, self.objects[number], view) for number, view in places]
        images = list(workers().map(self._try, paths))
        for i, image in enumerate(images):
            if isinstance(image, Exception):
                if paths[i] not in self.bad.places:
                    self.bad.add(paths[i], image)
                images[i] = np.zeros((1, self.size, self.size), dtype=np.uint8)
        return stack(images, 3)

    def _try(self, path: str) -> np.ndarray | Exception:
        try:
            return decode(Path(path).read_bytes(), self.size)
        except Exception as error:  # Pillow's plugins raise many kinds for a broken file
            return error


def load(config: DataConfig) -> Dataset:
    """Return 3DIEBench, its latents read once and cached, its images left on the disk.

    Args:
        config: path, image_size, max_bad_images and cache are used.

    Raises:
        ValueError: naming the file or folder, for one that is missing or not in the layout, an object with fewer than
            two views, a latent that is not seven finite numbers, or a list of objects that does not fit the folder.
    """
    folder = Path(config.path or "").expanduser().absolute()
    if config.path is None or not folder.is_dir():
        raise ValueError(f"--data.path is {config.path!r}; allowed: a folder with SYNSET/OBJECT/image_0.jpg")
    size = config.image_size or DEFAULT_SIZE
    bad = BadImages(config.max_bad_images)
    views = _scan(folder, bad)
    latents = _latents(folder, views, Path(config.cache).expanduser())
    members = _split_objects(folder, list(views))
    synsets = sorted({name.split("/")[0] for name in views})
    whole = _whole(ImageFiles(folder, list(views), *_numbers(views), size, bad), synsets, latents)
    splits = {
        name: select(whole, torch.isin(whole.objects, chosen).nonzero()[:, 0]) for name, chosen in members.items()
    }
    mean, std = channel_statistics(splits["train"].images)
    known = (views, size, {name: chosen.tolist() for name, chosen in members.items()})
    return Dataset(
        name="3diebench",
        **splits,
        paired=True,
        channels=3,
        image_size=size,
        num_classes=len(synsets),
        mean=mean,
        std=std,
        digest=hashlib.sha256(repr(known).encode() + latents.tobytes()).hexdigest()[:16],
        altered_by=altered_by(whole.factors),
    )


def _scan(folder: Path, bad: BadImages) -> Views:
    """Return the views of every object, from one pass over the folder."""
    views = {}
    for name in (f"{synset}/{item}" for synset in _subfolders(folder) for item in _subfolders(folder / synset)):
        files = os.listdir(folder / name)
        images, latents = ({int(m[1]) for m in map(kind.fullmatch, files) if m} for kind in FILE_NAMES)
        if without := images - latents:
            raise ValueError(f"{_latent_path(folder, name, min(without))!r} is missing, and its image is there")
        for view in sorted(latents - images):
            bad.add(_image_path(folder, name, view), FileNotFoundError("missing, and its latent is there"))
        if len(images) < 2:
            raise ValueError(f"{str(folder / name)!r} has {len(images)} views; a pair needs two or more")
        views[name] = sorted(images)
    if not views:
        raise ValueError(f"--data.path {str(folder)!r} holds no SYNSET/OBJECT/image_0.jpg")
    return views


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_path(folder: Path, name: str, view: int) -> str:
    return f"{folder}/{name}/image_{view}.jpg"


def _latent_path(folder: Path, name: str, view: int) -> str:
    return f"{folder}/{name}/latent_{view}.npy"


def _latents(folder: Path, views: Views, cache: Path) -> np.ndarray:
    """Return the latents, float64 (N, 7), from the cache unless a folder or its first latent changed.

    To ask for the time of every latent would take minutes where there are millions.
    """

    def times(name: str, first: int) -> list[int]:
        return [os.stat(path).st_mtime_ns for path in (folder / name, _latent_path(folder, name, first))]

    listing = [(name, numbers, times(name, numbers[0])) for name, numbers in views.items()]
    cached = cache / "3diebench" / f"{hashlib.sha256(repr(listing).encode()).hexdigest()[:16]}.npy"
    make_once(cached, lambda: _read_latents(folder, views, cached))
    return np.load(cached)


def _read_latents(folder: Path, views: Views, cached: Path) -> None:
    logger.info("reading the latents of %d objects, once", len(views))

    def of_object(name: str) -> list[np.ndarray]:
        return [_read_latent(_latent_path(folder, name, view)) for view in views[name]]

    latents = np.concatenate(list(workers().map(of_object, views)))
    with atomic(cached) as temporary, temporary.open("wb") as file:
        np.save(file, latents)


def _read_latent(path: str) -> np.ndarray:
    latent = _read_array(path)
    if latent.shape != (sum(LATENT.values()),) or latent.dtype.kind != "f" or not np.isfinite(latent).all():
        raise ValueError(f"{path!r} holds {latent.dtype} {latent.shape} {latent}; allowed: seven finite numbers")
    return latent.astype(np.float64)


def _read_array(path: str | Path) -> np.ndarray:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is no readable .npy file: {error}") from error


def _split_objects(folder: Path, objects: list[str]) -> dict[str, Tensor]:
    """Return the places among all objects of those in train, val and test, int64."""
    train, val = (_listed(folder, f"{name}_images.npy", set(objects)) for name in ("train", "val"))
    shuffled = sorted(objects, key=lambda name: hashlib.sha256(name.encode()).digest())
    if val is None:
        val = set(shuffled[: max(2, len(objects) // 5)]) if train is None else set(objects) - train
    if train is None:
        train = set(objects) - val
    if both := train & val:
        raise ValueError(f"object {min(both)!r} is in both train_images.npy and val_images.npy")
    held = [name for name in shuffled if name in val]
    members = {"train": train, "val": held[::2], "test": held[1::2]}
    if empty := [name for name, chosen in members.items() if not chosen]:
        raise ValueError(f"--data.path {str(folder)!r}: its {len(objects)} objects leave none for {', '.join(empty)}")
    place = {name: i for i, name in enumerate(objects)}
    return {name: torch.tensor(sorted(place[item] for item in chosen)) for name, chosen in members.items()}


def _listed(folder: Path, file_name: str, objects: set[str]) -> set[str] | None:
    """Return the objects of a list of the reference code, "/SYNSET/OBJECT/" each; None where there is no such list."""
    for path in (folder / file_name, folder.parent / file_name):
        if path.is_file():
            names = {str(name).strip("/") for name in _read_array(path)}
            if absent := names - objects:
                raise ValueError(
                    f"{str(path)!r} lists {min(absent)!r}, which is not in the folder ({len(absent)} such)"
                )
            return names
    return None


def _numbers(views: Views) -> tuple[Tensor, Tensor]:
    """Return the object and the view that each image shows, int64 (N,)."""
    counts = torch.tensor([len(numbers) for numbers in views.values()])
    return torch.arange(len(views)).repeat_interleave(counts), torch.tensor([i for v in views.values() for i in v])


def _whole(images: ImageFiles, synsets: list[str], latents: np.ndarray) -> Split:
    """Return all images, object by object, as one split."""
    factors = dict(zip(LATENT, torch.from_numpy(latents).split(list(LATENT.values()), dim=1), strict=True))
    factors["quaternion"] = euler_to_quaternion(factors["euler"])
    label = {synset: i for i, synset in enumerate(synsets)}
    return Split(
        images=images,
        ids=torch.arange(len(images)),
        labels=torch.tensor([label[name.split("/")[0]] for name in images.objects])[images.object],
        objects=images.object,
        factors={name: values.float() for name, values in factors.items()},
    )
