import pytest

from eqssl.data.splits import group_by_split


@pytest.mark.parametrize("paths, expected", [
    (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], {"train": 2}),
    (["Train-0.parquet", "TEST-0.parquet"], {"train": 1, "test": 1}),
    (["train-0.parquet", "valid-0.parquet", "eval-0.parquet"], {"train": 1, "val": 1, "test": 1}),
    (["cifar10-training.parquet", "cifar10_dev.parquet"], {"train": 1, "val": 1}),
    (["training/0.parquet", "validation/0.parquet", "testing/0.parquet"], {"train": 1, "val": 1, "test": 1}),
    (["train/", "Dev/"], {"train": 1, "val": 1}),
    (["pretrained-0.parquet", "latest.parquet"], {}),
    (["train_station/", "test tube/"], {}),
])  # fmt: skip
def test_the_names_of_the_hub(paths: list[str], expected: dict[str, int]):
    splits = group_by_split(paths, "here")
    assert {split: len(names) for split, names in splits.items()} == expected
    assert list(splits) == [split for split in ("train", "val", "test") if split in splits]


@pytest.mark.parametrize("paths, message", [
    (["train-0.parquet", "x.parquet"], r"here: train-0.parquet name a split, and 1 do not: x.parquet; allowed"),
    (["val-0.parquet", "test-0.parquet"], r"here has no training images, only val-0.parquet, test-0.parquet"),
])  # fmt: skip
def test_names_that_do_not_fit_together_are_listed(paths: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        group_by_split(paths, "here")
