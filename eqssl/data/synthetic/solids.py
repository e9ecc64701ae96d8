"""The default set, rendered on first use: solids with known pose, floor hue and light, in the protocol of 3DIEBench.

The factors and their ranges are those of 3DIEBench (Garrido et al., arXiv 2302.10283): three angles in ± 90 degrees,
hues in [0, 1], a lamp at polar angle [0, 45] degrees and azimuth [0, 360]. On a turntable objects turn only about
the vertical axis, by ± 90 degrees: pose can then be learned from some 1,250 objects, whereas three angles take some
8,000. The fine classes are two kinds of proportions of each family. Train, val and test share no object.
"""

import dataclasses
import hashlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eqssl.config import Classes, DataConfig, Pose
from eqssl.data import parquet
from eqssl.data.dataset import Dataset
from eqssl.data.rotation import euler_to_matrix, euler_to_quaternion
from eqssl.data.stores import workers
from eqssl.data.synthetic.families import DRAWS, FAMILIES, build
from eqssl.data.synthetic.render import Scene, hsv_to_rgb, render, render_masks
from eqssl.data.write import Row, atomic, cache_folder, image_schema, make_once, write_splits
from eqssl.random import counter_uniform

VERSION = 2  # increment whenever a pixel changes
SEED = 20241204
SHAPE_STREAM, COLOUR_STREAM, VIEW_STREAM = 0, 1, 2
DEFAULT_SIZE = 32
SPLITS = ("train", "val", "test")
FACTORS = {"euler": 3, "quaternion": 4, "floor_hue": 1, "light_theta": 1, "light_phi": 1, "light_hue": 1}
PROPORTIONS = ("one", "two")
FINE_SHARE = 0.4  # of a proportion's range that each fine class uses
OBJECTS_AT_ONCE = 96
IMAGES_AT_ONCE = {"cpu": 2, "cuda": 256}  # few enough for the caches of a core


def load(config: DataConfig) -> Dataset:
    """Return the rendered set, from the cache if it was rendered before.

    Args:
        config: objects, views_per_object, pose, classes, image_size and cache are used.
    """
    size, views = config.image_size or DEFAULT_SIZE, config.views_per_object
    pose, classes = config.pose or "turntable", config.classes or "fine"
    key = f"solids-v{VERSION}-{pose}-{classes}-{config.objects}x{views}-{size}px"
    folder = cache_folder(config) / key
    half = math.ceil(config.objects / 2)
    counts = [config.objects, half, half]

    def make() -> None:
        rows = {split: _rows(i, counts, views, size, pose, classes) for i, split in enumerate(SPLITS)}
        with atomic(folder) as temporary:
            write_splits(temporary, rows, image_schema(class_names(classes), FACTORS))

    make_once(folder, make)
    dataset = parquet.load(DataConfig(source="parquet", path=str(folder), cache=config.cache))
    splits = dataset.splits
    for i, (name, split) in enumerate(splits.items()):
        masks = SolidMasks(
            folder.with_name(f"{key}-masks") / name,
            split=i,
            objects=counts[i],
            views=views,
            size=size,
            pose=pose,
            classes=classes,
        )
        splits[name] = dataclasses.replace(split, masks=masks)
    # Processors differ in the last bit of a pixel, so the digest is of the options, not of the pixels.
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    train, val, test = splits.values()
    return dataclasses.replace(dataset, name="solids", train=train, val=val, test=test, digest=digest)


def class_names(classes: Classes) -> list[str]:
    """Return the names of the classes, in the order of their labels."""
    if classes == "coarse":
        return list(FAMILIES)
    return [f"{family}, {kind}" for family in FAMILIES for kind in PROPORTIONS]


