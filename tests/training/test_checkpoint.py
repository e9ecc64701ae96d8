"""A checkpoint is whole, or named and replaced by the one before."""

from pathlib import Path

import pytest
import torch

from eqssl.training import checkpoint


def test_a_state_comes_back(tmp_path):
    assert checkpoint.load(tmp_path) is None
    checkpoint.save({"epoch": 3, "weights": torch.arange(4)}, tmp_path / "new")
    state = checkpoint.load(tmp_path / "new")
    assert state["epoch"] == 3 and torch.equal(state["weights"], torch.arange(4))
    assert [file.name for file in (tmp_path / "new").iterdir()] == [checkpoint.FILE]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"noise" * 500])
def test_a_damaged_file_is_set_aside_and_the_one_before_taken(tmp_path, caplog, content):
    for epoch in (1, 2, 3):
        checkpoint.save({"epoch": epoch, "weights": torch.arange(1000)}, tmp_path)
    file = tmp_path / checkpoint.FILE
    file.write_bytes(content)
    assert checkpoint.load(tmp_path)["epoch"] == 2
    assert f"{file} is damaged and set aside as {file.name}.damaged" in caplog.text
    assert file.with_name(f"{file.name}.damaged").read_bytes() == content
    assert checkpoint.load(tmp_path)["epoch"] == 2
    checkpoint.save({"epoch": 3}, tmp_path)
    assert checkpoint.load(tmp_path)["epoch"] == 3
    (tmp_path / checkpoint.PREVIOUS).write_bytes(content)
    file.write_bytes(file.read_bytes()[:200])
    assert checkpoint.load(tmp_path) is None


def test_the_state_of_another_run_is_not_taken(tmp_path):
    checkpoint.save({"run": "mine", "epoch": 1}, tmp_path)
    checkpoint.save({"run": "another", "epoch": 9}, tmp_path)
    assert checkpoint.load(tmp_path, lambda state: state["run"] == "mine")["epoch"] == 1


def test_the_error_of_a_full_disk_keeps_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr("eqssl.training.checkpoint.write_atomically", lambda path, write: write(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"weights": torch.arange(1000)}, tmp_path)


def test_a_file_that_was_written_wrong_does_not_replace_the_one_before(tmp_path, monkeypatch):
    checkpoint.save({"epoch": 1}, tmp_path)

    def flip_a_bit(state, file, save=torch.save):
        save(state, file)
        file.flush()
        path = Path(file.name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(torch, "save", flip_a_bit)
    with pytest.raises(OSError, match="was not written"):
        checkpoint.save({"epoch": 2, "weights": torch.arange(10_000)}, tmp_path)
    assert checkpoint.load(tmp_path) == {"epoch": 1}
