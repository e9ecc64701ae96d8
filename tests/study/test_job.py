"""`ray job submit` against a real head with dashboard and token authentication."""

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
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Head:
    """A Ray head of this test's own, started inside the checkout and ended by its process group."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="rj")  # short, since sockets lie in it
        dashboard = free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            BIN / "ray", "start", "--head", "--block", "--num-cpus", "2", "--port", str(free_port()),
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--temp-dir", self.folder,
            "--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port()),
        ]  # fmt: skip
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        self.log = open(f"{self.folder}/head.log", "w+")  # noqa: SIM115 (closed in `end`)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._wait()

    def _wait(self) -> None:
        request = urllib.request.Request(f"{self.address}/api/version")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, self._text()
                time.sleep(0.5)

    def _text(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def submit(self, *arguments: str) -> subprocess.CompletedProcess:
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


@pytest.fixture(scope="module")
def head():
    head = Head()
    yield head
    head.end()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return the options of the smoke study and the folder of its results."""
    folder = tmp_path_factory.mktemp("job")
    options = [
        "python", "studies/loss_weight.py", "--smoke", "--seeds", "1", "--output", str(folder / "results"),
        "--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--data.cache", str(folder / "cache"),
    ]  # fmt: skip
    return options, folder / "results" / "loss_weight"


def test_the_smoke_study_as_a_job(head, study):
    command, folder = study
    result = head.submit("--working-dir", ".", "--", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert {trial["status"] for trial in summary["trials"]} == {"COMPLETE"}
    names = {configuration["name"] for configuration in summary["configurations"]}
    assert {"constant", "pixels", "random", "supervised", "recon-only", "base", "split-0"} < names
    assert len(names) == 7 + 5
    assert (folder / "best_encoder" / "model.safetensors").is_file()
    progress = [line for line in result.stdout.splitlines() if "seed 0: " in line]
    assert len(progress) == len(names) and not any("\x1b" in line for line in progress)


def test_a_head_started_in_the_checkout_needs_no_working_dir(head, study):
    """The literal `ray job submit -- python studies/loss_weight.py`, here going on with what the job before it did."""
    command, folder = study
    before = json.loads((folder / "summary.json").read_text())["trials"]
    (folder / "trials" / before[-1]["trial_id"] / "result.json").unlink()
    result = head.submit("--", *command, "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    after = json.loads((folder / "summary.json").read_text())["trials"]
    assert [trial["trial_id"] for trial in after] == [trial["trial_id"] for trial in before]
    assert after[:-1] == before[:-1] and after[-1]["metrics"]["r2_mean"] == before[-1]["metrics"]["r2_mean"]


def test_the_exit_code_of_an_option_that_cannot_work_comes_back(head):
    result = head.submit("--", "python", "studies/loss_weight.py", "--recon.weight", "-1")
    assert result.returncode != 0
    assert "--recon.weight is -1.0; allowed: 0 or more, finite" in result.stdout + result.stderr
