"""Convert an image folder or a torchvision data set into Parquet files in the layout of the Hugging Face hub.

    eqssl convert imagefolder DIR OUT
    eqssl convert cifar10 OUT --root DIR

As sources of `load` they are converted once into the cache and read from there.
"""

import dataclasses
import functools
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image

from eqssl.config import DataConfig
from eqssl.data import parquet
from eqssl.data.dataset import Dataset
from eqssl.data.write import atomic, image_schema, make_once, write_splits

VERSION = 1  # to be raised whenever what is written changes
SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
Dir = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


def imagefolder(folder: Dir, out: Out) -> None:
    """Convert a folder with one subfolder per class, or such folders below train, val and test, file by file.

    Args:
        folder: what to convert.
        out: folder to make.

    Raises:
        ValueError: if there is no such folder, no image in it or out is there already.
    """
    files = _image_files(folder)
    classes = sorted({path.parent.name for paths in files.values() for path in paths})
    splits = {
        split: (_row(path.read_bytes(), classes.index(path.parent.name), path.name) for path in paths)
        for split, paths in files.items()
    }
    _write(out, splits, classes)


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each split: files in class folders with an ending that Pillow knows, in order of names."""
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder")
    tops = {SPLIT_FOLDERS[path.name]: path for path in folder.iterdir() if path.name in SPLIT_FOLDERS}
    endings = Image.registered_extensions()
    files = {
        split: sorted(path for path in top.glob("*/*") if path.suffix.lower() in endings)
        for split, top in (tops or {"train": folder}).items()
    }
    if not files.get("train"):
        raise ValueError(f"{str(folder)!r} holds no image CLASS/NAME.png (or .jpg, ...), nor train/CLASS/NAME.png")
    return files


def torchvision_set(name: str, out: Path, root: Path) -> None:
    """Convert a torchvision data set, downloaded where that is possible.

    Args:
        name: a name of TORCHVISION_SETS.
        out: folder to make.
        root: folder that torchvision downloads to; for ImageNet the one that holds its archives.

    Raises:
        ValueError: if out is there already, or the images cannot be had.
    """
    from torchvision import datasets

    kind, splits = TORCHVISION_SETS[name]
    root = root.expanduser()
    root.mkdir(parents=True, exist_ok=True)
    try:
        sets = {split: getattr(datasets, kind)(root, **arguments) for split, arguments in splits.items()}
    except (RuntimeError, OSError) as error:  # archives that are not there, a download that fails
        raise ValueError(f"{name} cannot be had in {root}: {error}") from error
    classes = [c if isinstance(c, str) else ", ".join(c) for c in sets["train"].classes]
    _write(out, {split: _rows(images) for split, images in sets.items()}, classes)


TORCHVISION_SETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    **{
        name: (kind, {"train": {"train": True, "download": True}, "test": {"train": False, "download": True}})
        for name, kind in (("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("fashion_mnist", "FashionMNIST"))
    },
    "stl10": ("STL10", {split: {"split": split, "download": True} for split in ("train", "test")}),
    "imagenet": ("ImageNet", {split: {"split": split} for split in ("train", "val")}),
}


def _rows(images: Sequence[tuple[Image.Image, int]]) -> Iterator[dict[str, Any]]:
    """Yield rows: the files themselves where the set has files, PNG where it has arrays."""
    for path, label in getattr(images, "samples", ()):
        yield _row(Path(path).read_bytes(), label, Path(path).name)
    if not hasattr(images, "samples"):
        for i in range(len(images)):
            image, label = images[i]
            file = io.BytesIO()
            image.save(file, "PNG")
            yield _row(file.getvalue(), int(label), None)


def _row(data: bytes, label: int, path: str | None) -> dict[str, Any]:
    return {"image": {"bytes": data, "path": path}, "label": label}


def _write(out: Path, splits: dict[str, Iterable[dict[str, Any]]], classes: Sequence[str]) -> None:
    if out.parts[:1] and out.parts[0].endswith(":"):  # s3://..., which is no URI any more once it is a Path
        raise ValueError(f"OUT is {str(out)!r}; allowed: a folder on a disk, from which it can be copied to a bucket")
    out = out.expanduser()
    if out.exists():
        raise ValueError(f"OUT {str(out)!r} is there already")
    with atomic(out) as temporary:
        write_splits(temporary, splits, image_schema(classes))


def load(config: DataConfig) -> Dataset:
    """Return a converted data set, converting it on first use.

    Args:
        config: source and cache are used, path as the image folder or as torchvision's root, and what parquet uses.
    """
    cache = Path(config.cache).expanduser()
    if config.source == "imagefolder":
        if config.path is None:
            raise ValueError("--data.path is not given; allowed: a folder with one subfolder per class")
        folder = Path(config.path).expanduser()
        convert = functools.partial(imagefolder, folder)
        key = hashlib.sha256(repr(_listing(folder)).encode()).hexdigest()[:16]
    else:
        root = Path(config.path) if config.path else cache / "downloads"
        convert = functools.partial(torchvision_set, config.source, root=root)
        key = "torchvision"
    out = cache / f"{config.source}-v{VERSION}-{key}"
    make_once(out, lambda: convert(out=out))
    options = {"path": str(out), "image_column": "image", "label_column": "label"}
    return dataclasses.replace(parquet.load(dataclasses.replace(config, **options)), name=config.source)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of every image, which tell whether a folder was converted before."""
    paths = [path for paths in _image_files(folder).values() for path in paths]
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _command(name: str) -> Callable[[Path, Path], None]:
    def convert(out: Out, root: Path) -> None:
        torchvision_set(name, out, root)

    convert.__doc__ = f"""Convert torchvision's {TORCHVISION_SETS[name][0]}.

    Args:
        out: folder to make.
        root: folder that torchvision downloads to; for ImageNet the one that holds its archives.
    """
    return convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for options that cannot work."""
    commands = {"imagefolder": imagefolder, **{name: _command(name) for name in TORCHVISION_SETS}}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="eqssl convert", args=arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
