import gzip
import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.folders import main


@pytest.fixture
def folder(tmp_path: Path, png) -> Path:
    """Return an image folder of two classes, 20 images each."""
    for label, name in enumerate(("bird", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "images" / name / f"{i:02d}.png").write_bytes(png(100 * label + i))
    (tmp_path / "images/bird/notes.txt").write_text("no image")
    return tmp_path / "images"


def test_an_image_folder_comes_back_bit_for_bit(folder: Path, tmp_path: Path):
    main(["imagefolder", str(folder), str(tmp_path / "out")])
    data = load_data(DataConfig(source="parquet", path=str(tmp_path / "out"), cache=str(tmp_path)))
    assert (len(data.train), len(data.val), len(data.test)) == (32, 4, 4) and data.num_classes == 2
    files = sorted(folder.glob("*/*.png"))
    for split in (data.train, data.val, data.test):
        for i, row in enumerate(split.ids.tolist()):
            expected = np.asarray(Image.open(files[row])).transpose(2, 0, 1)
            assert np.array_equal(split.images.take(torch.tensor([i]))[0], expected)
            assert split.labels[i] == row // 20


def test_split_folders_are_kept(folder: Path, tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(folder)
    (tmp_path / "set/validation").symlink_to(folder)
    data = load_data(DataConfig(source="imagefolder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache")))
    assert (len(data.train), len(data.val), len(data.test)) == (40, 20, 20) and data.name == "imagefolder"


def test_any_usual_name_of_a_split_is_known(folder: Path, tmp_path: Path):
    for name in ("Training", "valid", "test"):
        shutil.copytree(folder, tmp_path / "set" / name)
    data = load_data(DataConfig(source="imagefolder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache")))
    assert (len(data.train), len(data.val), len(data.test)) == (40, 40, 40) and data.class_names == ("bird", "cat")


def test_a_class_beside_split_folders_is_an_error_that_lists_them(folder: Path):
    shutil.copytree(folder / "cat", folder / "train")
    with pytest.raises(ValueError, match=r"train/ name a split, and 2 do not: bird/, cat/"):
        load_data(DataConfig(source="imagefolder", path=str(folder)))


def test_hidden_and_stray_images_are_no_data(folder: Path, tmp_path: Path, png, caplog):
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "@eaDir").mkdir()  # thumbnails of a Synology disk
    for path in (".ipynb_checkpoints/00.png", "@eaDir/00.png", "cat/._00.png", "stray.png"):
        (folder / path).write_bytes(png(1))
    data = load_data(DataConfig(source="imagefolder", path=str(folder), cache=str(tmp_path / "cache")))
    assert sum(map(len, data.splits.values())) == 40 and data.class_names == ("bird", "cat")
    assert caplog.text.count("1 images are in no folder of a class, and are left out, such as stray.png") == 1


def test_unreadable_files_are_named_and_counted(folder: Path, tmp_path: Path, caplog, capsys):
    (folder / "cat/05.png").write_text("<html>404</html>")
    (folder / "cat/99.png").symlink_to(tmp_path / "nowhere.png")
    assert main(["imagefolder", str(folder), str(tmp_path / "out")]) == 0
    assert "2 files are no readable images, such as cat/05.png" in caplog.text
    options = {"source": "imagefolder", "path": str(folder), "cache": str(tmp_path / "cache")}
    assert sum(map(len, load_data(DataConfig(**options)).splits.values())) == 39
    with pytest.raises(ValueError, match=r"max-bad-images is 1; unreadable: cat/05.png in .* row 25, cat/99.png "):
        load_data(DataConfig(**options, max_bad_images=1))


def test_accents_stored_in_two_ways_are_one_class(folder: Path, tmp_path: Path):
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        shutil.copytree(folder / "bird", tmp_path / "set" / split / name)
        shutil.copytree(folder / "cat", tmp_path / "set" / split / "cat")
    data = load_data(DataConfig(source="imagefolder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache")))
    assert data.class_names == ("caf\u00e9", "cat")
    assert torch.cat([data.val.labels, data.test.labels]).bincount().tolist() == [20, 20]


