"""A Ray head of a test's own, with dashboard and token authentication, ended by its process group."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Head:
    """A head that was started inside the checkout.

    Args:
        options: of `ray start`, beside ports and folders.
        port: of its GCS.
        environment: beside what is needed here.
        host: its address; default: what Ray finds.
    """

    def __init__(
        self,
        options: Sequence[str],
        port: int | None = None,
        environment: dict[str, str] | None = None,
        host: str | None = None,
    ):
        self.folder = tempfile.mkdtemp(prefix="rj")  # short, since sockets lie in it
        dashboard, port = free_port(), port or free_port()
        self.gcs = f"{host or '127.0.0.1'}:{port}"
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
            "OMP_NUM_THREADS": "1",
        }
        command = [
            BIN / "ray", "start", "--head", "--block", "--port", str(port),
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--temp-dir", self.folder,
            "--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port()),
            *(["--node-ip-address", host] if host else []), *options,
        ]  # fmt: skip
        # Or what asks for the dashboard from an actor does not know which, where several heads run on this machine.
        own = self.environment | {"RAY_ADDRESS": self.gcs} | (environment or {})
        self.log = open(f"{self.folder}/head.log", "w+")  # noqa: SIM115 (closed in `end`)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=own, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._wait()
        except BaseException:
            self.end()
            raise

    def get(self, path: str) -> Any:
        """Return what the dashboard answers."""
        request = urllib.request.Request(f"{self.address}{path}")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def listed(self, kind: str) -> list[dict]:
        """Return all nodes or actors that Ray knows of, dead ones too."""
        return self.get(f"/api/v0/{kind}?detail=true")["data"]["result"]["result"]

    def _wait(self) -> None:
        deadline = time.monotonic() + 240
        while True:
            try:
                self.get("/api/version")
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, self._text()
                time.sleep(0.5)

    def _text(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def job(self, verb: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        """Run `ray job VERB` to its end."""
        command, own = [BIN / "ray", "job", verb, *arguments], self.environment | (environment or {})
        return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=1000)

    def submit(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        """Run `ray job submit` to its end."""
        deadline = time.monotonic() + 120
        while True:
            done = self.job("submit", *arguments, environment=environment)
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)  # the dashboard answers before the head's agent is up

    def kill(self) -> None:
        """End it as a machine that loses its power."""
        kill_session(self.process)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()


class Node:
    """One more node of a head's cluster, with one CPU.

    Args:
        head: which it joins.
        on: the command that runs another one on its host.
        options: of `ray start`, beside.
    """

    def __init__(self, head: Head, on: Sequence[str] = (), options: Sequence[str] = ()):
        command = [*on, BIN / "ray", "start", "--block", "--address", head.gcs, "--num-cpus", "1", *options]
        own = head.environment | {"RAY_ADDRESS": head.gcs}
        self.id, self.process, deadline = None, None, time.monotonic() + 150
        while self.id not in self._alive(head):
            assert time.monotonic() < deadline
            if self.process is None or self.process.poll() is not None:  # Ray gives a busy machine 30 s
                self.process = subprocess.Popen(
                    command, cwd=ROOT, env=own, stdout=head.log, stderr=subprocess.STDOUT, start_new_session=True
                )
            time.sleep(0.5)
            self.id = self._raylets_id()

    def _raylets_id(self) -> str | None:
        for pid in session(self.process):
            with contextlib.suppress(OSError):
                for part in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    if part.startswith("--node_id="):
                        return part.partition("=")[2]
        return None

    @staticmethod
    def _alive(head: Head) -> set[str]:
        return {node["node_id"] for node in head.listed("nodes") if node["state"] == "ALIVE"}

    def kill(self) -> None:
        """End it as a machine that loses its power."""
        kill_session(self.process)


def session(process: subprocess.Popen) -> list[int]:
    """Return the processes of a session: a raylet gives its workers process groups of their own."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[3] == str(process.pid):
                found.append(int(status.parent.name))
    return found


def kill_session(process: subprocess.Popen) -> None:
    """Kill a process and all of its session."""
    for pid in session(process):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
