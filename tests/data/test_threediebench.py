"""A small folder in 3DIEBench's layout, rendered by our own renderer, and everything that can be wrong with one."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from eqssl.config import DataConfig, EvaluateConfig
from eqssl.data import load_data
from eqssl.data.dataset import Split
from eqssl.data.pairs import relative_factors
from eqssl.data.synthetic.families import FAMILIES
from eqssl.data.synthetic.render import render
from eqssl.data.synthetic.solids import draw_factors, draw_scene
from eqssl.evaluation.encoders import Pixels
from eqssl.evaluation.predictions import metrics_of
from eqssl.evaluation.threediebench import threediebench_predictions

SYNSETS = ("03001627", "02691156")  # not in their order
OBJECTS, VIEWS, SIDE = 10, 3, 32
SPELT = ("euler", "floor_hue", "light_theta", "light_phi", "light_hue")


def names(first: int = 0, count: int = OBJECTS) -> list[str]:
    return [f"{SYNSETS[i % 2]}/{i:032x}" for i in range(first, first + count)]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten objects of two classes, three views each."""
    folder = tmp_path_factory.mktemp("3diebench") / "3DIEBench"
    families = list(FAMILIES)
    for i, name in enumerate(names()):
        (folder / name).mkdir(parents=True)
        factors = draw_factors(0, torch.tensor([i]), VIEWS)
        pixels, _ = render(draw_scene(families[i % 2], 0, torch.tensor([i]), factors), SIDE)
        latents = torch.cat([factors[factor] for factor in SPELT], dim=1).double().numpy()
        for view in range(VIEWS):
            Image.fromarray(pixels[view].permute(1, 2, 0).numpy()).save(folder / name / f"image_{view}.jpg")
            np.save(folder / name / f"latent_{view}.npy", latents[view])
    (folder / "LICENSE").write_text("CC-BY-NC")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of one's own to damage."""
    return Path(shutil.copytree(original, tmp_path / "3DIEBench"))


def config(folder: Path, **options: object) -> DataConfig:
    base = DataConfig(source="3diebench", path=str(folder), cache=str(folder.parent / "cache"))
    return replace(base, **{"image_size": SIDE, "max_bad_images": 0, **options})


def object_of(split: Split) -> list[str]:
    everything = sorted(names())
    return [everything[i] for i in split.objects.tolist()]


def test_images_labels_and_factors_belong_together(folder: Path):
    data = load_data(config(folder))
    assert (data.channels, data.image_size, data.num_classes, data.paired) == (3, SIDE, 2, True)
    for split in (data.train, data.val, data.test):
        pixels = split.images.take(torch.arange(len(split)))
        assert pixels.dtype == torch.uint8
        for i, name in enumerate(object_of(split)):
            view = i % VIEWS
            assert np.array_equal(pixels[i].permute(1, 2, 0), Image.open(folder / name / f"image_{view}.jpg"))
            assert split.labels[i] == sorted(SYNSETS).index(name.split("/")[0])
            latent = np.load(folder / name / f"latent_{view}.npy")
            known = torch.cat([split.factors[factor][i] for factor in SPELT])
            np.testing.assert_allclose(known, latent, rtol=1e-6)
            expected = Rotation.from_euler("xyz", latent[:3]).as_quat()
            np.testing.assert_allclose(split.factors["quaternion"][i], expected, atol=1e-6)


def test_pairs_have_the_targets_of_3diebench(folder: Path):
    split = load_data(config(folder)).train
    first, second = torch.tensor([0, 4]), torch.tensor([1, 3])
    between = relative_factors(split, first, second)
    turned = [Rotation.from_quat(split.factors["quaternion"][i].numpy()) for i in (first, second)]
    np.testing.assert_allclose(between["rotation"], (turned[0].inv() * turned[1]).as_quat(), atol=1e-6)
    assert set(between) == {"rotation", "floor_hue", "light_hue"}


