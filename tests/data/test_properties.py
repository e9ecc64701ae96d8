"""Any table or folder is read right, or refused with a name: made up by hypothesis."""

import io
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eqssl.config import DataConfig
from eqssl.data import load_data
from eqssl.data.stores import EncodedImages, decode

FEW = settings(
    max_examples=40, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
NAMES = ("--data.", "column '", "images have different sizes", "objects", "object")  # of options, columns, units
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
Made = tuple[bytes, np.ndarray]


@st.composite
def image(draw: st.DrawFn) -> Made:
    """Return an encoded square of one colour, and that colour over white as uint8 (C,)."""
    mode = draw(st.sampled_from(MODES))
    colour = np.array(draw(st.tuples(*[st.integers(0, 255)] * 4)), np.uint8)
    pixels = np.broadcast_to(colour, (4, 4, 4)).copy()
    made = Image.fromarray(pixels).convert("RGB")
    if mode == "I;16":
        made = Image.fromarray(np.full((4, 4), int(colour[0]) * 257, np.uint16))
    elif mode in ("LA", "RGBA"):
        made = made.convert(mode[:-1])
        made.putalpha(int(colour[3]))
    else:
        made = made.convert(mode, dither=Image.Dither.NONE)
    file = io.BytesIO()
    made.save(file, "PNG")
    if mode == "I;16":
        return file.getvalue(), colour[:1]
    alpha = colour[3] / 255 if mode in ("LA", "RGBA") else 1.0
    opaque = np.asarray(made.convert("L" if mode in ("1", "L", "LA") else "RGB")).reshape(16, -1)[0]
    return file.getvalue(), np.round(opaque * alpha + 255 * (1 - alpha))


BYTES = st.one_of(*[image()] * 8, st.just((b"", None)), st.binary(max_size=40).map(lambda data: (data, None)))
INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def values(count: int) -> st.SearchStrategy[pa.Array]:
    """Return columns of any type, some of them with nulls."""

    def column(elements: st.SearchStrategy, kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
        return st.lists(elements, min_size=count, max_size=count).map(lambda made: pa.array(made, kind))

    small = st.integers(0, 4)
    return st.one_of(
        *(column(small, kind) for kind in INTEGERS),
        column(st.integers(-2, 2**62), pa.int64()),
        column(st.none() | small, pa.int64()),
        column(st.just(-1), pa.int64()),
        column(st.none(), pa.int64()),
        column(st.none(), pa.null()),
        column(st.floats(width=32), pa.float32()),
        column(st.booleans(), pa.bool_()),
        column(st.sampled_from(["cat", "dog", "ü"]), pa.string()),
        column(small, pa.int64()).map(lambda made: made.dictionary_encode()),
        column(st.lists(st.floats(-1, 1), min_size=2, max_size=2), pa.list_(pa.float64())),
        column(st.lists(small, max_size=2), pa.list_(pa.int32())),
        column(st.none() | st.lists(st.none() | small, max_size=2), pa.list_(pa.int32())),
    )


@FEW
@given(st.data())
def test_a_table_is_read_right_or_refused_with_a_name(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    count = data.draw(st.sampled_from([0, 2, 12, 16, 17]), "rows")
    made = [data.draw(BYTES, "image") for _ in range(count)]
    names = data.draw(st.lists(st.sampled_from(["label", "object", "angle"]), unique=True), "columns")
    columns = {name: data.draw(values(count), name) for name in names}
    cells = pa.array([{"bytes": encoded, "path": None} for encoded, _ in made],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({**columns, "image": cells}), Path(folder) / "x.parquet", row_group_size=5)
        options = DataConfig(source="parquet", path=f"{folder}/x.parquet", cache=folder, image_size=4, pairs="image")
        try:
            dataset = load_data(options)
        except ValueError as error:
            assert any(name in str(error) for name in NAMES), error
            return
        with monkeypatch.context() as patch:
            patch.setattr("eqssl.data.reader.DECODED_LIMIT_BYTES", 1)
            encoded = load_data(replace(options, cache=f"{folder}/other"))
    readable = [i for i, (_, colour) in enumerate(made) if colour is not None]
    rows = torch.cat([split.ids for split in dataset.splits.values()]).tolist()
    assert sorted(rows) == list(range(len(readable)))  # each once, the unreadable left out
    for name, split in dataset.splits.items():
        pixels, other = split.images.take(torch.arange(len(split))), encoded.splits[name]
        assert isinstance(other.images.images, EncodedImages)
        assert torch.equal(pixels, other.images.take(torch.arange(len(split))))
        for i, row in enumerate(readable[j] for j in split.ids.tolist()):
            if len(made[row][1]) == 3 or decode(made[row][0], None).maximum == 0:
                assert np.abs(pixels[i].numpy() - made[row][1][:, None, None]).max() <= 1
            if split.labels is not None and "label" in columns:
                assert dataset.class_names[split.labels[i]] == str(columns["label"][row].as_py())
            if "angle" in split.factors:
                np.testing.assert_allclose(split.factors["angle"][i], np.float32(columns["angle"][row].as_py()))


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=8).filter(
    lambda name: not name.startswith(".")
)


@FEW
@given(
    classes=st.lists(NAME, min_size=1, max_size=3, unique_by=lambda name: unicodedata.normalize("NFC", name)),
    splits=st.sampled_from([(), ("train",), ("Train", "val"), ("training", "test"), ("dev",), ("train", "other")]),
    ending=st.sampled_from(["png", "PNG", "txt"]),
    counts=st.lists(st.integers(0, 6), min_size=3, max_size=3),
)
def test_a_folder_is_read_right_or_refused_with_a_name(
    classes: list[str], splits: tuple[str, ...], ending: str, counts: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        for split in splits or ("",):
            for label, name in enumerate(classes):
                (root / split / name).mkdir(parents=True)
                for i in range(counts[label]):
                    Image.new("RGB", (4, 4), (label * 100, i, 7)).save(root / split / name / f"{i}.{ending}", "PNG")
        try:
            data = load_data(DataConfig(source="imagefolder", path=str(root), cache=folder))
        except ValueError as error:
            assert "set'" in str(error) or any(name in str(error) for name in NAMES), error
            return
        total = sum(counts[: len(classes)]) * len(splits or ("",))
        assert ending != "txt" and sum(len(split) for split in data.splits.values()) == total
        for split in data.splits.values():
            if split.labels is None:
                continue
            for pixels, label in zip(split.images.take(torch.arange(len(split))), split.labels.tolist(), strict=True):
                name = data.class_names[label]
                folder_names = [unicodedata.normalize("NFC", name) for name in classes]
                assert pixels[2].eq(7).all() and folder_names[int(pixels[0, 0, 0]) // 100] == name
