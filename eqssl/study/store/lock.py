"""One process at a time in a study's folder: OUTPUT/STUDY/lease.json says which has it, and when it last said so."""

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from eqssl.files import read
from eqssl.study.store.lock_backends import LeaseFile, LeaseObject

FILE = "lease.json"
BEAT_S = 10.0  # between two heartbeats
SILENCE_S = 60.0  # without one, after which a holder that cannot be asked counts as gone


@dataclass(frozen=True)
class Holder:
    """A process that has, or had, the folder.

    Args:
        host: its name.
        pids: the space in which `pid` is a number: that of the host since it was started, or of a container there.
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
        self._folder = folder
        self._store = (LeaseFile if isinstance(folder, Path) else LeaseObject)(folder / FILE)
        pid = os.getpid()
        self.holder = Holder(socket.gethostname(), _pid_space(), pid, _born(pid), uuid.uuid4().hex, time.time())
        self.lost = False

    def __enter__(self) -> "Lease":
        try:
            self._store.make_folder()
            while not self._taken_over():
                pass
        except OSError as error:
            raise ValueError(f"--output: {self._folder} cannot be written ({error})") from error
        return self

    def _taken_over(self) -> bool:
        """Take the folder; False if another process did so in the same instant."""
        with self._store.locked():
            self._refuse_if_held()
            return self._store.write(asdict(self.holder))

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError), self._store.locked():
            if not self._other():
                self._store.remove()

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
            with suppress(OSError):  # storage that is away for a moment ends nothing
                with self._store.locked():
                    if other := self._other():
                        lost(f"process {other.pid} on {other.host}, which took over {self._folder}")
                        self.lost = True
                        return
                    self._store.write(asdict(self.holder))
                beat()

    def _known(self) -> Holder | None:
        """Return who has the lease."""
        try:
            return Holder(**self._store.read() or {})
        except TypeError:
            return None

    def _other(self) -> Holder | None:
        """Return the other process that has the lease now: this one had been silent for long."""
        other = self._known()
        return other if other and other.token != self.holder.token else None

    def _refuse_if_held(self) -> None:
        """Refuse a folder whose holder lives, or cannot be asked and was heard of lately.

        Raises:
            ValueError: naming the holder and what to do.
        """
        holder = self._known()
        if holder is None:
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        held = f"--output: process {holder.pid} on {holder.host} has been running the study in {self._folder}"
        held += f" since {since}"
        if holder.is_here(self.holder.host, self.holder.pids):
            if holder.born == _born(holder.pid):
                raise ValueError(f"{held}; wait for its end, stop it, or take another --output")
            return
        silent_s = max(0.0, self._store.silent_s())
        if silent_s < SILENCE_S:
            raise ValueError(
                f"{held} and said so {silent_s:.0f} s ago; wait for its end, stop it, or take another --output; "
                f"if it is gone, try again in {SILENCE_S - silent_s:.0f} s"
            )


def token_in(folder: Path) -> str | None:
    """Return the token of the lease in a folder, of whoever holds it; None where there is none."""
    for _ in range(20):
        if (text := read(folder / FILE)) is None:
            return None
        with suppress(json.JSONDecodeError):  # a heartbeat is just being written
            return json.loads(text)["token"]
        time.sleep(0.05)
    return None


def _pid_space() -> str:
    with suppress(OSError):  # machines may share a name, and number their spaces alike
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
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
    return None if state in "ZX" else fields[18]  # a dead process whose parent has not asked stays as Z
