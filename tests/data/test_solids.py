import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eqssl.config import DataConfig
from eqssl.data import load
from eqssl.data.dataset import Dataset
from eqssl.data.families import FAMILIES


def test_shapes_and_splits(solids: Dataset):
    assert (len(solids.train), len(solids.val), len(solids.test)) == (24 * 3, 6 * 3, 6 * 3)
    assert solids.paired and solids.channels == 3 and solids.image_size == 32
    assert solids.num_classes == len(FAMILIES)
    pixels = solids.train.images.take(torch.arange(4))
    assert pixels.shape == (4, 3, 32, 32) and pixels.dtype == torch.uint8


def test_classes_are_balanced(solids: Dataset):
    counts = solids.train.labels.bincount()
    assert (counts == counts[0]).all()


def test_splits_share_neither_object_nor_image(solids: Dataset):
    splits = (solids.train, solids.val, solids.test)
    objects = [set(split.objects.tolist()) for split in splits]
    assert sum(map(len, objects)) == len(set.union(*objects)) == 36
    ids = torch.cat([split.ids for split in splits])
    assert len(ids.unique()) == len(ids)
    images = torch.cat([split.images.take(torch.arange(len(split))) for split in splits])
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_factors_lie_in_the_ranges_of_3diebench(tmp_path: Path):
    known = load(DataConfig(cache=str(tmp_path), objects=300, views_per_object=2, image_size=4)).train.factors
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


def test_rendering_twice_gives_the_same(solids: Dataset, solids_config: DataConfig, tmp_path: Path):
    again = load(replace(solids_config, cache=str(tmp_path)))
    every = torch.arange(len(solids.train))
    assert torch.equal(again.train.images.take(every), solids.train.images.take(every))
    assert torch.equal(again.train.factors["euler"], solids.train.factors["euler"])
    assert again.digest == solids.digest


def test_more_views_extend_a_set(solids: Dataset, solids_config: DataConfig, tmp_path: Path):
    more = load(replace(solids_config, cache=str(tmp_path), views_per_object=4))
    kept = (torch.arange(len(more.train)) % 4 < 3).nonzero()[:, 0]
    assert torch.equal(more.train.images.take(kept), solids.train.images.take(torch.arange(len(solids.train))))
    assert more.digest != solids.digest


def test_the_cache_is_used(solids: Dataset, solids_config: DataConfig, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr("eqssl.data.solids.render", fail)
    assert load(solids_config).digest == solids.digest
    folders = [path.name for path in Path(solids_config.cache).glob("[!.]*")]
    assert len(folders) == 1 and not folders[0].startswith(".")
    assert sorted(path.name for path in (Path(solids_config.cache) / folders[0]).iterdir()) == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "val")
    ]


def test_families_that_would_alter_a_known_factor_are_named(solids: Dataset):
    assert {"flip", "rotation", "hue", "grayscale"} <= set(solids.altered_by)
    assert set(solids.altered_by.values()) <= set(solids.train.factors)


def test_speed_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start = time.perf_counter()
    dataset = load(DataConfig(cache=str(tmp_path), objects=48))
    wall_s = time.perf_counter() - start
    images = len(dataset.train) + len(dataset.val) + len(dataset.test)
    with capsys.disabled():
        print(f"\nsolids: {images / wall_s:.0f} images a second at 64 px, rendered, encoded, written and read")
    assert images == 72 * 4
