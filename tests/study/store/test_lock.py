"""Who has a study's folder, among real processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eqssl.study import Study, main
from eqssl.study.store.lock import FILE, SILENCE_S, Lease

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, threading
from eqssl.study.store import lock as lease
from pathlib import Path

lease.BEAT_S = 0.05
try:
    with lease.Lease(Path(sys.argv[1])) as held:
        ended = threading.Event()
        def lost(reason):
            print("lost to", reason, flush=True)
            ended.set()
        with held.kept(beat=lambda: None, lost=lost):
            print("held", flush=True)
            ended.wait(60)
except ValueError as error:
    print(error, flush=True)
"""


class Holder:
    """A process that holds a folder until it is killed, or loses it."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "toy"


@pytest.fixture
def start(folder):
    holders = []

    def process() -> Holder:
        holders.append(Holder(folder))
        return holders[-1]

    yield process
    for holder in holders:
        holder.kill()


def elsewhere(folder: Path, silent_s: float) -> None:
    """Write the lease of a process on another host that was last heard of so long ago."""
    known = dataclasses.asdict(Lease(folder).holder) | {"host": "elsewhere", "token": "theirs"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(known))
    heard = time.time() - silent_s
    os.utime(folder / FILE, (heard, heard))


def test_a_second_process_is_refused_by_name(folder, start):
    first = start()
    assert first.says() == "held"
    text = start().says()
    assert f"process {first.process.pid} on " in text and "since 20" in text and str(folder) in text
    assert "try again" not in text


def test_a_killed_holder_is_taken_over_at_once_though_nobody_has_waited_for_it(folder, start):
    first = start()
    assert first.says() == "held"
    first.process.kill()
    os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    with Lease(folder) as lease:
        assert json.loads((folder / FILE).read_text())["token"] == lease.holder.token


def test_a_recycled_number_is_not_taken_for_the_holder(folder):
    living = dataclasses.asdict(Lease(folder).holder)
    folder.mkdir(parents=True)
    (folder / FILE).write_text(json.dumps(living | {"token": "theirs"}))
    with pytest.raises(ValueError, match=f"process {os.getpid()} on"), Lease(folder):
        pass
    (folder / FILE).write_text(json.dumps(living | {"token": "theirs", "born": "long ago"}))
    with Lease(folder):
        pass


def test_a_machine_of_the_same_name_is_another_one(folder):
    living = dataclasses.asdict(Lease(folder).holder)
    boot, space = living["pids"].split()
    folder.mkdir(parents=True)
    (folder / FILE).write_text(json.dumps(living | {"token": "theirs", "pids": f"{boot[::-1]} {space}", "born": "1"}))
    with pytest.raises(ValueError, match="try again in"), Lease(folder):
        pass


def test_of_many_that_start_at_once_one_gets_the_folder(folder, start):
    elsewhere(folder, silent_s=2 * SILENCE_S)  # so that all of them find a holder that is gone
    said = [holder.says() for holder in [start() for _ in range(6)]]
    assert said.count("held") == 1
    assert sum("has been running the study" in text for text in said) == 5


def test_another_host_keeps_the_folder_until_it_has_been_silent(folder):
    elsewhere(folder, silent_s=20)
    with pytest.raises(ValueError, match=r"on elsewhere .* said so 20 s ago; .* try again in (39|40) s"), Lease(folder):
        pass
    elsewhere(folder, silent_s=SILENCE_S + 1)
    with Lease(folder) as lease:
        assert json.loads((folder / FILE).read_text())["token"] == lease.holder.token


def test_heartbeats_are_seen_by_the_time_of_the_file(folder, start):
    assert start().says() == "held"
    os.utime(folder / FILE, (0, 0))
    deadline = time.monotonic() + 20
    while (folder / FILE).stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_was_suspended_and_has_lost_the_folder_stops_and_leaves_it(folder, start):
    first = start()
    assert first.says() == "held"
    first.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, first.process.pid, os.WSTOPPED)
    other = {**json.loads((folder / FILE).read_text()), "host": "elsewhere", "pid": 7, "token": "theirs"}
    (folder / FILE).write_text(json.dumps(other))
    first.process.send_signal(signal.SIGCONT)
    assert first.says() == f"lost to process 7 on elsewhere, which took over {folder}"
    assert first.process.wait(20) == 0
    assert json.loads((folder / FILE).read_text()) == other


def test_a_file_cut_off_by_a_kill_holds_nothing(folder):
    folder.mkdir(parents=True)
    (folder / FILE).write_text('{"host": "els')
    with Lease(folder) as lease:
        assert json.loads((folder / FILE).read_text())["pid"] == lease.holder.pid


def test_nothing_is_left_of_a_study_that_wrote_nothing(tmp_path, folder):
    with Lease(folder):
        assert folder.exists()
    assert not list(tmp_path.iterdir())
    with Lease(folder):
        (folder / "study.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["study.json"]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_study_in_a_held_folder_ends_with_2_before_anything_starts(tmp_path, folder, start, capsys, resume):
    first = start()
    assert first.says() == "held"
    study = Study(name="toy", question="?", space={})
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert main(study, ["--output", str(folder.parent), "--tracking-uri", uri, *resume]) == 2
    assert f"error: --output: process {first.process.pid} on " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
