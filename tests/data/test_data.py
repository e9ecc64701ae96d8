import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from eqssl.config import DataConfig
from eqssl.data import load_data, register_source
from eqssl.data.dataset import Dataset, MemoryImages, Split


def toy(n: int, side: tuple[int, int] = (20, 20)) -> Dataset:
    def split(first: int, count: int) -> Split:
        generator = torch.Generator().manual_seed(first)
        pixels = torch.randint(0, 256, (count, 1, *side), dtype=torch.uint8, generator=generator)
        return Split(MemoryImages(pixels), torch.arange(first, first + count), labels=torch.arange(count))

    known = {"channels": 1, "image_size": 20, "num_classes": n, "mean": (0.5,), "std": (0.3,), "digest": "0" * 16}
    return Dataset("toy", split(0, n), split(n, 4), split(n + 4, 4), paired=False, **known)


@pytest.fixture(autouse=True)
def source():
    register_source("toy", lambda config: toy(50))


def test_unknown_source_lists_the_known():
    with pytest.raises(ValueError, match=r"'nope'; allowed: .*parquet.*solids"):
        load_data(DataConfig(source="nope"))


def test_a_path_is_refused_by_the_source_that_is_rendered():
    with pytest.raises(ValueError, match=r"--data.path is 'photos'; allowed with .*imagefolder.*, not with solids"):
        load_data(DataConfig(path="photos"))


def test_train_images_is_a_fixed_subset():
    whole, a, b = (load_data(DataConfig(source="toy", train_images=n)).train for n in (None, 20, 20))
    assert len(whole) == 50 and len(a) == 20 and torch.equal(a.ids, b.ids)
    assert torch.equal(a.images.take(torch.arange(20)), whole.images.take(a.ids))
    assert torch.equal(a.labels, whole.labels[a.ids])


def test_more_train_images_than_there_are():
    with pytest.raises(ValueError, match=r"--data\.train-images is 51; allowed: at most 50"):
        load_data(DataConfig(source="toy", train_images=51))


def test_object_pairs_need_objects():
    with pytest.raises(ValueError, match=r"--data\.pairs"):
        load_data(DataConfig(source="toy", pairs="object"))


def test_a_paired_source_can_be_used_image_by_image(solids, solids_config):
    single = load_data(replace(solids_config, pairs="image"))
    assert solids.paired and not single.paired
    assert single.digest != solids.digest


def test_train_images_of_a_paired_source_keeps_objects_whole(solids_config):
    data = load_data(replace(solids_config, train_images=20))
    assert len(data.train) == 18  # six objects of three views
    assert (data.train.objects.unique(return_counts=True)[1] == 3).all()


def paired_toy(views: dict[str, list[int]]) -> Dataset:
    """Return pairs of objects that have these numbers of views in each split."""
    data = toy(50)
    splits, first = {}, 0
    for name, counts in views.items():
        objects = torch.arange(first, first + len(counts)).repeat_interleave(torch.tensor(counts))
        pixels = torch.zeros(len(objects), 1, 20, 20, dtype=torch.uint8)
        splits[name] = Split(MemoryImages(pixels), torch.arange(len(objects)), objects=objects)
        first += len(counts)
    return replace(data, paired=True, **splits)


def test_an_object_with_a_single_view_is_named_with_its_split_and_source():
    register_source("toy", lambda config: paired_toy({"train": [2, 3], "val": [2, 2, 2], "test": [3, 1, 2]}))
    for path, where in ((None, "source toy"), ("it", "source toy, --data.path it")):
        with pytest.raises(ValueError, match=rf"{where}: 1 of 3 objects of test have a single view \(6\)"):
            load_data(DataConfig(source="toy", path=path))
    assert not load_data(DataConfig(source="toy", pairs="image")).paired
    register_source("toy", lambda config: paired_toy({"train": [1] * 9, "val": [2], "test": [2]}))
    with pytest.raises(ValueError, match=r"9 of 9 objects of train .*\(0, 1, 2, 3, 4, \.\.\.\)"):
        load_data(DataConfig(source="toy"))
    register_source("toy", lambda config: paired_toy({"train": [2, 3], "val": [2], "test": [3, 2]}))
    assert load_data(DataConfig(source="toy")).paired


