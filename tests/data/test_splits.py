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
    (["train_kit-test.parquet", "train_kit-train.parquet"], r"here: train_kit-test.parquet names the splits train and"),
    (["val-0.parquet", "test-0.parquet"], r"here has no training images, only val-0.parquet, test-0.parquet"),
])  # fmt: skip
def test_names_that_do_not_fit_together_are_listed(paths: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        group_by_split(paths, "here")


@pytest.mark.parametrize("paths, message", [
    (["train/", "val/", "valid/"], ["here: val/ and valid/ are read together as val"]),
    (["train-0.parquet", "eval-0.parquet", "eval-1.parquet", "test-0.parquet"],
     ["here: eval-1.parquet and test-0.parquet are read together as test"]),
    (["train-0.parquet", "train-1.parquet", "Dev-0.parquet", "dev-1.parquet"], []),
])  # fmt: skip
def test_two_names_of_one_split_are_reported(paths: list[str], message: list[str], caplog):
    assert sum(map(len, group_by_split(paths, "here").values())) == len(paths)
    assert caplog.messages == message
