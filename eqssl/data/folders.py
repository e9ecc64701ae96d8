"""Convert an image folder or a torchvision data set into Parquet files in the layout of the Hugging Face hub.

    eqssl convert imagefolder DIR OUT
    eqssl convert cifar10 OUT --root DIR

As sources (see `load`), they are converted into the cache once and read from there.
"""

import dataclasses
import functools
import hashlib
import io
import logging
import os
import socket
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from PIL import Image

from eqssl.config import DataConfig
from eqssl.data.splits import SPLIT_NAMES, group_by_split
from eqssl.data.write import Row, cache_folder, image_schema, make_once, missing_file, write_splits
from eqssl.files import ANSWER_S, as_path

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset

MAX_DEPTH = 4  # to which images are searched for; those of classes are at 2 or 3, others are reported
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
VERSION = 4  # increment whenever the written files change
TORCHVISION_SETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {  # name -> class, split -> its arguments
    **{
        name: (kind, {"train": {"train": True, "download": True}, "test": {"train": False, "download": True}})
        for name, kind in (("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("fashion_mnist", "FashionMNIST"))
    },
    "stl10": ("STL10", {split: {"split": split, "download": True} for split in ("train", "test")}),
    "imagenet": ("ImageNet", {split: {"split": split} for split in ("train", "val")}),
}
Dir = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]

logger = logging.getLogger(__name__)


def imagefolder(folder: Dir, out: Out) -> None:
    """Convert a folder with one subfolder per class, or such folders below train, val and test, file by file.

    Args:
        folder: the folder to convert; its splits may have any of the hub's usual names, such as valid or dev.
        out: folder to make.

    Raises:
        ValueError: if the folder is missing or contains no image, or out exists.
    """
    where, folder = f"DIR {str(folder)!r}", as_path(str(folder), "DIR")
    _convert_images(folder, _find_images(folder, where), out)


def _convert_images(folder: Path, files: dict[str, list[Path]], out: Path) -> None:
    """Write the images that `_find_images` returned."""
    classes = sorted({_class_name(path) for paths in files.values() for path in paths})
    unreadable: list[Path] = []

    def row(path: Path) -> Row:
        data = None
        try:
            data = (folder / path).read_bytes()
            Image.open(io.BytesIO(data)).close()  # reads only the header
        except (OSError, Image.DecompressionBombError):
            unreadable.append(path)
        return {"image": {"bytes": data, "path": _as_text(str(path))}, "label": classes.index(_class_name(path))}

    _write(out, {split: map(row, paths) for split, paths in files.items()}, classes)
    if unreadable:
        example = _as_text(str(unreadable[0]))
        logger.warning("%s: %d files are no readable images, such as %s", folder, len(unreadable), example)


def _class_name(path: Path) -> str:
    """Return the name of an image's folder, with composed accents (NFC), which not every disk stores."""
    return unicodedata.normalize("NFC", _as_text(path.parent.name))


def _as_text(name: str) -> str:
    r"""Return the name of a file with \xff for a byte ff that is not UTF-8, so that two names stay two."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _find_images(folder: Path, where: str) -> dict[str, list[Path]]:
    """Return the images of each split, relative to the folder, in order: CLASS/NAME or SPLIT/CLASS/NAME.

    Hidden files and folders of operating systems are ignored. A warning counts images at another depth, and class
    folders without images.

    Args:
        folder: the folder, with subfolders.
        where: option and value, for errors.

    Raises:
        ValueError: for a folder, or the folder of a split, that is missing, cannot be read or has no images.
    """
    if not folder.is_dir():
        raise ValueError(f"{where} is not a folder; allowed: a folder on a disk with one subfolder per class")
    endings = Image.registered_extensions()
    folders, files_below = _list_below(folder, where)
    images = [path for path in files_below if path.suffix.lower() in endings]
    special = [path for path in images if _is_special(folder / path)]
    images = sorted(set(images).difference(special))
    tops = sorted({f"{path.parts[0]}/" for path in images if len(path.parts) > 1})
    splits = group_by_split(tops, where)
    depth = 3 if splits else 2
    files = {
        split: [path for path in images if len(path.parts) == depth and f"{path.parts[0]}/" in of_split]
        for split, of_split in (splits or {"train": tops}).items()
    }
    if not files["train"]:
        example = "train/CLASS/NAME.png" if splits else "CLASS/NAME.png (or .jpg, ...), nor train/CLASS/NAME.png"
        found = f"; {len(images)} are elsewhere, such as {_as_text(str(images[0]))}" if images else ""
        raise ValueError(f"{where} holds no image {example}{found}")
    full = {of for parent in {path.parent for path in images} for of in (parent, *parent.parents)}
    empty = [path for path in folders if len(path.parts) < depth and path not in full]
    if without := [str(path) for path in empty if len(path.parts) == 1 and path.name.lower() in SPLIT_NAMES]:
        raise ValueError(
            f"{where}: {without[0]} holds no image; allowed: {without[0]}/CLASS/NAME.png, or no such folder"
        )
    others = [path for path in files_below if path.suffix.lower() not in endings]
    elsewhere = sorted(set(images).difference(*files.values()))
    for paths, fault in (
        (others, "files have no ending of an image"),
        (special, "images are no regular files"),
        (elsewhere, "images are in no folder of a class, and are left out"),
        (empty, "folders hold no image"),
    ):
        if paths:
            logger.warning("%s: %d %s, such as %s", where, len(paths), fault, _as_text(str(paths[0])))
    return {split: paths for split, paths in files.items() if paths}


def _is_special(path: Path) -> bool:
    """Return whether a file is a pipe, socket or device, whose reading may never end."""
    return path.exists() and not path.is_file()


def _list_below(folder: Path, where: str) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files below a folder, relative to it, sorted and down to `MAX_DEPTH`.

    Raises:
        ValueError: for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"{where}: {error.filename} cannot be read: {error.strerror}") from error

    folders, files = [], []
    for at, inside, names in os.walk(folder, onerror=refuse, followlinks=True):
        below = Path(at).relative_to(folder)
        is_last = len(below.parts) == MAX_DEPTH - 1  # also ends a cycle of links
        inside[:] = [] if is_last else [name for name in inside if name[0] != "." and name not in SYSTEM_FOLDERS]
        folders += [below / name for name in inside]
        files += [below / name for name in names if name[0] != "."]
    return sorted(folders), sorted(files)


def torchvision_set(name: tyro.conf.Fixed[str], out: Out, root: Path) -> None:
    """Convert a torchvision data set, downloading it if possible.

    Args:
        name: a name of TORCHVISION_SETS.
        out: folder to make.
        root: folder that torchvision downloads to; for ImageNet the one that contains its archives.

    Raises:
        ValueError: if out exists, or images are missing and cannot be downloaded.
    """
    from torchvision import datasets

    kind, splits = TORCHVISION_SETS[name]
    root = as_path(str(root), "--root")
    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_S)  # torchvision sets no time limit
    try:
        sets = {split: getattr(datasets, kind)(root, **arguments) for split, arguments in splits.items()}
    except (RuntimeError, OSError) as error:  # missing archives, or a failed download
        allowed = "its files in that folder (--data.path, of eqssl convert --root)"
        raise ValueError(f"{name} cannot be had in {root}: {error}; allowed: {allowed}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    classes = [c if isinstance(c, str) else ", ".join(c) for c in sets["train"].classes]
    _write(out, {split: _rows(images) for split, images in sets.items()}, classes)


def _rows(images: Sequence[tuple[Image.Image, int]]) -> Iterator[Row]:
    """Yield rows: the original files if the data set consists of files, PNG if it consists of arrays."""
    for path, label in getattr(images, "samples", ()):
        yield {"image": {"bytes": Path(path).read_bytes(), "path": Path(path).name}, "label": label}
    if not hasattr(images, "samples"):
        for i in range(len(images)):
            image, label = images[i]
            file = io.BytesIO()
            image.save(file, "PNG")
            yield {"image": {"bytes": file.getvalue(), "path": None}, "label": int(label)}


def _write(out: Path, splits: dict[str, Iterable[Row]], classes: Sequence[str]) -> None:
    if out.parts[:1] and out.parts[0].endswith(":"):  # s3://..., which a Path turns into s3:/...
        raise ValueError(f"OUT is {str(out)!r}; allowed: a folder on a disk, from which it can be copied to a bucket")
    out = as_path(str(out), "OUT")
    if out.exists():
        raise ValueError(f"OUT {str(out)!r} is there already")
    write_splits(out, splits, image_schema(classes))


def load(config: DataConfig) -> "Dataset":
    """Return a converted data set, converting it on first use.

    Args:
        config: source and cache are used, path as the image folder or torchvision's root, and all that parquet uses.
    """
    from eqssl.data import parquet  # imports torch, which a conversion does not need

    cache = cache_folder(config)
    if config.source == "imagefolder":
        if config.path is None:
            raise ValueError("--data.path is not given; allowed: a folder with one subfolder per class")
        where = f"--data.path {config.path!r}"
        if "://" in config.path:
            raise ValueError(
                f"{where} is a URI; allowed with --data.source imagefolder: a folder (--data.source parquet reads URIs)"
            )
        folder = as_path(config.path, "--data.path")
        files = _find_images(folder, where)
        convert = functools.partial(_convert_images, folder, files)
        listing: list[Any] = [str(folder.resolve())]
        for path in chain(*files.values()):
            found = (folder / path).stat() if (folder / path).exists() else None  # None for a broken link
            # Archives restore a file's size and modification time, and no program can set the time of the last change.
            listing.append((str(path), found and (found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)))
    else:
        root = as_path(config.path, "--data.path") if config.path is not None else cache / "downloads"
        if not isinstance(root, Path) or (config.path is not None and not root.is_dir()):
            is_downloaded = "download" in TORCHVISION_SETS[config.source][1]["train"]
            allowed = "a folder with torchvision's files" + ", or an empty one to download them to" * is_downloaded
            raise ValueError(f"--data.path is {config.path!r}, which is not a folder; allowed: {allowed}")
        convert = functools.partial(torchvision_set, config.source, root=root)
        listing = [str(root.resolve())]
    key = hashlib.sha256(repr(listing).encode()).hexdigest()[:16]
    out = cache / f"{config.source}-v{VERSION}-{key}"
    make_once(out, lambda: convert(out=out), missing_file)
    written = dataclasses.replace(config, path=str(out), image_column="image", label_column="label")
    return dataclasses.replace(parquet.load(written), name=config.source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for invalid options."""
    sets = {name: functools.partial(torchvision_set, name) for name in TORCHVISION_SETS}
    try:
        tyro.extras.subcommand_cli_from_dict({"imagefolder": imagefolder, **sets}, prog="eqssl convert", args=arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
