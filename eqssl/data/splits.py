"""Names of splits, as the Hugging Face hub knows them in the names of files and folders."""

import re
from collections.abc import Iterable
from itertools import chain

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def group_by_split(paths: Iterable[str], where: str) -> dict[str, list[str]]:
    """Return the paths of train and, where there are, val and test, in order; nothing if no path names a split.

    Args:
        paths: relative to the data set, folders with a slash at the end. A folder's whole name counts, and any word of
            a file's name, in upper or lower case: `train/0.parquet` and `cifar-Train-0.parquet` are train.
        where: option and value, for errors.

    Raises:
        ValueError: for a split in some paths but not in others, or no train.
    """
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    others: list[str] = []
    for path in sorted(paths):
        *folders, file = path.lower().split("/")
        words = [word for word in (*folders, *re.split("[^a-z]+", file)) if word in SPLIT_NAMES]
        (splits[SPLIT_NAMES[words[0]]] if words else others).append(path)
    named = list(chain(*splits.values()))
    if named and others:
        raise ValueError(
            f"{where}: {', '.join(named[:5])} name a split, and {len(others)} do not: {', '.join(others[:5])}; "
            f"allowed: one of {', '.join(SPLIT_NAMES)} in all names or in none"
        )
    if named and not splits["train"]:
        raise ValueError(f"{where} has no training images, only {', '.join(named[:5])}")
    return {split: of_split for split, of_split in splits.items() if of_split}
