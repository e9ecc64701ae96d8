"""Files of images and arrays."""

import io

import numpy as np
import pytest

from eqssl.images import read_arrays


@pytest.mark.parametrize("name", ["attention.npz", "reconstructions.npy"])
def test_a_damaged_file_is_named_and_a_missing_one_is_not(name, tmp_path, caplog):
    path, content = tmp_path / name, io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 16, 16), dtype=np.uint8)
    np.savez_compressed(content, target=images) if name == "attention.npz" else np.save(content, images)
    whole = content.getvalue()
    assert read_arrays(path) is None and not caplog.records
    path.write_bytes(whole)
    found = read_arrays(path)
    np.testing.assert_array_equal(found["target"] if name == "attention.npz" else found, images)
    damaged = [b"", whole[: len(whole) // 2], b"PK" + bytes(100), b"\x93NUMPY" + bytes(100)]
    if name == "reconstructions.npy":
        damaged.append(whole.replace(b"'descr'", b"'descr\\"))  # the header cannot be parsed
    else:
        damaged.append(whole[:500] + bytes(200) + whole[700:])
    for content in damaged:
        path.write_bytes(content)
        caplog.clear()
        assert read_arrays(path) is None and f"{name} is damaged" in caplog.text