@pytest.mark.parametrize("values, message", [
    (torch.ones(4, 3), r"quaternion of image 0 of test has 3 numbers; allowed: 4 for each image"),
    (torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]] * 2), r"quaternion of image 1 of test is \[0.0, .* \(2 such"),
])  # fmt: skip
def test_a_factor_of_any_source_is_checked(values, message):
    data = paired_toy({"train": [2], "val": [2], "test": [2, 2]})
    faulty = replace(data.test, factors={"quaternion": values})
    register_source("toy", lambda config: replace(data, test=faulty))
    with pytest.raises(ValueError, match=message):
        load_data(DataConfig(source="toy"))
    assert load_data(DataConfig(source="toy", pairs="image")).test.factors


def test_classes_that_a_split_lacks_are_named_in_one_warning(caplog):
    def labelled(**labels: list[int] | None) -> Dataset:
        data = toy(50)
        known = {name: classes and torch.tensor(classes) for name, classes in labels.items()}
        return replace(data, **{name: replace(getattr(data, name), labels=of) for name, of in known.items()})

    register_source("toy", lambda config: labelled(train=[0, 1] * 25, val=[0, 0, 1, 2], test=[1] * 4))
    load_data(DataConfig(source="toy"))
    assert [record.getMessage() for record in caplog.records] == [
        "--data.source toy: of 3 classes, train lacks 1 (2), test lacks 2 (0, 2)"
    ]
    caplog.clear()
    register_source("toy", lambda config: labelled(train=[1, 0] * 25, val=[0, 0, 1, 1], test=[0, 1, 0, 1]))
    load_data(DataConfig(source="toy"))
    register_source("toy", lambda config: labelled(train=None, val=None, test=None))
    load_data(DataConfig(source="toy"))
    assert not caplog.records


def test_one_class_is_none(caplog):
    data = toy(50)
    one = {
        name: replace(getattr(data, name), labels=getattr(data, name).labels * 0) for name in ("train", "val", "test")
    }
    register_source("toy", lambda config: replace(data, **one))
    loaded = load_data(DataConfig(source="toy"))
    assert loaded.num_classes == 0 and loaded.train.labels is loaded.val.labels is loaded.test.labels is None
    assert caplog.messages == ["--data.source toy: all images of train are of one class, so no accuracy is measured"]


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_without_the_labels_that_train_has_is_refused(name):
    data = toy(50)
    split = replace(getattr(data, name), labels=None)
    register_source("toy", lambda config: replace(data, **{name: split}))
    with pytest.raises(ValueError, match=f"--data.source toy: train has labels, {name} has none; allowed: in all"):
        load_data(DataConfig(source="toy"))


def test_any_source_is_resized_and_cut_to_the_centre():
    register_source("toy", lambda config: toy(50, side=(20, 30)))
    data = load_data(DataConfig(source="toy", image_size=10))
    pixels = data.train.images.take(torch.arange(3))
    assert pixels.shape == (3, 1, 10, 10) and pixels.dtype == torch.uint8 and data.image_size == 10
    centre = toy(50, side=(20, 30)).train.images.pixels[:3, :, :, 5:25].float()
    assert (pixels.float().mean((1, 2, 3)) - centre.mean((1, 2, 3))).abs().max() < 3


def test_a_printed_data_set_shows_no_pixels():
    text = repr(toy(50))
    assert "train=Split(50 images with labels)" in text and "tensor" not in text


def test_importing_costs_no_torch():
    for module, heavy in (
        ("eqssl.data", ("torch", "pyarrow", "PIL")),
        ("eqssl.data.folders", ("torch", "torchvision")),
    ):
        code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
