"""Files and folders on a disk or in a bucket; what is written is there whole or not at all.

A path is a `pathlib.Path` or, for a URI, a `UPath` of universal_pathlib, which has the same interface and is typed as
the former. What is read and written while a study runs goes through the functions below: a bucket may be away for a
while. A disk that fails does so at once.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0  # with a bucket that is away
ANSWER_S = 10.0  # in which one has to answer at the start
OPTIONS = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}  # whoever waits is this module
FIRM = (FileNotFoundError, FileExistsError, IsADirectoryError, PermissionError)  # another attempt ends the same
T = TypeVar("T")


def as_path(text: str | Path, option: str = "the path") -> Path:
    """Return a path on a disk or, for a URI, in a bucket.

    Args:
        text: as a user gives it; a path is returned as it is.
        option: that it is the value of.

    Raises:
        ValueError: for a URI that no installed package reads.
    """
    if not isinstance(text, str):
        return text
    text = text.removeprefix("file://")
    if "://" not in text:
        return Path(text)
    from upath import UPath

    try:
        # What others write has to be seen, so nothing is kept of a listing.
        path = UPath(text, use_listings_cache=False, **OPTIONS.get(text.partition("://")[0], {}))
        path.fs  # noqa: B018 (imports what reads it)
    except ImportError as error:
        raise ValueError(f'{option} is {text!r}: {error}; for s3:// that is pip install "eqssl[s3]"') from error
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}: {error}") from error
    return path


def check_storage(path: Path, option: str, *, write: bool) -> None:
    """Refuse a bucket that is not there, says no, or does not answer in ten seconds; any disk is accepted.

    Args:
        path: of a folder.
        option: that it is the value of.
        write: whether it will be written to; else it has to be there.

    Raises:
        ValueError: with the reason.
    """
    if isinstance(path, Path):
        return
    failed: list[Exception] = []

    def request() -> None:
        try:
            if write:
                try_writing(path)
            else:
                path.fs.ls(path.path)
        except Exception as error:  # whatever the store's library raises
            failed.append(error)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive():
        raise ValueError(f"{option} is {str(path)!r}, which does not answer in {ANSWER_S:.0f} s")
    if failed:
        raise ValueError(
            f"{option} is {str(path)!r}, which cannot be {'written' if write else 'read'}: "
            f"{failed[0]} ({type(failed[0]).__name__})"
        ) from failed[0]


def make_folder(folder: Path, option: str) -> None:
    """Make a folder on a disk, or see that a bucket takes files.

    Args:
        folder: and those above it, which may be there.
        option: that it is the value of.

    Raises:
        ValueError: with the reason why nothing can be written there.
    """
    check_storage(folder, option, write=True)
    try:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{option} is {str(folder)!r}, which cannot be written: {error}") from error


def try_writing(folder: Path) -> None:
    """Write a small file into a folder that is there, or a bucket, and remove it again.

    Raises:
        Exception: whatever the store's library raises; of a disk, OSError.
    """
    probe = folder / f".{uuid.uuid4().hex}"
    if isinstance(probe, Path):
        probe.write_text("?")
        probe.unlink()
    else:
        probe.fs.pipe_file(probe.path, b"?")
        probe.fs.rm_file(probe.path)


@contextmanager
def os_errors() -> Iterator[None]:
    """Make an `OSError` of whatever a store's library raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{error} ({type(error).__name__})") from error


def _patiently(request: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return what a request to a bucket gives, which is made again with growing waits while the bucket is away."""
    deadline, wait_s = time.monotonic() + PATIENCE_S, 0.5
    while True:
        try:
            with os_errors():
                return request(*arguments, **named)
        except FIRM:
            raise
        except OSError as error:
            if time.monotonic() + wait_s > deadline:
                raise
            logger.warning("the storage is away, to be tried again in %g s: %s", wait_s, error)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 16.0)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file under another name that becomes `path` once it is on the disk, or in the bucket.

    Args:
        path: the file; its folder is made if it is not there.
        write: takes the temporary path, always of a disk, with the same suffix.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            write(temporary)
            _patiently(path.fs.put_file, str(temporary), path.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield a file that is there, or a copy of one in a bucket, as a path on the disk.

    Raises:
        FileNotFoundError: where a bucket has none.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        _patiently(path.fs.get_file, path.path, str(copy))
        yield copy


def read(path: Path) -> bytes | None:
    """Return what a file holds; None where there is none."""
    try:
        return path.read_bytes() if isinstance(path, Path) else _patiently(path.fs.cat_file, path.path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def modified_s(path: Path) -> float | None:
    """Return when a file was last written, in seconds since 1970; None where there is none."""
    try:
        return (path.stat() if isinstance(path, Path) else _patiently(path.stat)).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match a pattern; of a bucket all is listed at once."""
    if isinstance(folder, Path):
        return list(folder.glob(pattern))
    names = (name.removeprefix(f"{folder.path}/") for name in _patiently(folder.fs.find, folder.path))
    return [folder / name for name in names if PurePosixPath("/", name).match(f"/{pattern}")]


def read_all(paths: Iterable[Path]) -> list[bytes]:
    """Return what files hold; those of a bucket, the same for all, are read at the same time."""
    paths = list(paths)
    if not paths or isinstance(paths[0], Path):
        return [path.read_bytes() for path in paths]
    found = _patiently(paths[0].fs.cat, [path.path for path in paths])
    return [found[path.path] for path in paths]


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of files to the place of another, on a disk in one rename, in a bucket file by file."""
    if not isinstance(source, Path):
        for file in find(source, "*"):
            _patiently(source.fs.cp_file, file.path, (target / file.name).path)
        return
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that is possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(OSError):
            _patiently(folder.fs.rm, folder.path, recursive=True)


def ray_storage(folder: Path) -> dict[str, Any]:
    """Return where Ray keeps what is its own, as the arguments of its `RunConfig`."""
    if isinstance(folder, Path):
        return {"storage_path": str(folder.absolute())}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    # Arrow's own S3 would leave an empty object for every folder.
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}
