"""Files and folders on a disk or in a bucket; a file is written whole or not at all.

A path is a `pathlib.Path` or, for a URI, a `UPath` of universal_pathlib, which has the same interface and is typed as
the former. While a study runs, a bucket may be unreachable for a while: its files go through the functions below,
which retry requests. A failing disk raises at once.
"""

import errno
import io
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0  # with an unreachable bucket
ANSWER_S = 10.0  # for the first answer of a bucket
OPTIONS = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}  # this module retries requests itself
PERMANENT_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, PermissionError)
RETRY_S = 5.0  # between two attempts to write
AT_ONCE = 500  # files requested together from a bucket; a large study's files of epochs are a gigabyte
T = TypeVar("T")


def replace_unknown_letters() -> None:
    """Let the standard streams write ? for characters that their encoding lacks, such as the ² of R² in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def as_path(text: str | Path, option: str = "the path") -> Path:
    """Return a path on a disk or, for a URI, in a bucket.

    Args:
        text: from a user, with ~ for the home folder, which not every shell expands; a path is returned unchanged.
        option: name for messages.

    Raises:
        ValueError: for an empty path, a ~ without a home folder, or a URI that no installed package can read.
    """
    if not isinstance(text, str):
        return text
    text = text.removeprefix("file://")
    scheme, separator, _ = text.partition("://")
    if not text:
        raise ValueError(f"{option} is empty; allowed: a path or a URI")
    if not separator:
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise ValueError(
                f"{option} is {text!r}, and there is no such home folder; allowed: another path"
            ) from error
    from upath import UPath

    options: dict[str, Any] = OPTIONS.get(scheme, {})
    try:
        # Other processes write too, so no listing is cached.
        path = UPath(text, protocol=None, use_listings_cache=False, **options)
        path.fs  # noqa: B018 (imports the package for the scheme)
    except (ImportError, ValueError) as error:
        hint = '; for s3:// that is pip install "eqssl[s3]"' if isinstance(error, ImportError) else ""
        raise ValueError(f"{option} is {text!r}: {error}{hint}") from error
    return path  # type: ignore[return-value] # see above


def first_answer(ask: Callable[[], T]) -> T:
    """Return a server's answer, with a time limit, since its library may retry a request for minutes.

    Args:
        ask: the request; it continues in a separate thread that does not keep the process alive.

    Raises:
        TimeoutError: after ten seconds.
    """
    answer: Future[T] = Future()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        return answer.result(ANSWER_S)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer in {ANSWER_S:g} s") from error


def check_readable(folder: Path, option: str) -> None:
    """Refuse a bucket that is absent, denies access or does not answer within ten seconds; accept any disk.

    Args:
        folder: to be read.
        option: name for messages.

    Raises:
        ValueError: with the reason.
    """
    if not isinstance(folder, Path):
        with _refused(folder, option, "read"):
            first_answer(partial(folder.fs.ls, folder.path))


def make_folder(folder: Path, option: str) -> None:
    """Make a folder and its parents on a disk, or check that a bucket accepts files.

    Args:
        folder: to be written; may exist.
        option: name for messages.

    Raises:
        ValueError: with the reason.
    """
    with _refused(folder, option, "written"):
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        else:
            try_writing(folder)


@contextmanager
def _refused(folder: Path, option: str, verb: str) -> Iterator[None]:
    """Raise a `ValueError` for any exception of the storage's library."""
    try:
        yield
    except TimeoutError as error:
        raise ValueError(f"{option} is {str(folder)!r}, which does not answer in {ANSWER_S:.0f} s") from error
    except Exception as error:
        reason = f"{error} ({type(error).__name__})"
        raise ValueError(f"{option} is {str(folder)!r}, which cannot be {verb}: {reason}") from error


