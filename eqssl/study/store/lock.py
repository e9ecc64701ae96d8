"""One run of the command at a time in a study's folder, and the seconds of each.

A run of the command creates OUTPUT/STUDY/runs/NNNN.json, which fails if the file exists, and the highest number owns
the folder. The file is lock, fence and ledger in one: its modification time, set by the storage, is the run's last
heartbeat; a run that finds the next number has lost the folder, and writes nothing more; `wall_s` is the duration of
the run.
"""

import json
import logging
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eqssl.files import create, find, modified_s, os_errors, read, try_writing, write_json

logger = logging.getLogger(__name__)

RUNS, STUDY = "runs", "study.json"  # in the study's folder
BEAT_S = 10.0  # between two heartbeats
SILENCE_S = 60.0  # without a heartbeat, after which a run on another machine counts as dead
LOOK_S = 2.0  # between two looks for a heartbeat


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the study's command.

    Args:
        host: name of its machine.
        pid: number of its process.
        pid_namespace: boot of the machine and container to which `pid` belongs.
        pid_start: start of the process as the system records it, since process numbers are reused.
        since: its start, in seconds since 1970 by the machine's own clock; only displayed.
        token: unique among runs; begins with the number of its file.
        wall_s: seconds until the last heartbeat.
        ended: whether it has released the folder.
    """

    host: str
    pid: int
    pid_namespace: str
    pid_start: str | None
    since: float
    token: str = ""
    wall_s: float = 0.0
    ended: bool = False


class RunLock:
    """Owns a study's folder while entered.

    `run` is this run of the command; `lost` tells whether a later one has taken over the folder.

    Args:
        folder: OUTPUT/STUDY; created, and removed again by a run that leaves nothing in it.
        say: takes a line for the user while this run waits for one on another machine that may be dead.

    Raises:
        ValueError: on entering, for a folder that a live run owns or that is not writable.
    """

    def __init__(self, folder: Path, say: Callable[[str], object] = logger.warning):
        self._folder, self._number, self._start, self._say = folder, 0, time.perf_counter(), say
        self._made: list[Path] = []
        self.run, self.lost = _this_run(), False

    def __enter__(self) -> "RunLock":
        runs = self._folder / RUNS
        try:
            if isinstance(runs, Path):
                self._made = [folder for folder in (runs, *runs.parents) if not folder.exists()]
                runs.mkdir(parents=True, exist_ok=True)
            while not self._create():
                pass
        except OSError as error:
            raise ValueError(f"--output: {self._folder} cannot be written ({error})") from error
        return self

    def _create(self) -> bool:
        """Create the file of the next number; return False if another run was faster."""
        newest = _newest(self._folder)
        self._wait_until_free(_file(self._folder, newest))
        self._number = newest + 1
        self.run = replace(self.run, token=f"{self._number:04d}-{uuid.uuid4().hex}")
        try:
            create(_file(self._folder, self._number), json.dumps(asdict(self.run)).encode())
        except FileExistsError:
            return owns(self._folder, self.run.token)  # a bucket's first answer may have been lost
        return True

    def _wait_until_free(self, path: Path) -> None:
        """Wait until the run that owns the folder has ended or fallen silent.

        Raises:
            ValueError: if that run is alive; the message says where it is and what to do.
        """
        heard_s, run = modified_s(path), _read_run(path)
        if heard_s is None or (run and run.ended):
            return
        text = f"--output: another run of the study has the folder {self._folder}"
        if run:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.since))
            text = (
                f"--output: process {run.pid} on {run.host} has been running the study in {self._folder} since {since}"
            )
        alive = ValueError(f"{text}; wait for its end, stop it, or choose another --output")
        if run and (run.host, run.pid_namespace) == (self.run.host, self.run.pid_namespace):
            if run.pid_start == _pid_start(run.pid):
                raise alive
            return
        said, start_s = False, time.monotonic()
        # Waiting counts too: a heartbeat may lie in the future.
        while (silent_s := max(self._storage_s(path) - heard_s, time.monotonic() - start_s)) < SILENCE_S:
            if not said:
                left_s = SILENCE_S - silent_s
                self._say(f"{text}, its last heartbeat {silent_s:.0f} s ago; waiting {left_s:.0f} s for another one")
                said = True
            time.sleep(min(LOOK_S, SILENCE_S - silent_s))
            if modified_s(path) != heard_s:
                if (run := _read_run(path)) and not run.ended:
                    raise alive
                return

    @staticmethod
    def _storage_s(path: Path) -> float:
        """Return the time of the storage, which also stamps heartbeats, so that no machine's clock is trusted."""
        with os_errors():
            return try_writing(path.parent)

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError), os_errors():
            if self._successor():
                return
            if self.run.wall_s and read(self._folder / STUDY):
                self.renew(ended=True)
                return
            _file(self._folder, self._number).unlink()
            for folder in self._made:
                folder.rmdir()  # fails if it is not empty

    @contextmanager
    def heartbeat(self, lost: Callable[[str], None]) -> Iterator[None]:
        """Renew the lock every ten seconds while entered.

        Args:
            lost: called once, with a description of the later run, when that owns the folder.
        """
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_S):
                with suppress(OSError):  # storage that is briefly unreachable must not end the run
                    if self.owned():
                        self.renew()
                        continue
                    other = self._successor()
                    who = f"process {other.pid} on {other.host}" if other else "another process"
                    return lost(f"{who}, which took over {self._folder}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def owned(self) -> bool:
        """Return whether this run still owns the folder, even after it was suspended; if not, it writes nothing."""
        with suppress(OSError):  # unreachable storage refuses the write as well
            self.lost = self.lost or self._successor() is not None
        return not self.lost

    def renew(self, ended: bool = False) -> None:
        """Write how long this run has taken, which is its heartbeat."""
        self.run = replace(self.run, wall_s=time.perf_counter() - self._start, ended=ended)
        write_json(_file(self._folder, self._number), asdict(self.run))

    def _successor(self) -> Run | None:
        """Return the run that has taken over: the next one or, if this run's file was removed, one with its number."""
        own = _read_run(_file(self._folder, self._number))
        return own if own and own.token != self.run.token else _read_run(_file(self._folder, self._number + 1))


def owns(folder: Path, token: str) -> bool:
    """Return whether a folder, as this machine sees it, contains the file of the run with this token."""
    run = _read_run(_file(folder, int(token.partition("-")[0])))
    return run is not None and run.token == token


def run_seconds(folder: Path) -> list[float]:
    """Return the seconds of every run of the command in a study's folder, in order."""
    runs = (_read_run(_file(folder, number)) for number in range(1, _newest(folder) + 1))
    return [run.wall_s for run in runs if run]


def _file(folder: Path, number: int) -> Path:
    return folder / RUNS / f"{number:04d}.json"


def _newest(folder: Path) -> int:
    """Return the highest number of a run; 0 if there is none."""
    number = max((int(path.stem) for path in find(folder / RUNS, "[0-9][0-9][0-9][0-9].json")), default=0)
    while read(_file(folder, number + 1)) is not None:  # the listing of a shared folder may be a minute old
        number += 1
    return number


def _read_run(path: Path) -> Run | None:
    """Return the run of a file; None for a missing file, or one that a kill has truncated."""
    for _ in range(20):
        if (text := read(path)) is None:
            return None
        with suppress(ValueError, TypeError):
            return Run(**json.loads(text))
        time.sleep(0.05)  # another process is just writing it
    return None


def _this_run() -> Run:
    namespace, pid = "", os.getpid()
    with suppress(OSError):  # machines may share a name, and number their namespaces alike
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    start, since = _pid_start(pid), time.time()
    return Run(host=socket.gethostname(), pid=pid, pid_namespace=namespace, pid_start=start, since=since)


def _pid_start(pid: int) -> str | None:
    """Return the start of a live process; None for a dead one."""
    proc = Path("/proc")
    if not (proc / "self/stat").exists():
        output = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, encoding="utf-8").stdout
        return output.strip() or None
    try:
        state, *fields = (proc / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]  # a dead process stays a zombie (Z) until its parent reaps it