def test_names_that_are_no_text_and_links_in_a_circle_are_no_error(folder: Path, tmp_path: Path, png):
    odd = os.path.join(os.fsencode(folder), b"\xff #1%20\n")
    os.mkdir(odd)
    for i in range(9):
        with open(os.path.join(odd, b"%d \xfe.png" % i), "wb") as file:
            file.write(png(i))
    (folder / "cat/circle").symlink_to(folder)
    data = load_data(DataConfig(source="imagefolder", path=str(folder), cache=str(tmp_path / "cache")))
    assert data.class_names == ("\\xff #1%20\n", "bird", "cat") and sum(map(len, data.splits.values())) == 49


def test_names_in_latin_1_are_different_classes(folder: Path, tmp_path: Path):
    for name, latin in (("bird", b"b\xe4r"), ("cat", b"b\xf6r")):
        os.rename(folder / name, os.path.join(os.fsencode(folder), latin))
    data = load_data(DataConfig(source="imagefolder", path=str(folder), cache=str(tmp_path / "cache")))
    assert data.class_names == ("b\\xe4r", "b\\xf6r")
    assert sum(split.labels.bincount(minlength=2) for split in data.splits.values()).tolist() == [20, 20]


def test_a_pipe_among_the_images_is_passed_over(folder: Path, tmp_path: Path, caplog):
    os.mkfifo(folder / "cat/pipe.png")
    assert main(["imagefolder", str(folder), str(tmp_path / "out")]) == 0
    assert "1 images are no regular files, such as cat/pipe.png" in caplog.text
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob("*.parquet")) == 40


def test_files_that_are_no_images_by_their_name_are_counted(folder: Path, tmp_path: Path, caplog):
    (folder / "newt").mkdir()
    for i in range(5):
        (folder / f"newt/{i}.heic").write_bytes(b"a format that Pillow does not know")
    (folder / "empty").mkdir()
    data = load_data(DataConfig(source="imagefolder", path=str(folder), cache=str(tmp_path / "cache")))
    assert data.class_names == ("bird", "cat")
    assert "6 files have no ending of an image, such as bird/notes.txt" in caplog.text
    assert "2 folders hold no image, such as empty" in caplog.text


@pytest.mark.parametrize("kind, ending", [("JPEG", "JPG"), ("WEBP", "webp"), ("TIFF", "Tif"), ("BMP", "bmp")])
def test_any_format_and_ending_of_pillow_is_read(tmp_path: Path, png, kind: str, ending: str):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / f"set/{name}/{i}.{ending}").write_bytes(png(i, kind=kind))
    data = load_data(DataConfig(source="imagefolder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache")))
    assert sum(map(len, data.splits.values())) == 20 and data.num_classes == 2


def test_a_folder_is_converted_once_and_again_after_a_change(folder: Path, tmp_path: Path, png):
    config = DataConfig(source="imagefolder", path=str(folder), cache=str(tmp_path / "cache"))
    first = load_data(config)
    assert load_data(config).digest == first.digest
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 2  # its Parquet files, and the images of all such files
    (folder / "cat/new.png").write_bytes(png(7))
    assert load_data(config).digest != first.digest


@pytest.mark.parametrize("is_moved", [False, True])
def test_folders_with_equal_listings_are_different_data(tmp_path: Path, png, is_moved: bool):
    """As after `tar --mtime`, also if the second takes the place of the first; one image in the middle differs."""
    digests, read = set(), set()
    for seed, name in enumerate("ab"):
        for i in range(20):
            file = tmp_path / name / f"class{i % 2}" / f"{i}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(100 * seed + i if i == 9 else i, (200, 200), kind="BMP"))
            os.utime(file, (0, 0))
    for name in "ab":
        folder = tmp_path / name
        if is_moved:
            folder = folder.rename(tmp_path / "now")
        data = load_data(DataConfig(source="imagefolder", path=str(folder), cache=str(tmp_path / "cache")))
        digests.add(data.digest)
        whole = [split.images.take(torch.arange(len(split))) for split in data.splits.values()]
        read.add(torch.cat(whole).numpy().tobytes())
        if is_moved:
            folder.rename(tmp_path / f"{name}-before")
    assert len(digests) == len(read) == 2


