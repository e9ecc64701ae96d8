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
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eqssl.config import Classes, DataConfig, Pose
from eqssl.data import parquet
from eqssl.data.dataset import Dataset
from eqssl.data.rotation import euler_to_matrix, euler_to_quaternion
from eqssl.data.stores import EncodedImages, workers
from eqssl.data.synthetic.families import DRAWS, FAMILIES, build
from eqssl.data.synthetic.render import SUPERSAMPLING, Scene, hsv_to_rgb, render
from eqssl.data.write import Row, cache_folder, image_schema, make_once, missing_file, write_splits
from eqssl.random import counter_uniform

VERSION = 2  # increment whenever a pixel changes
SEED = 20241204
SHAPE_STREAM, COLOUR_STREAM, VIEW_STREAM = 0, 1, 2
DEFAULT_SIZE = 32
SPLITS = ("train", "val", "test")
FACTORS = {"euler": 3, "quaternion": 4, "floor_hue": 1, "light_theta": 1, "light_phi": 1, "light_hue": 1}
PROPORTIONS = ("one", "two")
FINE_SHARE = 0.4  # of a proportion's range that each fine class uses
OBJECTS_AT_ONCE = 8  # of one family, so that threads rarely wait for the interpreter's lock
RAYS_AT_ONCE = {"cpu": 2**15, "cuda": 2**22}  # few enough for the caches of a core


def load(config: DataConfig) -> Dataset:
    """Return the rendered set, from the cache if it was rendered before.

    Args:
        config: objects, views_per_object, pose, classes, image_size and cache are used.
    """
    size, views = config.image_size or DEFAULT_SIZE, config.views_per_object
    pose, classes = config.pose or "turntable", config.classes or "fine"
    key = f"solids-v{VERSION}-{pose}-{classes}-{config.objects}x{views}-{size}px"
    folder = cache_folder(config) / f"{key}-with-masks"
    half = math.ceil(config.objects / 2)
    counts = [config.objects, half, half]
    rows = {split: _rows(i, counts, views, size, pose, classes) for i, split in enumerate(SPLITS)}
    schema = image_schema(class_names(classes), FACTORS).append(pa.field("mask", pa.binary()))
    make_once(folder, lambda: write_splits(folder, rows, schema), missing_file)
    dataset = parquet.load(DataConfig(source="parquet", path=str(folder), cache=config.cache))
    splits = []
    for name, split in dataset.splits.items():
        masks = pq.read_table(sorted(folder.glob(f"{name}-*")), columns=["mask"])["mask"]
        splits.append(dataclasses.replace(split, masks=EncodedImages(masks, size, channels=1)))
    train, val, test = splits
    # Processors differ in the last bit of a pixel, so the digest is of the options, not of the pixels.
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
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
    planes, tones = build(family, draw_shape(split, objects, classes)[1])
    albedo = _palette(counter_uniform(SEED, split, objects, COLOUR_STREAM, 6))[:, tones]
    views = len(factors["euler"]) // len(objects)
    theta, phi = factors["light_theta"], factors["light_phi"]
    return Scene(
        planes=planes.repeat_interleave(views, 0),
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
    families, before, count = list(FAMILIES), sum(counts[:split]), counts[split]
    turn = len(families)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    at_once = max(1, RAYS_AT_ONCE[device] // (size * SUPERSAMPLING) ** 2)

    def of_family(first: int) -> list[list[Row]]:
        """Return the rows of each of the next objects of a family."""
        objects = torch.arange(first, count, turn)[:OBJECTS_AT_ONCE]
        factors = draw_factors(split, objects, views, pose)
        scene = draw_scene(families[first % turn], split, objects, factors, classes).to(device)
        images, masks = zip(*(render(part, size) for part in scene.split(at_once)), strict=True)
        columns: dict[str, list[Any]] = {name: values.squeeze(1).tolist() for name, values in factors.items()}
        columns["label"] = draw_shape(split, objects, classes)[0].repeat_interleave(views).tolist()
        columns["object"] = (before + objects).repeat_interleave(views).tolist()
        columns["image"] = [
            {"bytes": _png(pixels), "path": None} for pixels in torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()
        ]
        columns["mask"] = [_png(mask) for mask in torch.cat(masks).cpu().numpy()]
        rows = [dict(zip(columns, view, strict=True)) for view in zip(*columns.values(), strict=True)]
        return [rows[start : start + views] for start in range(0, len(rows), views)]

    starts = range(0, count, turn * OBJECTS_AT_ONCE)
    firsts = [range(start, min(start + turn, count)) for start in starts]
    rows_of = workers().map(of_family, chain.from_iterable(firsts))
    for some in firsts:
        # The last objects may not be enough for all families.
        for objects in zip_longest(*islice(rows_of, len(some)), fillvalue=[]):
            yield from chain.from_iterable(objects)


def _png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