def test_splits_share_no_object_and_are_the_same_every_time(folder: Path):
    data, again = load_data(config(folder)), load_data(config(folder, cache=str(folder.parent / "other")))
    splits = [set(split.objects.tolist()) for split in (data.train, data.val, data.test)]
    assert [len(objects) for objects in splits] == [8, 1, 1] and len(set.union(*splits)) == OBJECTS
    assert len(torch.cat([split.ids for split in (data.train, data.val, data.test)]).unique()) == OBJECTS * VIEWS
    assert torch.equal(data.val.objects, again.val.objects) and data.digest == again.digest


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("lists", [("train", "val"), ("val",), ("train",)])
def test_the_lists_of_the_reference_code_are_kept(folder: Path, lists: tuple[str, ...], beside: bool):
    listed = {"train": names(0, 6), "val": names(6, 4)}
    for name in lists:
        entries = np.array([f"/{item}/" for item in listed[name]])
        np.save((folder.parent if beside else folder) / f"{name}_images.npy", entries)
    data = load_data(config(folder))
    assert set(object_of(data.train)) == set(listed["train"])
    val, test = (set(object_of(split)) for split in (data.val, data.test))
    assert val | test == set(listed["val"]) and len(val) == len(test) == 2


def test_digest_follows_latents_splits_and_size(folder: Path):
    digests = [load_data(config(folder)).digest, load_data(config(folder, image_size=16)).digest]
    np.save(folder / "val_images.npy", np.array(names(6, 4)))
    digests.append(load_data(config(folder)).digest)
    latent = folder / names()[0] / "latent_0.npy"
    latent.unlink()
    np.save(latent, np.full(7, 0.5))
    digests.append(load_data(config(folder)).digest)
    assert len(set(digests)) == 4


def test_latents_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_data(config(folder))
    read: list[str] = []
    monkeypatch.setattr("eqssl.data.threediebench._read_latent", lambda path: read.append(path) or np.zeros(7))
    again = load_data(config(folder))
    assert not read and torch.equal(again.train.factors["euler"], first.train.factors["euler"])
    os.utime(folder / names()[3], ns=(1, 1))
    load_data(config(folder))
    assert len(read) == OBJECTS * VIEWS


def test_latents_that_were_written_over_are_read_again(folder: Path):
    first = load_data(config(folder))
    for path in folder.rglob("latent_*.npy"):
        save_latent(path, np.load(path) / 2)
    assert load_data(config(folder)).digest != first.digest


def test_images_are_resized_to_256_or_what_is_asked_for(folder: Path):
    assert load_data(config(folder, image_size=None)).val.images.take(torch.arange(2)).shape == (2, 3, 256, 256)
    assert load_data(config(folder, image_size=16)).val.images.take(torch.arange(2)).shape == (2, 3, 16, 16)


def test_views_are_in_the_order_of_their_numbers(folder: Path):
    name = folder / names()[0]
    for kind in ("image_{}.jpg", "latent_{}.npy"):
        (name / kind.format(1)).rename(name / kind.format(10))
    data = load_data(config(folder))
    split, row = next(
        (split, split.objects.tolist().index(sorted(names()).index(names()[0])))
        for split in (data.train, data.val, data.test)
        if names()[0] in object_of(split)
    )
    euler = [np.load(name / f"latent_{view}.npy")[:3] for view in (0, 2, 10)]
    np.testing.assert_allclose(split.factors["euler"][row : row + 3], euler, rtol=1e-6)


def test_what_alters_pose_or_hue_is_refused_as_for_solids(folder: Path):
    assert {"flip", "rotation", "hue"} <= load_data(config(folder)).altered_by.keys()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_an_unreadable_image_is_named_counted_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture):
    np.save(folder / "val_images.npy", np.array(names(6, 4)))
    truncate(folder / names()[0] / "image_1.jpg")
    with caplog.at_level(logging.WARNING):
        data = load_data(config(folder, max_bad_images=1))
    euler = data.train.factors["euler"][data.train.objects == sorted(names()).index(names()[0])]
    expected = [np.load(folder / names()[0] / f"latent_{view}.npy")[:3] for view in (0, 2)]
    np.testing.assert_allclose(euler, expected, rtol=1e-6)
    assert len(data.train.images) == len(data.train.objects) == 6 * VIEWS - 1
    assert caplog.text.count("image_1.jpg") == 1 and "1 of at most 1" in caplog.text


