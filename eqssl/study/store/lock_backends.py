"""Where the lease of a study is kept: a file on a disk, or an object in a bucket, with one interface."""

import fcntl
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eqssl.files import os_errors


class LeaseFile:
    """A lease on a disk, read and written by one process at a time.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._made: list[Path] = []

    def make_folder(self) -> None:
        """Make the folder, to be removed again by `remove` if nothing else has been written to it."""
        folder = self._path.parent
        self._made = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Open the file, made if it is not there, for one process at a time."""
        while True:
            with self._path.open("a+") as file:
                # On a file system without locks, of two that start in one instant the last to write stays, and the
                # other learns it from its first heartbeat.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:  # else it was removed before the lock came
                    self._file = file
                    yield
                    return

    def read(self) -> dict[str, Any] | None:
        """Return the holder; None for a file that is new, or whose writer was killed while it wrote."""
        self._file.seek(0)
        with suppress(json.JSONDecodeError):
            return json.load(self._file)

    def write(self, holder: dict[str, Any]) -> bool:
        """Write the holder in the place of what was there; the file's time is the heartbeat."""
        self._file.truncate(0)
        json.dump(holder, self._file, indent=2)
        self._file.flush()
        os.fsync(self._file.fileno())
        return True

    def silent_s(self) -> float:
        """Return the seconds since the last heartbeat.

        Both times are stamped by what keeps the files, so that neither the holder's clock nor ours is believed.
        """
        with tempfile.TemporaryFile(dir=self._path.parent) as now:
            now.write(b"?")
            now.flush()
            return os.fstat(now.fileno()).st_mtime - os.fstat(self._file.fileno()).st_mtime

    def remove(self) -> None:
        """Remove the file, and the folders that were made for it."""
        self._path.unlink()
        for folder in self._made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


class LeaseObject:
    """A lease in a bucket, where nothing can be locked: a write names the version that it replaces, or fails.

    S3 has such writes, and of two that start in one instant one wins. Other stores have them for a new object alone:
    when two take over from one that is gone, the last to write stays, and the other learns it from its next heartbeat.

    Args:
        path: of the object.
    """

    def __init__(self, path: Path):
        self._fs, self._path = path.fs, path.path
        self._version: str | None = None

    def make_folder(self) -> None:
        """Nothing: a bucket has no folders."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nothing, see `write`."""
        yield

    @os_errors()
    def read(self) -> dict[str, Any] | None:
        """Return the holder; None where there is none."""
        try:
            self._version = self._fs.info(self._path).get("ETag", "unknown")
            return json.loads(self._fs.cat_file(self._path))
        except FileNotFoundError:
            self._version = None
            return None

    def write(self, holder: dict[str, Any]) -> bool:
        """Write the holder in the place of what was read; the object's time is the heartbeat.

        Returns:
            Whether nobody else has written since the last `read`.
        """
        replaced, condition = self._version, {}
        if replaced is None:
            condition = {"mode": "create"}
        elif "s3" in self._fs.protocol:
            condition = {"IfMatch": replaced}
        try:
            with os_errors():
                self._fs.pipe_file(self._path, json.dumps(holder, indent=2).encode(), **condition)
        except OSError:
            if self.read() == holder:  # a first attempt had got through, and only its answer was lost
                return True
            if self._version == replaced:
                raise
            return False
        return True

    @os_errors()
    def silent_s(self) -> float:
        """Return the seconds since the last heartbeat, both times stamped by the store."""
        probe = f"{self._path}.{uuid.uuid4().hex}"
        self._fs.pipe_file(probe, b"?")
        try:
            return (self._fs.modified(probe) - self._fs.modified(self._path)).total_seconds()
        finally:
            self._fs.rm_file(probe)

    @os_errors()
    def remove(self) -> None:
        """Remove the object."""
        self._fs.rm_file(self._path)
