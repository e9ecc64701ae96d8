import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eqssl.config import DataConfig, RunConfig
from eqssl.data import load_data
from eqssl.data.stores import EncodedImages
from eqssl.data.write import image_schema, write_splits

FASHION_MNIST = Path(__file__).parents[3] / "shared/data/fashion_mnist"


def config(path: object, cache: str = "c", **options: object) -> DataConfig:
    folder = Path(str(path).removeprefix("file://")).parent
    return DataConfig(source="parquet", path=str(path), cache=str(folder / cache), **options)


@pytest.fixture
def images(png):
    return [png(seed) for seed in range(40)]


def test_columns_become_labels_objects_and_factors(tmp_path, write, images, caplog):
    columns = {
        "label": pa.array([i % 3 for i in range(40)]),
        "object": pa.array([f"o{i // 4}" for i in range(40)]),
        "angle": pa.array([i / 7 for i in range(40)]),
        "pose": pa.array([[i, -i] for i in range(40)], pa.list_(pa.float32(), 2)),
        "axis": pa.array([[i, 2.0, 3.0] for i in range(40)], pa.list_(pa.float64())),
        "boxes": pa.array([[1.0] * (i % 3) for i in range(40)], pa.list_(pa.float64())),
        "caption": pa.array(["text"] * 40),
        "mask": pa.array([b"no image"] * 40),
    }
    write(tmp_path / "set/train-00000-of-00001.parquet", images, **columns)
    data = load_data(config(tmp_path / "set"))
    assert data.num_classes == 3 and data.channels == 3 and data.image_size == 12 and data.paired
    assert set(data.train.factors) == {"angle", "pose", "axis"}
    assert data.train.factors["axis"][:, 0].tolist() == data.train.ids.tolist()
    assert "column 'boxes' is not a factor" in caplog.text and "mask" not in caplog.text
    assert data.train.factors["pose"].shape == (32, 2)
    rows = data.train.ids  # nothing is left out, so that an image's number is its row
    torch.testing.assert_close(data.train.factors["angle"][:, 0], rows.float() / 7)
    assert torch.equal(data.train.labels, rows % 3)


def test_pixels_mean_and_std(tmp_path, write, images):
    write(tmp_path / "set/data/train-0.parquet", images)
    write(tmp_path / "set/data/validation-0.parquet", images[:4])
    write(tmp_path / "set/data/test-0.parquet", images[4:8])
    data = load_data(config(tmp_path / "set"))
    assert (len(data.train), len(data.val), len(data.test)) == (40, 4, 4)
    pixels = data.train.images.take(torch.arange(40)).double() / 255
    torch.testing.assert_close(torch.tensor(data.mean, dtype=torch.float64), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std, dtype=torch.float64), pixels.std((0, 2, 3), correction=0))
    assert torch.equal(data.val.images.take(torch.arange(4)), data.train.images.take(torch.arange(4)))
    assert data.train.labels is None and data.num_classes == 0


@pytest.mark.parametrize("names, sizes", [
    (["train"], (32, 4, 4)), (["train", "test"], (36, 4, 40)), (["train", "val"], (40, 20, 20)), (["part"], (32, 4, 4)),
])  # fmt: skip
def test_missing_splits_are_cut_from_the_others(tmp_path, write, images, names, sizes):
    for name in names:
        write(tmp_path / f"set/{name}-00000-of-00001.parquet", images)
    data = load_data(config(tmp_path / "set"))
    assert tuple(map(len, (data.train, data.val, data.test))) == sizes
    ids = torch.cat([data.train.ids, data.val.ids, data.test.ids])
    assert len(ids.unique()) == len(ids)


