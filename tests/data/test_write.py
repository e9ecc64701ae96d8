import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eqssl.data.write import image_schema, write_splits

KILLED = """
import os, signal, sys
from pathlib import Path
from eqssl.data.write import image_schema, write_splits

def rows():
    for i in range(100):
        if i == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"image": {"bytes": bytes(200_000), "path": None}, "label": i}

write_splits(Path(sys.argv[1]), {"train": rows()}, image_schema(["a"]))
"""


def rows(n: int):
    return ({"image": {"bytes": bytes([i % 256]) * 1000, "path": None}, "label": i} for i in range(n))


def test_a_killed_writer_leaves_no_target(tmp_path: Path):
    target = tmp_path / "set"
    assert subprocess.run([sys.executable, "-c", KILLED, target]).returncode == -signal.SIGKILL
    assert not target.exists() and len(list(tmp_path.iterdir())) == 1  # what was half-written lies beside it
    write_splits(target, {"train": rows(10)}, image_schema(["a"]))
    assert pq.read_table(target).num_rows == 10


def test_of_two_writers_the_first_to_finish_stays(tmp_path: Path):
    target = tmp_path / "set"

    def slow():
        yield from rows(5)
        write_splits(target, {"train": rows(8)}, image_schema(["a"]))

    write_splits(target, {"train": slow()}, image_schema(["a"]))
    assert pq.read_table(target).num_rows == 8
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_processes_that_lack_a_file_one_makes_it_and_the_other_waits(tmp_path: Path):
    code = """
import sys, time
from pathlib import Path
from eqssl.data.write import make_once

def make():
    time.sleep(1)
    Path(sys.argv[1]).write_text(sys.argv[2])
    print("made")

make_once(Path(sys.argv[1]), make)
print(Path(sys.argv[1]).read_text())
"""
    target = tmp_path / "cache" / "file"
    both = [
        subprocess.Popen([sys.executable, "-c", code, target, name], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    lines = [process.communicate()[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    assert sorted(map(len, lines)) == [1, 2] and lines[0][-1] == lines[1][-1]


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_an_error_leaves_nothing(tmp_path: Path, kind: type[Exception]):
    def broken():
        yield from rows(5)
        raise kind

    with pytest.raises(kind):
        write_splits(tmp_path / "set", {"train": broken()}, image_schema(["a"]))
    assert not list(tmp_path.iterdir())


def test_files_and_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eqssl.data.write.ROW_GROUP_BYTES", 10_000)
    monkeypatch.setattr("eqssl.data.write.FILE_BYTES", 30_000)
    write_splits(tmp_path / "set", {"train": rows(75), "test": rows(3)}, image_schema(["a"]))
    names = [path.name for path in sorted((tmp_path / "set").glob("[!.]*"))]
    assert names == ["test-00000-of-00001.parquet", *(f"train-{i:05d}-of-00003.parquet" for i in range(3))]
    assert pq.ParquetFile(tmp_path / "set" / names[1]).metadata.num_row_groups == 3
    labels = [label for name in names[1:] for label in pq.read_table(tmp_path / "set" / name)["label"].to_pylist()]
    assert labels == list(range(75))
