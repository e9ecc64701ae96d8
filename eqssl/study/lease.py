"""One process at a time in a study's folder: OUTPUT/STUDY/lease.json says which has it, and when it last said so."""

import fcntl
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

FILE = "lease.json"
BEAT_S = 10.0  # between two heartbeats
SILENCE_S = 60.0  # without one, after which a holder that cannot be asked counts as gone


@dataclass(frozen=True)
class Holder:
    """A process that has, or had, the folder.

    Args:
        host: its name.
        pids: the space in which `pid` is a number: that of the host, or of a container.
        pid: its number.
        born: when it started, as the system notes it, so that another process of the same number is told apart.
        token: of the lease.
        since: seconds since 1970 by its clock; only ever shown.
    """

    host: str
    pids: str
    pid: int
    born: str | None
    token: str
    since: float

    def is_here(self, host: str, pids: str) -> bool:
        return (self.host, self.pids) == (host, pids)


class Lease:
    """Holds a study's folder while entered; `lost` tells whether another process has taken it since.

    Args:
        folder: OUTPUT/STUDY; made, and removed again if nothing was written to it.

    Raises:
        ValueError: on entering, for a folder that another process holds or that cannot be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / FILE
        pid = os.getpid()
        self.holder = Holder(socket.gethostname(), _pid_space(), pid, _born(pid), uuid.uuid4().hex, time.time())
        self.lost = False

    def __enter__(self) -> "Lease":
        folder = self._path.parent
        self._made = [f for f in (folder, *folder.parents) if not f.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(self._path) as file:
                refuse_if_held(file, self.holder, self._path)
                _write(file, self.holder)
        except OSError as error:
            raise ValueError(f"--output: {folder} cannot be written ({error})") from error
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError), _locked(self._path) as file:
            if not self._taken(file):
                self._path.unlink()
        for folder in self._made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()

    @contextmanager
    def kept(self, *, beat: Callable[[], None], lost: Callable[[str], None]) -> Iterator[None]:
        """Renew the lease every ten seconds.

        Args:
            beat: called each time.
            lost: called once with the reason, if another process has taken the lease.
        """
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended, beat, lost), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _keep(self, ended: threading.Event, beat: Callable[[], None], lost: Callable[[str], None]) -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):  # a disk that is away for a moment ends nothing
                with _locked(self._path) as file:
                    if other := self._taken(file):
                        lost(f"process {other.pid} on {other.host}, which took over {self._path.parent}")
                        self.lost = True
                        return
                    _write(file, self.holder)
                beat()

    def _taken(self, file: IO[str]) -> Holder | None:
        """Return the other process that has the lease now: this one had been silent for long."""
        other = _read(file)
        return other if other and other.token != self.holder.token else None


def refuse_if_held(file: IO[str], asking: Holder, path: Path) -> None:
    """Refuse a folder whose holder lives, or cannot be asked and was heard of lately.

    Raises:
        ValueError: naming the holder and what to do.
    """
    holder = _read(file)
    if holder is None:
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    held = f"--output: process {holder.pid} on {holder.host} has been running the study in {path.parent} since {since}"
    if holder.is_here(asking.host, asking.pids):
        if holder.born == _born(holder.pid):
            raise ValueError(f"{held}; wait for its end, stop it, or take another --output")
        return
    silent_s = max(0.0, _age_s(file, path.parent))
    if silent_s < SILENCE_S:
        raise ValueError(
            f"{held} and said so {silent_s:.0f} s ago; wait for its end, stop it, or take another --output; "
            f"if it is gone, try again in {SILENCE_S - silent_s:.0f} s"
        )


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """Open a file, made if it is not there, for one process at a time."""
    while True:
        with path.open("a+") as file:
            # On a file system without locks, of two that start in one instant the last to write stays, and the other
            # learns it from its first heartbeat.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else it was removed before the lock came
                yield file
                return


def _read(file: IO[str]) -> Holder | None:
    """Return the holder; None for a file that is new, or whose writer was killed while it wrote."""
    file.seek(0)
    try:
        return Holder(**json.load(file))
    except (json.JSONDecodeError, TypeError):
        return None


def _write(file: IO[str], holder: Holder) -> None:
    """Write the holder in the place of what was there; the file's time is the heartbeat."""
    file.truncate(0)
    json.dump(asdict(holder), file, indent=2)
    file.flush()
    os.fsync(file.fileno())


def _age_s(file: IO[str], folder: Path) -> float:
    """Return the seconds since the last heartbeat.

    Both times are stamped by what keeps the files, so that neither the holder's clock nor ours is believed.
    """
    with tempfile.TemporaryFile(dir=folder) as now:
        now.write(b"?")
        now.flush()
        return os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _pid_space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _born(pid: int) -> str | None:
    """Return when a living process started; None where none lives."""
    proc = Path("/proc")
    if not (proc / "self/stat").exists():
        said = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        return said.stdout.strip() or None
    try:
        state, *fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return None if state in "ZX" else f"{boot} {fields[18]}"  # a dead process whose parent has not asked stays as Z