def draw_shape(split: int, objects: Tensor, classes: Classes) -> tuple[Tensor, Tensor]:
    """Return the labels of objects and the numbers that shape them.

    The families take turns. The two fine classes of a family differ in its first two proportions: one is in the upper
    two fifths of its range and the other in the lower two, or the reverse, so that no object lies between the classes.

    Args:
        split: 0, 1, 2 for train, val, test.
        objects: int64 (N,), counted within the split.
        classes: coarse or fine.

    Returns:
        int64 (N,) labels and float32 (N, DRAWS) in [0, 1).
    """
    uniform = counter_uniform(SEED, split, objects, SHAPE_STREAM, DRAWS)
    family = objects % len(FAMILIES)
    if classes == "coarse":
        return family, uniform
    kind = (objects // len(FAMILIES)) % 2
    first, second = FINE_SHARE * uniform[:, 0], FINE_SHARE * uniform[:, 1]
    high = 1 - FINE_SHARE
    uniform[:, 0] = torch.where(kind == 0, first, high + first)
    uniform[:, 1] = torch.where(kind == 0, high + second, second)
    return family * 2 + kind, uniform


def draw_factors(split: int, objects: Tensor, views: int, pose: Pose = "free") -> dict[str, Tensor]:
    """Return the known factors of every view.

    Args:
        split: 0, 1, 2 for train, val, test.
        objects: int64 (N,), counted within the split.
        views: V, of each object.
        pose: whether all three angles vary or only the last.

    Returns:
        name -> float32 (N x V, k): angles in rad, hues in turns.
    """
    # A view's identity does not depend on the number of its object's views, so that more views only extend a set.
    ids = (objects[:, None] * 2**20 + torch.arange(views)).flatten()
    uniform = counter_uniform(SEED, split, ids, VIEW_STREAM, 7)
    euler = (uniform[:, :3] - 0.5) * math.pi
    if pose == "turntable":
        euler[:, :2] = 0
    return {
        "euler": euler,
        "quaternion": euler_to_quaternion(euler),
        "floor_hue": uniform[:, 3:4],
        "light_theta": uniform[:, 4:5] * (math.pi / 4),
        "light_phi": uniform[:, 5:6] * (2 * math.pi),
        "light_hue": uniform[:, 6:7],
    }


def draw_scene(
    family: str, split: int, objects: Tensor, factors: dict[str, Tensor], classes: Classes = "coarse"
) -> Scene:
    """Return the scenes of some objects of one family.

    Args:
        family: a name of FAMILIES.
        split: 0, 1, 2 for train, val, test.
        objects: int64 (N,), counted within the split.
        factors: those of V views of each object, as returned by `draw_factors`.
        classes: coarse or fine, which decides the proportions.
    """
    solids = build(family, draw_shape(split, objects, classes)[1])
    albedo = _palette(counter_uniform(SEED, split, objects, COLOUR_STREAM, 6))[:, solids.tones]
    views = len(factors["euler"]) // len(objects)
    theta, phi = factors["light_theta"], factors["light_phi"]
    return Scene(
        planes=solids.planes.repeat_interleave(views, 0),
        albedo=albedo.repeat_interleave(views, 0),
        rotation=euler_to_matrix(factors["euler"]),
        floor=hsv_to_rgb(factors["floor_hue"][:, 0], 0.6, 0.6),
        lamp_direction=torch.cat((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), 1),
        lamp=hsv_to_rgb(factors["light_hue"][:, 0], 1.0, 1.0),
    )


def _palette(uniform: Tensor) -> Tensor:
    """Return an object's three colours (N, 3, RGB): pale, its dark companion and a vivid one of another hue."""
    first, near, far, pale, dark, bright = uniform.unbind(1)
    hue = torch.stack((first, first + 0.1 * near, first + 0.3 + 0.4 * far), 1)
    saturation = torch.stack((0.1 + 0.4 * pale, 0.3 + 0.3 * dark, torch.full_like(pale, 0.75)), 1)
    value = torch.stack((0.85 + 0.15 * bright, 0.5 + 0.2 * dark, torch.full_like(pale, 0.9)), 1)
    return hsv_to_rgb(hue % 1, saturation, value)


def _rows(split: int, counts: list[int], views: int, size: int, pose: Pose, classes: Classes) -> Iterator[Row]:
    """Yield the rows of a split, object by object, the families in turn."""
    for start in range(0, counts[split], OBJECTS_AT_ONCE):
        objects = torch.arange(start, min(start + OBJECTS_AT_ONCE, counts[split]))
        factors = draw_factors(split, objects, views, pose)
        columns = {
            "label": draw_shape(split, objects, classes)[0].repeat_interleave(views),
            "object": (objects + sum(counts[:split])).repeat_interleave(views),
            **{name: values.squeeze(1) for name, values in factors.items()},
        }
        values = {name: column.tolist() for name, column in columns.items()}
        for i, data in enumerate(_encoded_images(split, objects, factors, size, classes)):
            yield {"image": {"bytes": data, "path": None}, **{name: column[i] for name, column in values.items()}}


@dataclass(frozen=True)
class SolidMasks:
    """The masks of a split: the pixels that show the object. They are rendered on first use, then read from the cache.

    Args:
        folder: of the cache, with one file for each selection of images: uint8 (B, bytes), eight pixels in a byte.
        split: 0, 1, 2 for train, val, test.
        objects, views, size, pose, classes: of the split's images.
    """

    folder: Path
    split: int
    objects: int
    views: int
    size: int
    pose: Pose
    classes: Classes

    def __len__(self) -> int:
        return self.objects * self.views

    def take(self, indices: Tensor) -> Tensor:
        path = self.folder / f"{hashlib.sha256(indices.numpy().tobytes()).hexdigest()[:16]}.npy"

        def make() -> None:
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, self._render(indices))

        try:
            make_once(path, make)
            packed = np.load(path)
        except (OSError, ValueError):  # a cache that cannot be written, or a damaged file
            packed = self._render(indices)
        pixels = np.unpackbits(packed, axis=1, count=self.size**2)
        return torch.from_numpy(pixels).view(-1, 1, self.size, self.size)

    def _render(self, indices: Tensor) -> NDArray[np.uint8]:
        objects, view = indices // self.views, indices % self.views
        drawn, inverse = objects.unique(return_inverse=True)
        factors = draw_factors(self.split, drawn, self.views, self.pose)
        factors = {name: values[inverse * self.views + view] for name, values in factors.items()}
        masks = torch.empty(len(indices), self.size, self.size, dtype=torch.bool)

        def work(places: Tensor, scene: Scene) -> None:
            masks[places] = render_masks(scene, self.size).cpu()

        _for_scenes(work, self.split, objects, factors, self.classes)
        return np.packbits(masks.flatten(1).numpy(), axis=1)


