import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.cached import open_decoded
from eqssl.data.dataset import Dataset
from eqssl.data.parquet import DIGEST_BYTES


def config(path: Path) -> DataConfig:
    return DataConfig(source="parquet", path=str(path), cache=str(path.parent / "cache"))


def pixels(data: Dataset) -> torch.Tensor:
    return torch.cat([split.images.take(torch.arange(len(split))) for split in data.splits.values()])


def files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("images-*/[!.]*"))


@pytest.fixture
def path(tmp_path: Path, write: Callable[..., Path], png: Callable[..., bytes]) -> Path:
    return write(tmp_path / "set.parquet", [png(seed) for seed in range(40)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_splits_of_a_second_process_are_one_shared_mapping(path: Path, tmp_path: Path):
    """Train is cut from the file's images, and its subset from train, without a copy."""
    read = pixels(load_data(replace(config(path), train_images=9)))
    code = """
import sys
from eqssl.config import DataConfig
from eqssl.data import load_data

data = load_data(DataConfig(source="parquet", path=sys.argv[1], cache=sys.argv[2], train_images=9))
for split in data.splits.values():
    print(split.images.images.pixels.data_ptr())
print(open("/proc/self/maps").read())
"""
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    train, val, test = map(int, printed.split()[:3])
    assert train == val == test
    (file,) = files(tmp_path)
    ((start, stop, rights),) = re.findall(rf"([0-9a-f]+)-([0-9a-f]+) (\S+) .*{re.escape(file.name)}", printed)
    assert int(start, 16) <= train < train + read[0].nbytes * 40 <= int(stop, 16)
    assert "w" not in rights  # a copy-on-write page would be the process's own


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("damage", [b"", b"noise", 100, -200, *range(-1600, -1000, 200)])
def test_a_damaged_file_is_made_again(
    path: Path, tmp_path: Path, monkeypatch, caplog, damage: bytes | int, encoded: bool
):
    if encoded:
        monkeypatch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1000)
    expected = pixels(load_data(config(path)))
    (file,) = files(tmp_path)
    content = file.read_bytes()
    file.unlink()  # since it is mapped
    file.write_bytes(damage if isinstance(damage, bytes) else content[:damage])
    assert torch.equal(pixels(load_data(config(path))), expected)
    assert f"{file} is made again: it is damaged" in caplog.text and file.read_bytes() == content


def test_a_file_without_all_facts_is_made_again(path: Path, tmp_path: Path):
    """An Arrow stream may end after any of its batches."""
    load_data(config(path))
    (file,) = files(tmp_path)
    content = file.read_bytes()
    with pa.memory_map(str(file)) as mapped:
        pa.ipc.read_tensor(mapped)
        pa.ipc.open_stream(mapped)
        stop = mapped.tell()
    file.unlink()
    file.write_bytes(content[:stop])
    assert open_decoded(file) is None
    load_data(config(path))
    assert file.read_bytes() == content


@pytest.mark.parametrize("encoded", [False, True])
def test_warnings_about_images_are_repeated(path: Path, write, png, monkeypatch, caplog, encoded: bool):
    if encoded:
        monkeypatch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1000)
    write(path, [b"broken", *(png(i, mode="RGBA") for i in range(20))])
    load_data(config(path))
    first = caplog.messages[:]
    assert len(first) == 2 and "unreadable image 1" in first[0] and "over white" in first[1]
    caplog.clear()
    load_data(config(path))
    assert caplog.messages == first


def test_a_change_in_the_middle_of_a_file_is_seen(path: Path, png):
    """Its size, ends and footer stay, and so does the data set's digest."""
    images = [png(seed, size=(60, 60), kind="BMP") for seed in range(40)]
    pq.write_table(pa.table({"image": images}), path, compression="none", use_dictionary=False)
    first, content = load_data(config(path)), bytearray(path.read_bytes())
    start = content.find(images[20])
    assert DIGEST_BYTES < start < len(content) - DIGEST_BYTES - len(images[20])
    content[start + 5000] ^= 255
    path.write_bytes(content)
    second = load_data(config(path))
    assert second.digest == first.digest
    assert (pixels(first) != pixels(second)).sum() == 1


def test_images_given_as_paths_are_read_again(tmp_path: Path, png):
    """They may change while the Parquet file, and so the data set's digest, does not."""
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    pq.write_table(
        pa.table({"image": [{"bytes": None, "path": f"{i}.png"} for i in range(20)]}), tmp_path / "x.parquet"
    )
    first = load_data(config(tmp_path / "x.parquet"))
    assert not files(tmp_path)
    (tmp_path / "3.png").write_bytes(png(100))
    second = load_data(config(tmp_path / "x.parquet"))
    assert (pixels(first) != pixels(second)).flatten(1).any(1).sum() == 1


def test_a_full_disk_costs_memory_only(path: Path, tmp_path: Path):
    code = """
import sys
from eqssl.config import DataConfig
from eqssl.data import load_data

data = load_data(DataConfig(source="parquet", path=sys.argv[1], cache=sys.argv[2]))
print(sum(map(len, data.splits.values())))
"""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, "-B", "-c", code, str(path), str(tmp_path / "cache")]
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=True)
    assert run.stdout.split() == ["40"] and not files(tmp_path)
    assert ".decoded cannot be written (" in run.stderr and "so every process has a copy of the images" in run.stderr
