import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.dataset import Dataset
from eqssl.data.pairs import absolute_factors
from eqssl.data.stores import select
from eqssl.data.synthetic.families import FAMILIES
from eqssl.data.synthetic.render import render
from eqssl.data.synthetic.solids import class_names, draw_factors, draw_scene, draw_shape


def test_shapes_and_splits(solids: Dataset):
    assert (len(solids.train), len(solids.val), len(solids.test)) == (24 * 3, 12 * 3, 12 * 3)
    assert solids.paired and solids.channels == 3 and solids.image_size == 32
    assert solids.num_classes == 2 * len(FAMILIES)
    pixels = solids.train.images.take(torch.arange(4))
    assert pixels.shape == (4, 3, 32, 32) and pixels.dtype == torch.uint8


def test_classes_are_balanced(solids: Dataset):
    counts = solids.train.labels.bincount()
    assert (counts == counts[0]).all()


def test_splits_share_neither_object_nor_image(solids: Dataset):
    splits = (solids.train, solids.val, solids.test)
    objects = [set(split.objects.tolist()) for split in splits]
    assert sum(map(len, objects)) == len(set.union(*objects)) == 48
    ids = torch.cat([split.ids for split in splits])
    assert len(ids.unique()) == len(ids)
    images = torch.cat([split.images.take(torch.arange(len(split))) for split in splits])
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_factors_lie_in_the_ranges_of_3diebench(tmp_path: Path):
    config = DataConfig(cache=str(tmp_path), objects=300, views_per_object=2, image_size=4, pose="free")
    known = load_data(config).train.factors
    ranges = {"euler": (-math.pi / 2, math.pi / 2), "floor_hue": (0, 1), "light_theta": (0, math.pi / 4),
              "light_phi": (0, 2 * math.pi), "light_hue": (0, 1)}  # fmt: skip
    for name, (low, high) in ranges.items():
        values, span = known[name], high - low
        assert values.min() >= low and values.max() <= high
        assert (values.amin(0) < low + 0.05 * span).all() and (values.amax(0) > high - 0.05 * span).all()
        assert torch.allclose(values.mean(0), torch.tensor((low + high) / 2), atol=0.06 * span)
    assert known["quaternion"].shape == (600, 4)
    expected = Rotation.from_euler("xyz", known["euler"].numpy()).as_quat()
    np.testing.assert_allclose(known["quaternion"], expected, atol=1e-6)


def test_a_turntable_turns_about_the_vertical_axis_alone(solids: Dataset):
    euler = solids.train.factors["euler"]
    assert not euler[:, :2].any()
    assert euler[:, 2].min() < -1.4 and euler[:, 2].max() > 1.4 and euler.abs().max() <= math.pi / 2
    pose = absolute_factors(solids.train, torch.arange(len(solids.train)))["pose"]
    assert (pose.std(0) > 1e-3).sum() == 4  # cosine and sine of the angle, twice each


def test_fine_classes_are_the_families_in_two_proportions():
    objects = torch.arange(480)
    coarse, fine = (draw_shape(0, objects, classes) for classes in ("coarse", "fine"))
    assert torch.equal(fine[0] // 2, coarse[0])
    assert torch.equal(fine[1][:, 2:], coarse[1][:, 2:])
    one, two = (fine[1][fine[0] % 2 == kind] for kind in (0, 1))
    assert one[:, 0].max() <= 0.4 and one[:, 1].min() >= 0.6  # no object lies between the classes
    assert two[:, 0].min() >= 0.6 and two[:, 1].max() <= 0.4
    assert len(class_names("fine")) == 2 * len(class_names("coarse")) == len(fine[0].unique())


def test_pose_and_classes_are_parts_of_a_set_s_identity(solids: Dataset, solids_config: DataConfig, tmp_path: Path):
    config = replace(solids_config, cache=str(tmp_path), objects=12, views_per_object=2, image_size=4)
    kinds = [{}, {"pose": "free"}, {"classes": "coarse"}]
    assert len({load_data(replace(config, **kind)).digest for kind in kinds}) == 3
    assert load_data(replace(config, pose="turntable", classes="fine")).digest == load_data(config).digest


def test_rendering_twice_gives_the_same(solids: Dataset, solids_config: DataConfig, tmp_path: Path):
    again = load_data(replace(solids_config, cache=str(tmp_path)))
    every = torch.arange(len(solids.train))
    assert torch.equal(again.train.images.take(every), solids.train.images.take(every))
    assert torch.equal(again.train.factors["euler"], solids.train.factors["euler"])
    assert again.digest == solids.digest


def test_more_views_extend_a_set(solids: Dataset, solids_config: DataConfig, tmp_path: Path):
    more = load_data(replace(solids_config, cache=str(tmp_path), views_per_object=4))
    kept = (torch.arange(len(more.train)) % 4 < 3).nonzero()[:, 0]
    assert torch.equal(more.train.images.take(kept), solids.train.images.take(torch.arange(len(solids.train))))
    assert more.digest != solids.digest


def test_the_cache_is_used(solids: Dataset, solids_config: DataConfig, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr("eqssl.data.synthetic.solids.render", fail)
    assert load_data(solids_config).digest == solids.digest
    (folder,) = Path(solids_config.cache).glob("solids-*")
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "val")
    ]


@pytest.mark.parametrize("count", [5, 12, 101])  # fewer objects than families, one each, and some left over
def test_every_object_is_rendered_once_and_in_order(tmp_path: Path, count: int):
    config = DataConfig(cache=str(tmp_path), objects=count, views_per_object=2, image_size=4, pose="free")
    dataset, half = load_data(config), math.ceil(count / 2)
    first = 0
    for number, (name, size) in enumerate({"train": count, "val": half, "test": half}.items()):
        split, objects = dataset.splits[name], torch.arange(size)
        assert split.objects.tolist() == (first + objects).repeat_interleave(2).tolist()
        assert torch.equal(split.labels, draw_shape(number, objects, "fine")[0].repeat_interleave(2))
        assert torch.equal(split.factors["euler"], draw_factors(number, objects, 2)["euler"])
        first += size


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_masks_are_those_of_their_images(solids: Dataset, split: str):
    images, number = getattr(solids, split), ["train", "val", "test"].index(split)
    assert len(images.masks) == len(images)
    for i in (0, 5, 11):
        views, objects = torch.arange(3 * i, 3 * i + 3), torch.tensor([i])
        factors = draw_factors(number, objects, 3, "turntable")
        scene = draw_scene(list(FAMILIES)[i % len(FAMILIES)], number, objects, factors, "fine")
        pixels, expected = render(scene, 32)
        assert (pixels.int() - images.images.take(views).int()).abs().max() <= 1
        masks = images.masks.take(views)
        assert masks.dtype == torch.uint8 and torch.equal(masks[:, 0].bool(), expected)
    chosen = torch.tensor([7, 2])
    assert torch.equal(select(images, chosen).masks.take(torch.arange(2)), images.masks.take(chosen))


def test_families_that_would_alter_a_known_factor_are_named(solids: Dataset):
    assert {"flip", "rotation", "hue", "grayscale"} <= set(solids.altered_by)
    assert set(solids.altered_by.values()) <= set(solids.train.factors)


def test_speed_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start = time.perf_counter()
    dataset = load_data(DataConfig(cache=str(tmp_path), objects=48))
    wall_s = time.perf_counter() - start
    images = len(dataset.train) + len(dataset.val) + len(dataset.test)
    with capsys.disabled():
        print(f"\nsolids: {images / wall_s:.0f} images a second at 32 px, rendered, encoded, written and read")
    assert images == 96 * 4
