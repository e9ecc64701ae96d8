"""A checkpoint is whole, or named."""

import pytest
import torch

from eqssl.training import checkpoint


def test_a_state_comes_back(tmp_path):
    assert checkpoint.load(tmp_path) is None
    checkpoint.save({"epoch": 3, "weights": torch.arange(4)}, tmp_path / "new")
    state = checkpoint.load(tmp_path / "new")
    assert state["epoch"] == 3 and torch.equal(state["weights"], torch.arange(4))
    assert [file.name for file in (tmp_path / "new").iterdir()] == [checkpoint.FILE]


@pytest.mark.parametrize("left", [0, 10, 500])
def test_a_cut_file_is_refused_by_its_name(tmp_path, left):
    checkpoint.save({"weights": torch.arange(1000)}, tmp_path)
    file = tmp_path / checkpoint.FILE
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"{file} cannot be read; remove it to start this run again"):
        checkpoint.load(tmp_path)


def test_a_file_that_was_written_wrong_does_not_replace_the_one_before(tmp_path, monkeypatch):
    checkpoint.save({"epoch": 1}, tmp_path)

    def flip_a_bit(state, path, save=torch.save):
        save(state, path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(torch, "save", flip_a_bit)
    with pytest.raises(OSError, match="was not written"):
        checkpoint.save({"epoch": 2, "weights": torch.arange(10_000)}, tmp_path)
    assert checkpoint.load(tmp_path) == {"epoch": 1}