def try_writing(folder: Path) -> float:
    """Write a small file into a folder, remove it, and return when it was written: s since 1970 by the storage's clock.

    Args:
        folder: exists, or is in a bucket.

    Raises:
        OSError: of a disk; a bucket's library may raise other types.
    """
    probe = folder / f".{uuid.uuid4().hex}"
    if isinstance(probe, Path):
        probe.write_text("?", encoding="utf-8")
    else:
        first_answer(partial(probe.fs.pipe_file, probe.path, b"?"))
    written_s = probe.stat().st_mtime
    probe.unlink()
    return written_s


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn any exception of a bucket's library into an `OSError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{error} ({type(error).__name__})") from error


def _patiently(request: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return the result of a request to a bucket, retried with growing waits while the bucket is unreachable."""
    deadline, wait_s = time.monotonic() + PATIENCE_S, 0.5
    while True:
        try:
            with os_errors():
                return request(*arguments, **named)
        except PERMANENT_ERRORS:
            raise
        except OSError as error:
            if time.monotonic() + wait_s > deadline:
                raise
            logger.warning("the storage is unreachable, retrying in %g s: %s", wait_s, error)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 16.0)


def create(path: Path, data: bytes) -> None:
    """Write a new file; of several concurrent writers, one succeeds.

    Args:
        path: in a folder that exists, or in a bucket.
        data: its content. On a disk a reader may see it incomplete for an instant.

    Raises:
        FileExistsError: for an existing file; in a bucket, also if the answer to a successful request was lost.
    """
    if isinstance(path, Path):
        with path.open("xb") as file:
            file.write(data)
    else:
        _patiently(path.fs.pipe_file, path.path, data, mode="create")


def persist(write: Callable[[], T], give_up: Callable[[OSError], bool]) -> T:
    """Return the result of a write, which is retried every five seconds while the storage refuses it.

    Args:
        write: raises `OSError` if it fails.
        give_up: returns whether to raise an error instead; see `is_no_lack_of_space`.
    """
    said = ""
    while True:
        try:
            return write()
        except OSError as error:
            if give_up(error):
                raise
            if str(error) != said:
                logger.warning("a file cannot be written, and waits until it can: %s", error)
            said = str(error)
        time.sleep(RETRY_S)


def is_no_lack_of_space(error: OSError) -> bool:
    """Return whether an error has another cause than a full disk or quota."""
    return error.errno not in (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a temporary file that becomes `path` once it is complete.

    Args:
        path: the file; its folder is made if it is missing. A pipe or device, or a file that standard output or error
            goes to, is written directly.
        write: takes the temporary path, always on a disk, with the same suffix.

    Raises:
        OSError: from the system, such as for a full disk, with the path of the file.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            write(temporary)
            _patiently(path.fs.put_file, str(temporary), path.path)
        return
    stream = _standard_stream(path)
    if stream or (path.exists() and not path.is_file() and not path.is_dir()):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            write(temporary)
            with open(stream or path, "wb", closefd=not stream) as target:
                target.write(temporary.read_bytes())
        return
    path = Path(os.path.realpath(path))  # a link stays, and its target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _standard_stream(path: Path) -> int | None:
    """Return the number of the standard stream, output or error, that a path such as /dev/stdout leads to, flushed."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError):  # a missing file, or a closed stream
            if os.path.samestat(path.stat(), os.fstat(number)):
                stream.flush()
                return number
    return None


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, atomically.

    Raises:
        ValueError: for a number that JSON cannot represent, see `finite`.
    """
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return only the finite metrics, since JSON has neither NaN nor infinity."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield a path on a disk: the file itself, or a copy of one in a bucket.

    Raises:
        FileNotFoundError: for a missing file in a bucket.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        _patiently(path.fs.get_file, path.path, str(copy))
        yield copy


def read(path: Path) -> bytes | None:
    """Return the content of a file; None for a missing one."""
    try:
        return path.read_bytes() if isinstance(path, Path) else _patiently(path.fs.cat_file, path.path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_json(path: Path, text: bytes) -> Any:
    """Return the values in the text of a JSON file.

    Raises:
        ValueError: for a damaged file, with its path.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore or remove it") from error


def parse_or_set_aside(path: Path, text: bytes | None, make: Callable[[Any], T], *, move: bool = True) -> T | None:
    """Return the content of a study's record; None if it is missing, or damaged, which is logged as a warning.

    Args:
        path: of a JSON file.
        text: its content; None for a missing file.
        make: takes the values; raises ValueError, TypeError, KeyError or AttributeError for those of another kind.
        move: whether a damaged file is set aside, see `set_aside`; a reader of someone else's folder leaves it.
    """
    if text is None:
        return None
    try:
        return make(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if move:
            set_aside(path, error)
        else:
            logger.warning("%s is damaged and passed over: %s", path, error)
        return None


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file to FILE.damaged, replacing an earlier one, and log a warning."""
    damaged = path.with_name(f"{path.name}.damaged")
    logger.warning("%s is damaged and set aside as %s: %s", path, damaged.name, reason)
    move(path, damaged)


def move(source: Path, target: Path) -> None:
    """Rename a file, replacing an earlier target; do nothing if it is missing."""
    with suppress(FileNotFoundError):
        if isinstance(source, Path):
            source.replace(target)
        else:
            _patiently(source.fs.mv, source.path, target.path)


def modified_s(path: Path) -> float | None:
    """Return the time of a file's last change, in seconds since 1970 by the storage's clock; None for a missing one."""
    try:
        return (path.stat() if isinstance(path, Path) else _patiently(path.stat)).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match a pattern; one request lists a bucket."""
    if isinstance(folder, Path):
        return list(folder.glob(pattern))
    return [folder / name for name in sizes(folder) if PurePosixPath("/", name).match(f"/{pattern}")]


def sizes(folder: Path) -> dict[str, int]:
    """Return path below a folder -> size in bytes, for every file; one request lists a bucket."""
    if isinstance(folder, Path):
        below = {}
        for root, _, names in os.walk(folder):
            for path in (Path(root, name) for name in names):
                with suppress(FileNotFoundError):  # a temporary file
                    below[path.relative_to(folder).as_posix()] = path.stat().st_size
        return below
    found = _patiently(folder.fs.find, folder.path, detail=True)
    return {name.removeprefix(f"{folder.path}/"): of["size"] for name, of in found.items()}


def looks_whole(path: Path) -> bool:
    """Return whether a file on a disk begins and ends as its suffix demands; other files are assumed to be whole."""
    if not isinstance(path, Path):
        return True
    with path.open("rb") as file:
        head = file.read(9)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))
        tail = file.read()
    match path.suffix:
        case ".parquet":
            return head[:4] == tail == b"PAR1"
        case ".safetensors":
            return head[8:] == b"{" and int.from_bytes(head[:8], "little") < size
        case ".npy":
            return head[:6] == b"\x93NUMPY"
        case ".json":
            return head[:1] in b"{[" and size > 0
    return True