def _encoded_images(
    split: int, objects: Tensor, factors: dict[str, Tensor], size: int, classes: Classes
) -> list[bytes]:
    """Render the views of some objects and return them as PNG, in the order of the factors."""
    encoded: list[bytes] = [b""] * len(factors["euler"])

    def work(places: Tensor, scene: Scene) -> None:
        for place, pixels in zip(places.tolist(), render(scene, size).cpu(), strict=True):
            file = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
            encoded[place] = file.getvalue()

    _for_scenes(work, split, objects, factors, classes)
    return encoded


def _for_scenes(
    work: Callable[[Tensor, Scene], None], split: int, objects: Tensor, factors: dict[str, Tensor], classes: Classes
) -> None:
    """Call a function, in threads, for all views of some objects, a few at a time.

    Args:
        work: takes the places of views in the factors, int64 (B,), and their scenes.
        split, objects, factors, classes: see `draw_scene`; the objects are of all families.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    family_of_view = (objects % len(FAMILIES)).repeat_interleave(len(factors["euler"]) // len(objects))
    parts: list[tuple[Tensor, Scene]] = []
    for i, family in enumerate(FAMILIES):
        places = (family_of_view == i).nonzero()[:, 0]
        if len(places):
            known = {name: values[places] for name, values in factors.items()}
            scene = draw_scene(family, split, objects[objects % len(FAMILIES) == i], known, classes)
            parts += zip(places.split(IMAGES_AT_ONCE[device]), scene.split(IMAGES_AT_ONCE[device]), strict=True)
    list(workers().map(lambda part: work(part[0], part[1].to(device)), parts))