def test_too_many_unreadable_images_are_an_error_that_names_them(folder: Path):
    np.save(folder / "val_images.npy", np.array(names(6, 4)))
    truncate(folder / names()[0] / "image_1.jpg")
    (folder / names()[2] / "image_0.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"max-bad-images is 1; unreadable: .*image_\d.jpg, .*image_\d.jpg"):
        load_data(config(folder, max_bad_images=1))


def test_a_missing_image_counts_as_unreadable(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / names()[4] / "image_2.jpg").unlink()
    with pytest.raises(ValueError, match=rf"{names()[4]}/image_2\.jpg"):
        load_data(config(folder))
    data = load_data(config(folder, max_bad_images=1))
    assert sum(map(len, (data.train, data.val, data.test))) == OBJECTS * VIEWS - 1
    assert f"{names()[4]}/image_2.jpg" in caplog.text


def test_a_class_that_a_split_lacks_is_named(folder: Path, caplog: pytest.LogCaptureFixture):
    chairs = [name for name in names() if name.startswith("03001627")]
    np.save(folder / "val_images.npy", np.array(chairs[:2]))
    data = load_data(config(folder))
    assert data.num_classes == 2 and set(data.val.labels.tolist()) == {1}  # the rank does not depend on the split
    where = f"--data.source 3diebench, --data.path {folder}"
    lacks = f"lacks 1 ({data.class_names[0]})"
    assert f"{where}: of 2 classes, val {lacks}, test {lacks}" in caplog.text


def save_latent(path: Path, latent: object) -> None:
    np.save(path, np.asarray(latent))


@pytest.mark.parametrize("damage, message", [
    (lambda path: save_latent(path, np.zeros(9)), r"float64 \(9,\).*seven finite"),
    (lambda path: save_latent(path, np.zeros((1, 7))), r"\(1, 7\).*seven finite"),
    (lambda path: save_latent(path, [0, 0, np.nan, 0, 0, 0, 0]), "nan.*seven finite"),
    (lambda path: save_latent(path, ["a"] * 7), "<U1.*seven finite"),
    (lambda path: path.write_bytes(b""), "is not a readable .npy"),
    (lambda path: path.write_bytes(path.read_bytes()[:150]), "is not a readable .npy"),
    (lambda path: path.unlink(), "is missing, and its image is there"),
])  # fmt: skip
def test_a_latent_that_cannot_be_used_is_named(folder: Path, damage: Callable[[Path], None], message: str):
    damage(folder / names()[3] / "latent_1.npy")
    with pytest.raises(ValueError, match=rf"(?s){names()[3]}/latent_1\.npy.*{message}"):
        load_data(config(folder))
    assert not list((folder.parent / "cache").glob("3diebench*"))


@pytest.mark.parametrize("kept", [0, 1])
def test_an_object_with_fewer_than_two_views_is_named(folder: Path, kept: int):
    for view in range(kept, VIEWS):
        (folder / names()[5] / f"image_{view}.jpg").unlink()
        (folder / names()[5] / f"latent_{view}.npy").unlink()
    with pytest.raises(ValueError, match=rf"{names()[5]}' has {kept} views"):
        load_data(config(folder))


@pytest.mark.parametrize("make, message", [
    (lambda p: p / "nowhere", r"--data\.path is .*nowhere.*allowed: a folder"),
    (lambda p: (p / "empty").mkdir() or p / "empty", "holds no SYNSET/OBJECT"),
])  # fmt: skip
def test_folders_that_are_none(tmp_path: Path, make: Callable[[Path], Path], message: str):
    with pytest.raises(ValueError, match=message):
        load_data(config(make(tmp_path)))


def test_path_is_needed(folder: Path):
    with pytest.raises(ValueError, match=r"--data\.path is None"):
        load_data(replace(config(folder), path=None))


@pytest.mark.parametrize("lists, message", [
    ({"val": ["/02691156/elsewhere/"]}, r"val_images\.npy' lists '02691156/elsewhere'.*1 such"),
    ({"train": names(), "val": names(6, 4)}, "is in both"),
    ({"val": names()}, "leave none for train"),
    ({"val": names(0, 1)}, "leave none for test"),
])  # fmt: skip
def test_lists_that_do_not_fit(folder: Path, lists: dict[str, list[str]], message: str):
    for name, entries in lists.items():
        np.save(folder / f"{name}_images.npy", np.array(entries))
    with pytest.raises(ValueError, match=message):
        load_data(config(folder))


def test_a_folder_is_evaluated_under_its_own_protocol(folder: Path):
    np.save(folder / "val_images.npy", np.array(names(4, 6)))
    figures = metrics_of(threediebench_predictions(Pixels(), load_data(config(folder, image_size=8)), EvaluateConfig()))
    assert {"3die/top1", "3die/mlp_r2/rotation", "3die/linear_r2/colour", "3die/posthoc_mrr"} <= figures.keys()
    assert np.isfinite(list(figures.values())).all()
