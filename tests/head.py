"""A Ray head of a test's own, with dashboard and token authentication, ended by its process group."""

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
    """

    def __init__(self, options: Sequence[str], port: int | None = None, environment: dict[str, str] | None = None):
        self.folder = tempfile.mkdtemp(prefix="rj")  # short, since sockets lie in it
        dashboard = free_port()
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
            BIN / "ray", "start", "--head", "--block", "--port", str(port or free_port()),
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--temp-dir", self.folder,
            "--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port()), *options,
        ]  # fmt: skip
        own = self.environment | (environment or {})
        del own["RAY_ADDRESS"]
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

    def submit(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run `ray job submit` to its end."""
        command = [BIN / "ray", "job", "submit", *arguments]
        deadline = time.monotonic() + 120
        while True:
            done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=500)
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)  # the dashboard answers before the head's agent is up

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