def test_a_cut_keeps_objects_together(tmp_path, write, images):
    write(tmp_path / "one.parquet", images, object=pa.array([i // 4 for i in range(40)]))
    data = load_data(config(tmp_path / "one.parquet"))
    objects = [set(split.objects.tolist()) for split in (data.train, data.val, data.test)]
    assert [len(o) for o in objects] == [8, 1, 1] and len(set.union(*objects)) == 10


def test_uri(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images)
    assert load_data(config(f"file://{tmp_path}/set")).digest == load_data(config(tmp_path / "set")).digest


def test_digest_follows_content_and_options(tmp_path, write, images):
    write(tmp_path / "a/train-0.parquet", images)
    write(tmp_path / "b/train-0.parquet", images)
    write(tmp_path / "c/train-0.parquet", images[::-1])
    a, b, c = (load_data(config(tmp_path / name)).digest for name in "abc")
    assert a == b != c
    assert load_data(config(tmp_path / "a", image_size=8)).digest != a
    assert load_data(config(tmp_path / "a", train_images=9)).digest != a


def test_grey_stays_one_channel_and_mixed_becomes_three(tmp_path, write, png):
    write(tmp_path / "grey/train-0.parquet", [png(i, mode="L") for i in range(10)])
    write(tmp_path / "mixed/train-0.parquet", [png(i, mode=("L", "RGB", "RGBA")[i % 3]) for i in range(12)])
    grey, mixed = load_data(config(tmp_path / "grey")), load_data(config(tmp_path / "mixed"))
    assert grey.channels == 1 and mixed.channels == 3
    place = int((mixed.train.ids == mixed.train.ids[mixed.train.ids % 3 == 0][0]).nonzero())
    pixels = mixed.train.images.take(torch.tensor([place]))[0]
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])


def test_different_sizes_need_image_size(tmp_path, write, png):
    write(tmp_path / "set/train-0.parquet", [png(i, size=(12 + i, 20)) for i in range(20)])
    with pytest.raises(ValueError, match=r"--data\.image-size"):
        load_data(config(tmp_path / "set"))
    assert load_data(config(tmp_path / "set", image_size=16)).train.images.take(torch.arange(3)).shape == (3, 3, 16, 16)


def test_a_binary_column_by_another_name(tmp_path, images):
    table = pa.table({"picture": pa.array(images, pa.binary()), "kind": pa.array([i % 2 for i in range(40)])})
    pq.write_table(table, tmp_path / "x.parquet")
    data = load_data(config(tmp_path / "x.parquet", image_column="picture", label_column="kind"))
    assert data.num_classes == 2 and not data.train.factors


def test_unknown_labels_are_none(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([-1] * 40))
    data = load_data(config(tmp_path / "set"))
    assert data.train.labels is data.test.labels is None and data.num_classes == 0
    write(tmp_path / "set/test-0.parquet", images, label=pa.array([0, 1] * 20))
    data = load_data(config(tmp_path / "set"))  # without any in train there is nothing to ask of them
    assert data.train.labels is None and data.num_classes == 0


def test_what_would_alter_a_known_factor_is_known(tmp_path, write, images):
    columns = {"object": pa.array([i // 2 for i in range(40)]), "floor_hue": pa.array([i / 40 for i in range(40)])}
    write(tmp_path / "set/train-0.parquet", images, **columns)
    assert load_data(config(tmp_path / "set")).altered_by == {"hue": "floor_hue", "grayscale": "floor_hue"}


@pytest.mark.parametrize("unlabelled", ["val", "test"])
def test_a_split_without_labels_counts_as_missing_where_train_has_them(tmp_path, write, images, caplog, unlabelled):
    (labelled,) = {"val", "test"} - {unlabelled}
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([0, 1] * 20))
    write(tmp_path / f"set/{labelled}-0.parquet", images, label=pa.array([0, 1] * 20))
    alone = load_data(config(tmp_path / "set"))
    write(tmp_path / f"set/{unlabelled}-0.parquet", images, label=pa.array([-1] * 40))
    data = load_data(config(tmp_path / "set"))
    assert f"set: {unlabelled} has no labels" in caplog.text
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(data, name).labels, getattr(alone, name).labels)


@pytest.mark.parametrize("damage", [lambda b: b"no image", lambda b: b[: len(b) // 2], lambda b: None])
def test_a_bad_image_is_named_counted_and_skipped(tmp_path, write, images, caplog, damage):
    images[17] = damage(images[17])
    write(tmp_path / "set/train-0.parquet", images, label=pa.array(range(40)))
    with caplog.at_level(logging.WARNING):
        data = load_data(config(tmp_path / "set", max_bad_images=1))
    assert "train-0.parquet row 17" in caplog.text and "1 of at most 1" in caplog.text
    labels = torch.cat([data.train.labels, data.val.labels, data.test.labels])
    assert sorted(labels.tolist()) == [i for i in range(40) if i != 17]


def test_too_many_bad_images_are_an_error_that_names_them(tmp_path, write, images):
    images[3], images[30] = b"", images[30][:100]
    write(tmp_path / "set/train-0.parquet", images)
    with pytest.raises(ValueError, match=r"max-bad-images is 1.* row 3, .* row 30"):
        load_data(config(tmp_path / "set", max_bad_images=1))


def test_encoded_images_equal_those_in_memory(tmp_path, write, images, png, monkeypatch):
    images[5] = b"broken"
    images[6] = png(6, mode="L")
    columns = {"label": pa.array([i % 5 for i in range(40)]), "angle": pa.array([float(i) for i in range(40)])}
    write(tmp_path / "set/train-0.parquet", images, **columns)
    memory = load_data(config(tmp_path / "set"))
    monkeypatch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1000)
    for _ in range(2):  # written, then found in the cache
        encoded = load_data(config(tmp_path / "set", "other"))
        assert isinstance(encoded.train.images.images, EncodedImages)
        for name in ("train", "val", "test"):
            a, b = getattr(memory, name), getattr(encoded, name)
            order = torch.randperm(len(a))
            assert torch.equal(a.images.take(order), b.images.take(order))
            assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
            assert torch.equal(a.factors["angle"], b.factors["angle"])
        assert (memory.mean, memory.std, memory.digest) == (encoded.mean, encoded.std, encoded.digest)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_greys_of_16_bits_have_the_range_of_the_largest_and_both_stores_agree(
    tmp_path, write, monkeypatch, caplog, bits
):
    levels = np.random.default_rng(0).integers(0, 1 << bits, (30, 12, 12)).astype(np.uint16)
    levels[29, 0, 0] = (1 << bits) - 1
    files = [io.BytesIO() for _ in levels]
    for file, pixels in zip(files, levels, strict=True):
        Image.fromarray(pixels).save(file, "PNG")
    write(tmp_path / "set/train-0.parquet", [file.getvalue() for file in files] + [b"broken"])
    memory = load_data(config(tmp_path / "set"))
    assert torch.equal(memory.train.images.take(torch.arange(4))[:, 0],
                       torch.from_numpy((levels[memory.train.ids[:4]] >> (bits - 8)).astype(np.uint8)))  # fmt: skip
    assert caplog.text.count("unreadable image") == 1
    assert caplog.text.count(f"hold at most {(1 << bits) - 1}, so {bits} bits") == (bits < 16)
    monkeypatch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1000)
    for _ in range(2):
        encoded = load_data(config(tmp_path / "set", "other"))
        for name, split in memory.splits.items():
            every = torch.arange(len(split))
            assert torch.equal(split.images.take(every), encoded.splits[name].images.take(every))
        assert (memory.mean, memory.std, memory.digest) == (encoded.mean, encoded.std, encoded.digest)


def test_whole_images_are_stored_larger_than_they_are_seen(tmp_path, write, monkeypatch):
    """Oblong images, red at the left, green in the central square and blue at the right, and one that is a square."""
    files = [io.BytesIO() for _ in range(20)]
    for i, file in enumerate(files):
        image = Image.new("RGB", (40 if i else 20, 20), (0, 200, 0))
        image.paste((200, 0, 0), (0, 0, 10 if i else 0, 20))
        image.paste((0, 0, 200), (30 if i else 20, 0, 40, 20))
        image.save(file, "PNG")
    write(tmp_path / "set/train-0.parquet", [file.getvalue() for file in files])
    options = {"image_size": 8, "stored_size": 32}
    memory = load_data(config(tmp_path / "set", **options))
    images = memory.train.images
    assert memory.image_size == 8 and memory.digest != load_data(config(tmp_path / "set", image_size=8)).digest
    assert images.aspects.tolist() == [2.0 if i else 1.0 for i in memory.train.ids.tolist()]
    whole, seen = images.whole.take(torch.arange(16)), images.take(torch.arange(16))
    assert whole.shape == (16, 3, 32, 32) and seen.shape == (16, 3, 8, 8)
    assert (seen == torch.tensor([0, 200, 0])[:, None, None]).all(0)[:, 1:-1, 1:-1].all()
    oblong = whole[memory.train.ids[:16] > 0]
    assert (oblong[:, 0, :, :7] == 200).all() and (oblong[:, 2, :, -7:] == 200).all()
    monkeypatch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1000)
    encoded = load_data(config(tmp_path / "set", "other", **options))
    for name, split in memory.splits.items():
        every, other = torch.arange(len(split)), encoded.splits[name].images
        assert isinstance(other.whole.images, EncodedImages) and torch.equal(split.images.aspects, other.aspects)
        assert torch.equal(split.images.take(every), other.take(every))
        assert torch.equal(split.images.whole.take(every), other.whole.take(every))


def test_a_stored_size_is_refused_where_it_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"--data.stored-size is 64; allowed for --data.source solids: none"):
        load_data(DataConfig(cache=str(tmp_path), objects=4, image_size=16, stored_size=64))
    with pytest.raises(ValueError, match=r"--data.stored-size is 16; allowed: at least --data.image-size, which is 32"):
        RunConfig(data=DataConfig(image_size=32, stored_size=16))


def test_composed_images_are_reported_once_with_their_number(tmp_path, write, png, caplog):
    write(tmp_path / "set/train-0.parquet", [png(i, mode="RGBA" if i in (5, 7) else "RGB") for i in range(20)])
    load_data(config(tmp_path / "set"))
    assert caplog.text.count("over white") == 1
    assert "2 of 20 images, such as " in caplog.text and "train-0.parquet row 5" in caplog.text


@pytest.mark.parametrize("make, message", [
    (lambda p: p / "nowhere", "is not there"),
    (lambda p: (p / "empty").mkdir() or p / "empty", "holds no file"),
    (lambda p: (p / "train-0.parquet").write_text("text" * 9) and p / "train-0.parquet", "is not a readable Parquet"),
    (lambda p: "https://host/x", r"'https://host/x' cannot be opened: .*; allowed: a file or folder on a disk, .* s3://"),
    (lambda p: "hf://datasets/cifar10", "--data.path 'hf://datasets/cifar10' cannot be opened: Invalid HF URI"),
])  # fmt: skip
def test_paths_that_cannot_be_read(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        load_data(DataConfig(source="parquet", path=str(make(tmp_path)), cache=str(tmp_path / "cache")))


def test_path_is_needed():
    with pytest.raises(ValueError, match=r"--data.path is not given"):
        load_data(DataConfig(source="parquet"))


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_missing_column_lists_those_there(tmp_path, write, images, option):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([0] * 40), angle=pa.array([0.0] * 40))
    name = option.replace("_", "-")
    with pytest.raises(ValueError, match=rf"--data.{name} 'nothing' is not in .*there are: image, label, angle"):
        load_data(config(tmp_path / "set", **{option: "nothing"}))


@pytest.mark.parametrize("column, values, message", [
    ("label", ["a"] * 40, "label.* is string"),
    ("label", [0, None] * 20, "20 null"),
    ("label", [0, -2] * 20, "holds -2, in .*train-0.parquet row 1; allowed: 0 or more"),
    ("object", [0.0, float("nan")] * 20, "'object' holds nan, in .*train-0.parquet row 1; allowed"),
    ("object", [0, 0, 1, None] * 10, "'object' has 10 null, the first in .*train-0.parquet row 3"),
    ("object", [[0, 1]] * 40, "'object' is list<.*int64>; allowed: integers or names"),
    ("object", [b"\xff"] * 40, "'object' is binary; allowed: integers or names"),
])  # fmt: skip
def test_columns_that_cannot_be_used(tmp_path, write, images, column, values, message):
    write(tmp_path / "set/train-0.parquet", images, **{column: pa.array(values)})
    with pytest.raises(ValueError, match=message):
        load_data(config(tmp_path / "set"))


TURN = [0.0, 0.0, 0.6, 0.8]
FACTOR_FAULTS = [
    ("quaternion", [TURN[:3]] * 40, r"has 3 numbers; allowed: 4 for each image, in .*train-0.parquet row 0"),
    ("quaternion", [TURN] * 17 + [[0.0] * 4] * 23, r"is \[0.0, 0.0, 0.0, 0.0\] \(23 such; .*, in .*train-0.* row 17"),
    ("quaternion", [TURN, [*TURN, 1.0]] * 20, r"is not a factor: its lists have 4 .* in .*train-0.* row 1, 5; allowed"),
    ("quaternion", [TURN, None] * 20, r"has 20 null, the first in .*train-0.parquet row 1; allowed: none"),
    ("quaternion", [TURN, [None, *TURN[:3]]] * 20, r"is \[nan, .* in .*train-0.parquet row 1"),
    ("floor_hue", [0.0, 1e300] * 20, r"is \[1e\+300\] \(20 such; allowed: finite .*, in .*train-0.parquet row 1"),
    ("light_hue", [[0.0, 0.5]] * 40, r"has 2 numbers; allowed: 1 for each image"),
]  # fmt: skip


@pytest.mark.parametrize("column, values, message", FACTOR_FAULTS)
def test_a_fault_in_a_factor_is_refused_where_it_is_used(tmp_path, write, images, caplog, column, values, message):
    objects = pa.array([i // 2 for i in range(40)])
    path = tmp_path / "set/train-0.parquet"
    write(path, images, object=objects, **{column: pa.array(values)})
    with pytest.raises(ValueError, match=f"column '{column}' {message}"):
        load_data(config(path))
    for options, columns in (({}, {}), ({"pairs": "image"}, {"object": objects})):
        caplog.clear()
        write(path, images, **columns, **{column: pa.array(values)})
        assert not load_data(config(path, **options)).train.factors
        (text,) = [text for text in caplog.messages if "is left out" in text]
        assert re.search(f"column '{column}' {message}.*; the column is left out, since no metric uses it", text)


def test_a_known_factor_of_another_type_is_refused(tmp_path, write, images):
    pose = pa.array([{"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0}] * 40)
    path = write(tmp_path / "x.parquet", images, object=pa.array([i // 2 for i in range(40)]), quaternion=pose)
    with pytest.raises(
        ValueError, match=r"column 'quaternion' of --data.path .* is struct<.*; allowed: numbers or lists"
    ):
        load_data(config(path))


def test_quaternions_of_any_length_are_scaled_and_unusual_units_reported(tmp_path, write, images, caplog):
    turns = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    unit = turns / np.linalg.norm(turns, axis=1, keepdims=True)
    columns = {"object": pa.array([i // 2 for i in range(40)]), "floor_hue": pa.array([9.0 * i for i in range(40)])}
    path = write(tmp_path / "x.parquet", images, **columns, quaternion=pa.array(list(turns)))
    data = load_data(config(path))
    torch.testing.assert_close(data.train.factors["quaternion"], torch.from_numpy(unit)[data.train.ids])
    assert "'quaternion': 40 of 40 are scaled to length 1" in caplog.text
    assert "'floor_hue' has values up to 351: a hue is in turns, 0 to 1" in caplog.text
    caplog.clear()
    write(path, images, quaternion=pa.array(list(unit)))
    data = load_data(config(path))
    assert torch.equal(data.train.factors["quaternion"], torch.from_numpy(unit)[data.train.ids])  # bit for bit
    assert caplog.messages == ["no metric of quaternion: it needs pairs, by a column 'object'"]


def test_objects_in_several_splits_are_reported_once(tmp_path, write, images, caplog):
    for split, first in (("train", 0), ("val", 20), ("test", 15)):
        objects = pa.array([f"o{first + i // 2}" for i in range(40)])
        write(tmp_path / f"set/{split}-0.parquet", images, object=objects)
    load_data(config(tmp_path / "set"))
    (text,) = caplog.messages
    assert "objects 20 of test, such as 'o15', are in another split too" in text
    caplog.clear()
    (tmp_path / "set/test-0.parquet").unlink()
    load_data(config(tmp_path / "set"))
    assert not caplog.messages


def test_a_split_without_rows_is_refused_with_its_file(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([0, 1] * 20))
    write(tmp_path / "set/val-0.parquet", [], label=pa.array([], pa.int64()))
    with pytest.raises(ValueError, match=r"--data.path: val has no readable image: no row in .*val-0.parquet; allowed"):
        load_data(config(tmp_path / "set"))
    write(tmp_path / "set/val-0.parquet", [b"broken"] * 3, label=pa.array([0] * 3))
    with pytest.raises(
        ValueError, match=r"val has no readable image: 3 rows, none of them readable in .*val-0.parquet"
    ):
        load_data(config(tmp_path / "set"))


@pytest.mark.parametrize("path", ["test/0.parquet", "data/test-0.parquet"])
def test_files_beside_and_in_folders_are_read_together(tmp_path, write, images, path):
    write(tmp_path / "set/train-0.parquet", images)
    write(tmp_path / "set" / path, images[:8])
    assert [len(split) for split in load_data(config(tmp_path / "set")).splits.values()] == [36, 4, 8]


def test_labels_in_another_column_are_suggested(tmp_path, write, images, caplog):
    path = write(tmp_path / "x.parquet", images, fine_label=pa.array([0, 1] * 20), size=pa.array([1] * 40))
    assert load_data(config(path)).num_classes == 0
    assert "no labels in a column 'label'; --data.label-column can name another: fine_label" in caplog.messages


def test_an_image_of_too_many_pixels_is_named(tmp_path, write, images, caplog, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)  # Pillow refuses twice as many; these have 12 x 12
    write(tmp_path / "x.parquet", [*images[:9], b"broken"])
    with pytest.raises(ValueError, match=r"more than|has no readable image"):
        load_data(config(tmp_path / "x.parquet"))
    assert "x.parquet row 0: more pixels than the 140 that Pillow reads" in caplog.text


def test_a_large_image_is_no_warning():
    """Pillow warns from 89 million pixels on."""
    code = (
        "import io; from PIL import Image; import eqssl.data; file = io.BytesIO(); "
        "Image.new('1', (10000, 9000)).save(file, 'PNG'); file.seek(0); Image.open(file)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr


@pytest.mark.parametrize("column", [None, *(pa.array([None] * 40, kind) for kind in (pa.int64(), pa.uint8(), None))])
def test_null_labels_of_a_whole_split_are_unknown(tmp_path, write, images, caplog, column):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([0, 1] * 20))
    write(tmp_path / "set/test-0.parquet", images, **({} if column is None else {"label": column}))
    data = load_data(config(tmp_path / "set"))
    assert "test has no labels; images with labels take its place" in caplog.text
    assert [len(split) for split in data.splits.values()] == [32, 4, 4] and data.num_classes == 2
    if column is not None:
        unlabelled = load_data(config(write(tmp_path / "one.parquet", images, label=column)))
        assert unlabelled.train.labels is None and unlabelled.num_classes == 0


def test_dictionaries_are_read_as_their_values(tmp_path, images):
    columns = {"label": pa.array([3, 5] * 20), "angle": pa.array([0.5, 1.5] * 20), "image": pa.array(images)}
    table = pa.table({name: values.dictionary_encode() for name, values in columns.items()})
    pq.write_table(table, tmp_path / "x.parquet")
    data = load_data(config(tmp_path / "x.parquet"))
    assert data.class_names == ("3", "5") and torch.equal(data.train.labels, data.train.ids % 2)
    assert torch.equal(data.train.factors["angle"][:, 0], data.train.labels + 0.5)


def described(path, names, **feature):
    """Write the hub's description of the columns into a file."""
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image", **feature}}
    info = names if isinstance(names, bytes) else json.dumps({"info": {"features": features}}).encode()
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": info}), path)


def test_classes_in_another_order_are_refused(tmp_path, write, images):
    for name, classes in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        described(write(tmp_path / f"set/{name}-0.parquet", images, label=pa.array([0, 1] * 20)), classes)
    with pytest.raises(ValueError, match=r"classes cat, dog in .*train-0.parquet, and dog, cat in .*test-0.parquet"):
        load_data(config(tmp_path / "set"))
    described(tmp_path / "set/test-0.parquet", ["cat", "dog"])
    assert load_data(config(tmp_path / "set")).class_names == ("cat", "dog")
    small = pa.array([0, 1] * 20, pa.uint8())
    described(write(tmp_path / "x.parquet", images, label=small), ["cat", "dog"])
    assert load_data(config(tmp_path / "x.parquet")).class_names == ("cat", "dog")


def test_a_label_without_a_name_among_names_is_refused(tmp_path, write, images):
    described(write(tmp_path / "x.parquet", images, label=pa.array([0, 7] * 20)), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"'label' holds 7, in .* row 1; allowed: 0 to 1, the ranks of its 2 classes"):
        load_data(config(tmp_path / "x.parquet"))


@pytest.mark.parametrize("text", [b"{rubbish", b"null", b'{"info": null}', b'{"info": {"features": null}}'])
def test_another_programs_description_is_no_error(tmp_path, write, images, text):
    described(write(tmp_path / "x.parquet", images, label=pa.array([0, 1] * 20)), text)
    assert load_data(config(tmp_path / "x.parquet")).num_classes == 2


def test_replacements_of_values_are_reported(tmp_path, write, images, caplog):
    columns = {
        "label": pa.array([0, 1] * 20),
        "number": pa.array([2**60 + i for i in range(40)]),
        "empty": pa.array([[]] * 40, pa.list_(pa.float32())),
    }
    described(write(tmp_path / "x.parquet", images, **columns), ["cat", "dog"], mode="L")
    data = load_data(config(tmp_path / "x.parquet"))
    assert "'number' is a factor, whose integers up to 1152921504606847015 are rounded" in caplog.text
    assert "'empty' is not a factor" in caplog.text and set(data.train.factors) == {"number"}
    assert "'image': its mode L is not applied" in caplog.text


def test_files_without_rows_and_endings_in_capitals_are_read(tmp_path, write, images):
    write(tmp_path / "set/train-0.PARQUET", images, label=pa.array([0, 1] * 20))
    write(tmp_path / "set/train-1.parquet", [], label=pa.array([], pa.int64()))
    assert sum(len(split) for split in load_data(config(tmp_path / "set")).splits.values()) == 40
    with pytest.raises(ValueError, match=r"train has no readable image: no row in .*train-1.parquet"):
        load_data(config(tmp_path / "set/train-1.parquet"))


def test_almost_black_images_are_reported(tmp_path, write, caplog):
    """As masks are, or colours of 12 bits in 16, of which Pillow keeps the upper 8."""
    files = [io.BytesIO() for _ in range(20)]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 2, (8, 8), dtype=np.uint8)).save(file, "PNG")
    load_data(config(write(tmp_path / "x.parquet", [file.getvalue() for file in files])))
    assert "levels of 16 images are 0 to 1 of 255, almost black" in caplog.text


def test_files_must_agree_in_their_columns(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([0] * 40))
    write(tmp_path / "set/train-1.parquet", images)
    with pytest.raises(ValueError, match=r"'label' has 40 null, the first in .*train-1.parquet row 0"):
        load_data(config(tmp_path / "set"))


def test_integers_of_several_sizes_are_promoted(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images[:20], label=pa.array([0, 1] * 10), size=pa.array([0.5] * 20))
    write(
        tmp_path / "set/train-1.parquet", images[20:], label=pa.array([0, 1] * 10, pa.int32()), size=pa.array([1] * 20)
    )
    data = load_data(config(tmp_path / "set"))
    assert data.num_classes == 2 and data.train.factors["size"].unique().tolist() == [0.5, 1.0]


def test_integers_that_no_common_type_holds_are_named(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images[:20], object=pa.array([2**60 + 1] * 20))
    write(tmp_path / "set/train-1.parquet", images[20:], object=pa.array([0.5] * 20))
    message = (
        r"^column 'object' is int64 in .*train-0.parquet and double for .* 1152921504606846977 .*allowed: one type"
    )
    with pytest.raises(ValueError, match=message):
        load_data(config(tmp_path / "set"))


def test_two_columns_of_one_name_are_named(tmp_path, images):
    table = pa.table({"image": images, "object": [0] * 40})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set/train-0.parquet")
    pq.write_table(table.append_column("object", table["object"]), tmp_path / "set/train-1.parquet")
    with pytest.raises(ValueError, match=r"train-1.parquet has 2 columns 'object'; allowed: one"):
        load_data(config(tmp_path / "set"))


def test_types_without_anything_in_common_are_named(tmp_path, write, images):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([0, 1] * 20))
    write(tmp_path / "set/train-1.parquet", images, label=pa.array(["cat", "dog"] * 20))
    with pytest.raises(ValueError, match=r"set.*label has incompatible types: int64 vs string"):
        load_data(config(tmp_path / "set"))


@pytest.mark.parametrize("column, kind", [
    (lambda images: pa.array([{"data": image} for image in images]), "struct<data: binary>"),
    (lambda images: pa.array([[{"bytes": image}] for image in images]), "list<.*struct<bytes: binary>>"),
    (lambda images: pa.array([str(i) for i in range(len(images))]), "string"),
])  # fmt: skip
def test_an_image_column_of_another_type_is_refused_before_decoding(tmp_path, images, column, kind):
    pq.write_table(pa.table({"image": column(images)}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"--data.image-column 'image' is {kind}; allowed: struct<bytes"):
        load_data(config(tmp_path / "x.parquet"))


def test_a_binary_view_is_read_around_a_broken_image(tmp_path, images, caplog):
    images[7] = b"broken"
    pq.write_table(pa.table({"image": pa.array(images, pa.binary_view())}), tmp_path / "x.parquet")
    data = load_data(config(tmp_path / "x.parquet"))
    assert sum(map(len, data.splits.values())) == 39
    assert "x.parquet row 7: no image that Pillow reads" in caplog.text


def test_images_that_are_paths_are_read_beside_the_file(tmp_path, images, caplog):
    (tmp_path / "pictures").mkdir()
    for i in range(39):
        (tmp_path / f"pictures/{i}.png").write_bytes(images[i])
    cells = [{"bytes": None, "path": f"pictures/{i}.png"} for i in range(40)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "x.parquet")
    data = load_data(config(tmp_path / "x.parquet"))
    assert "of at most 10: pictures/39.png: a path without bytes, and no such file" in caplog.text
    pq.write_table(pa.table({"image": images[:39]}), tmp_path / "y.parquet")
    expected = load_data(config(tmp_path / "y.parquet"))
    for name in ("train", "val", "test"):
        every = torch.arange(len(expected.splits[name]))
        assert torch.equal(data.splits[name].images.take(every), expected.splits[name].images.take(every))


def test_labels_are_categories(tmp_path, write, images, caplog):
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([15075141, 1440764] * 20))
    write(tmp_path / "set/test-0.parquet", images[:20], label=pa.array([15075141, 2**62] * 10))
    data = load_data(config(tmp_path / "set"))
    assert data.num_classes == 3 and data.class_names == ("1440764", "15075141", str(2**62))
    assert torch.equal(data.test.labels, torch.tensor([1, 2] * 10))
    assert torch.equal(data.train.labels, 1 - data.train.ids % 2)
    assert "column 'label': 3 labels from 1440764 to 4611686018427387904 are numbered from 0" in caplog.text
    write(tmp_path / "set/train-0.parquet", images, label=pa.array([2**63, 2**63 + 1] * 20, pa.uint64()))
    assert load_data(config(tmp_path / "set/train-0.parquet")).class_names == (str(2**63), str(2**63 + 1))


def test_names_of_classes_are_kept(tmp_path, png):
    rows = [{"image": {"bytes": png(i), "path": None}, "label": 2 * (i % 2)} for i in range(40)]
    write_splits(tmp_path / "set", {"train": rows}, image_schema(["cat", "cow", "dog"]))
    data = load_data(config(tmp_path / "set"))
    assert data.class_names == ("cat", "cow", "dog") and data.num_classes == 3
    assert torch.equal(data.train.labels, 2 * (data.train.ids % 2))


def test_a_damaged_file_is_named(tmp_path, write, images):
    path = write(tmp_path / "set/train-0.parquet", images, label=pa.array([0, 1] * 20))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)  # pages, and not the footer
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-0.parquet' is not a readable Parquet file"):
        load_data(config(tmp_path / "set"))


def test_splits_by_folders(tmp_path, write, images):
    for name, count in (("training", 40), ("dev", 8), ("test", 4)):
        write(tmp_path / f"set/{name}/0000.parquet", images[:count])
    assert [len(split) for split in load_data(config(tmp_path / "set")).splits.values()] == [40, 8, 4]


def test_grey_and_coloured_splits_fit_together(tmp_path, write, png):
    write(tmp_path / "set/train-0.parquet", [png(i, mode="L") for i in range(10)])
    write(tmp_path / "set/test-0.parquet", [png(i) for i in range(10)])
    data = load_data(config(tmp_path / "set"))
    assert data.channels == data.train.images.take(torch.arange(2)).shape[1] == 3


def test_memory_needs_no_home(tmp_path, write, images, monkeypatch):
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    path = str(write(tmp_path / "set/train-0.parquet", images))
    options = DataConfig(source="parquet", path=f"file://{path}")
    assert len(load_data(options).train) == 32
    monkeypatch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match=r"--data.cache is '~/.cache/eqssl'"):
        load_data(options)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not in ../shared/data")
def test_fashion_mnist(tmp_path):
    data = load_data(DataConfig(source="parquet", path=str(FASHION_MNIST), cache=str(tmp_path)))
    assert (len(data.train), len(data.val), len(data.test)) == (54_000, 6_000, 10_000)
    assert (data.channels, data.image_size, data.num_classes, data.paired) == (1, 28, 10, False)
    assert data.mean[0] == pytest.approx(0.286, abs=0.003) and data.std[0] == pytest.approx(0.353, abs=0.003)
    assert data.test.labels.bincount().tolist() == [1000] * 10