def read_all(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield the contents of files: one after another from a disk, hundreds at a time from one bucket."""
    paths = list(paths)
    for start in range(0, len(paths), AT_ONCE):
        part = paths[start : start + AT_ONCE]
        if isinstance(part[0], Path):
            yield from (path.read_bytes() for path in part)
        else:
            found = _patiently(part[0].fs.cat, [path.path for path in part])
            yield from (found[path.path] for path in part)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder into another, each of them whole.

    Raises:
        FileNotFoundError: for a folder without files.
    """
    files = find(source, "*")
    if not files:
        raise FileNotFoundError(f"{source} holds no file")
    for file in files:
        if isinstance(file, Path):
            write_atomically(target / file.name, partial(shutil.copyfile, file))
        else:
            _patiently(file.fs.cp_file, file.path, (target / file.name).path)


def remove(folder: Path) -> None:
    """Remove a folder and its content, as far as possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(OSError):
            _patiently(folder.fs.rm, folder.path, recursive=True)


def ray_storage(folder: Path) -> dict[str, Any]:
    """Return a folder for Ray's own files as arguments of its `RunConfig`."""
    if isinstance(folder, Path):
        return {"storage_path": str(folder.absolute())}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    # Arrow's own S3 would leave an empty object for every folder.
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}
