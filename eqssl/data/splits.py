"""Split names that the Hugging Face hub recognises in the names of files and folders."""

import logging
import re
from collections.abc import Iterable
from itertools import chain

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}

logger = logging.getLogger(__name__)


def group_by_split(paths: Iterable[str], where: str) -> dict[str, list[str]]:
    """Return the sorted paths of train and, if present, val and test; empty if no path names a split.

    Paths that name one split differently, such as `val` and `dev`, are pooled as on the hub, with a warning.

    Args:
        paths: relative to the data set, folders with a slash at the end. A folder's whole name counts, else any word in
            a file's name, in upper or lower case: `train/0.parquet` and `cifar-Train-0.parquet` are train.
        where: option and value, for errors.

    Raises:
        ValueError: if only some paths name a split, one path names two, or there is no train.
    """
    splits: dict[str, dict[str, str]] = {"train": {}, "val": {}, "test": {}}  # path -> its name of the split
    others: list[str] = []
    for path in sorted(paths):
        *folders, file = path.lower().split("/")
        words = [word for word in folders if word in SPLIT_NAMES]
        words = words or [word for word in re.split("[^a-z]+", file) if word in SPLIT_NAMES]
        if len({SPLIT_NAMES[word] for word in words}) > 1:
            raise ValueError(f"{where}: {path} names the splits {' and '.join(words)}; allowed: one")
        if words:
            splits[SPLIT_NAMES[words[0]]][path] = words[0]
        else:
            others.append(path)
    named = list(chain(*splits.values()))
    if named and others:
        raise ValueError(
            f"{where}: {', '.join(named[:5])} name a split, and {len(others)} do not: {', '.join(others[:5])}; "
            f"allowed: one of {', '.join(SPLIT_NAMES)} in all names or in none"
        )
    if named and not splits["train"]:
        raise ValueError(f"{where} has no training images, only {', '.join(named[:5])}")
    for split, of_split in splits.items():
        if len(names := {word: path for path, word in of_split.items()}) > 1:
            logger.warning("%s: %s are read together as %s", where, " and ".join(names.values()), split)
    return {split: list(of_split) for split, of_split in splits.items() if of_split}