def test_a_converted_set_that_lost_a_file_is_made_again(folder: Path, tmp_path: Path, caplog):
    (tmp_path / "set").mkdir()
    for split in ("train", "val"):
        (tmp_path / "set" / split).symlink_to(folder)
    config = DataConfig(source="imagefolder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache"))
    digest = load_data(config).digest
    (file,) = (tmp_path / "cache").glob("imagefolder-*/val-*")
    for damage in (
        file.unlink,
        lambda: os.truncate(file, 9),
        lambda: shutil.copy(file, file.with_name("test-1.parquet")),
    ):
        damage()
        caplog.clear()
        assert load_data(config).digest == digest
        assert "is made again: " in caplog.text
    caplog.clear()
    load_data(config)
    assert "is made again" not in caplog.text


def test_an_output_that_cannot_be_written_is_named(folder: Path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert main(["imagefolder", str(folder), str(tmp_path / "file/out")]) == 2
    needed = "needed: a writable folder on a disk with room for it"
    assert f"{tmp_path}/file/out' cannot be written: Not a directory; {needed}" in capsys.readouterr().err
    real = pq.ParquetWriter
    monkeypatch.setattr(pq, "ParquetWriter", lambda path, *args, **named: real("/dev/full", *args, **named))
    assert main(["imagefolder", str(folder), str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out' cannot be written: No space left on device; {needed}" in capsys.readouterr().err


@pytest.mark.parametrize("make, message", [
    (lambda p: p / "nowhere", "is not a folder; allowed: a folder on a disk"),
    (lambda p: (p / "empty").mkdir() or p / "empty", "holds no image CLASS/NAME.png"),
])  # fmt: skip
def test_what_is_no_image_folder(tmp_path: Path, make, message: str, capsys):
    path = str(make(tmp_path))
    assert main(["imagefolder", path, str(tmp_path / "out")]) == 2
    assert f"error: DIR {path!r} {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=re.escape(f"--data.path {path!r} {message}")):
        load_data(DataConfig(source="imagefolder", path=path, cache=str(tmp_path / "cache")))


def load_error(tmp_path: Path, path: object) -> str:
    with pytest.raises(ValueError) as error:
        load_data(DataConfig(source="imagefolder", path=str(path), cache=str(tmp_path / "cache")))
    return str(error.value)


def test_images_at_another_depth_and_uris_are_named(folder: Path, tmp_path: Path):
    text = load_error(tmp_path, folder / "cat")
    assert "--data.path" in text and "holds no image CLASS/NAME.png" in text
    assert text.endswith("; 20 are elsewhere, such as 00.png")
    assert "--data.path 'https://host/photos' is a URI; allowed with" in load_error(tmp_path, "https://host/photos")


def test_a_split_without_images_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "set/val/cat").mkdir(parents=True)
    (tmp_path / "set/train").symlink_to(folder)
    assert "set': val holds no image; allowed: val/CLASS/NAME.png, or no such folder" in load_error(
        tmp_path, tmp_path / "set"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads any folder")
def test_a_folder_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path):
    (folder / "cat").chmod(0)
    try:
        assert f"{folder}/cat cannot be read: Permission denied" in load_error(tmp_path, folder)
    finally:
        (folder / "cat").chmod(0o755)


def test_too_few_images_and_two_sizes_name_the_path(folder: Path, tmp_path: Path, png):
    (folder / "bird/00.png").write_bytes(png(0, size=(9, 9)))
    assert "(9 px and, in bird/01.png in " in load_error(tmp_path, folder)
    for path in [*folder.glob("*/*.png")][1:]:
        path.unlink()
    assert "--data.path" in load_error(tmp_path, folder) and "too few to cut" in load_error(tmp_path, folder)


def test_a_cache_that_cannot_be_made_is_named(folder: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("")
    assert re.match(
        r"--data.cache is '.*cache'; allowed: a folder that can be made: .*exists", load_error(tmp_path, folder)
    )


def test_an_image_of_too_many_pixels_is_counted(folder: Path, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    assert main(["imagefolder", str(folder), str(tmp_path / "out")]) == 0
    assert "40 files are no readable images, such as bird/00.png" in caplog.text


def test_an_existing_output_is_not_overwritten(folder: Path, tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["imagefolder", str(folder), str(tmp_path / "out")]) == 2
    assert "there already" in capsys.readouterr().err


def test_a_bucket_is_refused_and_no_folder_named_like_it_is_made(folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["imagefolder", str(folder), "s3://bucket/photos"]) == 2
    assert re.search(r"OUT is 's3:/.*'; allowed: a folder on a disk", capsys.readouterr().err)
    assert not (tmp_path / "s3:").exists()


def test_a_set_whose_archives_are_not_there_is_an_error_that_says_so(tmp_path: Path, capsys):
    assert main(["imagenet", str(tmp_path / "out"), "--root", str(tmp_path)]) == 2
    assert f"error: imagenet cannot be had in {tmp_path}: The archive " in capsys.readouterr().err


def fashion_mnist(root: Path, seed: int) -> np.ndarray:
    """Write 30 training and 10 test images as Fashion-MNIST's own files, and return their pixels."""
    raw = root / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for prefix, n in (("train", 30), ("t10k", 10)):
        for name, magic, array in (
            ("images-idx3", 2051, pixels[:n]),
            ("labels-idx1", 2049, np.arange(n, dtype=np.uint8) % 10),
        ):
            head = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
            (raw / f"{prefix}-{name}-ubyte").write_bytes(head + array.tobytes())
            with gzip.open(raw / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())
    return pixels


def test_a_torchvision_set_comes_back_bit_for_bit(tmp_path: Path):
    """Fashion-MNIST's own files, a few images of them, through torchvision's own reader."""
    pixels = fashion_mnist(tmp_path / "root", seed=0)
    main(["fashion_mnist", str(tmp_path / "out"), "--root", str(tmp_path / "root")])
    data = load_data(DataConfig(source="parquet", path=str(tmp_path / "out"), cache=str(tmp_path)))
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 10)
    assert np.array_equal(data.test.images.take(torch.arange(10))[:, 0], pixels[:10])
    assert data.test.labels.tolist() == list(range(10))


def test_each_folder_of_a_torchvision_set_is_its_own_data(tmp_path: Path):
    for seed, name in enumerate("ab"):
        pixels = fashion_mnist(tmp_path / name, seed)
        data = load_data(DataConfig(source="fashion_mnist", path=str(tmp_path / name), cache=str(tmp_path / "cache")))
        assert np.array_equal(data.test.images.take(torch.arange(10))[:, 0], pixels[:10])
    for source, allowed in (("imagenet", "torchvision's files$"), ("fashion_mnist", "or an empty one to download ")):
        with pytest.raises(ValueError, match=f"--data.path is '/nowhere', which is not a folder; allowed: .*{allowed}"):
            load_data(DataConfig(source=source, path="/nowhere", cache=str(tmp_path / "cache")))


def test_a_class_that_a_split_lacks_is_named(folder: Path, tmp_path: Path, caplog):
    for split, name in (("train", "Cat"), ("val", "cat")):
        shutil.copytree(folder / "bird", tmp_path / "set" / split / "bird")
        shutil.copytree(folder / "cat", tmp_path / "set" / split / name)
    load_data(DataConfig(source="imagefolder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache")))
    assert "of 3 classes, train lacks 1 (cat), val lacks 1 (Cat), test lacks 1 (Cat)" in caplog.text
