"""The owner of a study's folder, among real processes."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eqssl.study import Study, main
from eqssl.study.store import lock
from eqssl.study.store.lock import SILENCE_S, RunLock, owns, run_seconds

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, threading
from eqssl.study.store import lock
from pathlib import Path

lock.BEAT_S = 0.05
try:
    with lock.RunLock(Path(sys.argv[1])) as held:
        ended = threading.Event()
        def lost(reason):
            print("lost to", reason, flush=True)
            ended.set()
        with held.heartbeat(lost=lost):
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


def run_file(folder: Path, number: int) -> Path:
    return folder / "runs" / f"{number:04d}.json"


def write_run(folder: Path, number: int, **values) -> dict:
    """Write the file of a run of this process, but for some values."""
    known = dataclasses.asdict(RunLock(folder).run) | {"token": f"{number:04d}-theirs"} | values
    run_file(folder, number).parent.mkdir(parents=True, exist_ok=True)
    run_file(folder, number).write_text(json.dumps(known))
    return known


def elsewhere(folder: Path, silent_s: float) -> None:
    """Write the first run, by a process on another host with its last heartbeat so long ago."""
    write_run(folder, 1, host="elsewhere")
    heard = time.time() - silent_s
    os.utime(run_file(folder, 1), (heard, heard))


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
    with RunLock(folder) as held:
        assert held.run.token.startswith("0002-") and owns(folder, held.run.token)


def test_a_recycled_pid_is_not_taken_for_the_holder(folder):
    write_run(folder, 1)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on"), RunLock(folder):
        pass
    write_run(folder, 1, pid_start="long ago")
    with RunLock(folder):
        pass


def test_a_machine_of_the_same_name_is_another_one(folder, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 0.5)
    boot, namespace = RunLock(folder).run.pid_namespace.split()
    write_run(folder, 1, pid_namespace=f"{boot[::-1]} {namespace}", pid_start="1")
    said = []
    with RunLock(folder, said.append):
        assert "waiting" in said[0]  # one of this machine would be dead


def test_of_many_that_start_at_once_one_gets_the_folder(folder, start):
    elsewhere(folder, silent_s=2 * SILENCE_S)  # so that all of them find a holder that is gone
    said = [holder.says() for holder in [start() for _ in range(6)]]
    assert said.count("held") == 1
    assert sum("has been running the study" in text for text in said) == 5


def test_another_host_keeps_the_folder_until_it_has_been_silent(folder):
    elsewhere(folder, silent_s=SILENCE_S - 1)
    said = []
    with RunLock(folder, said.append) as held:
        assert owns(folder, held.run.token)
        assert time.time() - run_file(folder, 1).stat().st_mtime >= SILENCE_S
    assert re.search(r"on elsewhere .* heartbeat (59|60) s ago; waiting [01] s for another one", said[0])
    elsewhere(folder, silent_s=SILENCE_S + 1)
    with RunLock(folder, said.append):
        assert len(said) == 1


def test_a_heartbeat_in_the_future_keeps_the_folder_no_longer(folder, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 1.0)
    elsewhere(folder, silent_s=-86400)
    said = []
    with RunLock(folder, said.append) as held:
        assert owns(folder, held.run.token)
    assert "heartbeat 0 s ago; waiting 1 s" in said[0]


@pytest.mark.parametrize("ended", [False, True])
def test_a_heartbeat_while_it_is_waited_for_refuses_the_folder_and_an_end_gives_it(folder, ended):
    elsewhere(folder, silent_s=20)
    threading.Timer(0.3, write_run, [folder, 1], {"host": "elsewhere", "ended": ended}).start()
    refused = contextlib.nullcontext() if ended else pytest.raises(ValueError, match=r"on elsewhere .* wait for")
    with refused, RunLock(folder) as held:
        assert owns(folder, held.run.token)


def test_a_run_knows_at_once_that_it_has_lost_the_folder(folder):
    with RunLock(folder) as held:
        assert held.owned()
        run_file(folder, 1).unlink()
        assert held.owned()  # until the next heartbeat writes it again
        write_run(folder, 1, host="elsewhere", token="0001-theirs")
        assert not held.owned()
    assert json.loads(run_file(folder, 1).read_text())["token"] == "0001-theirs"


def test_another_host_that_has_ended_leaves_the_folder_at_once(folder):
    write_run(folder, 1, host="elsewhere", ended=True)
    with RunLock(folder) as held:
        assert owns(folder, held.run.token)


def test_heartbeats_are_seen_by_the_time_of_the_file(folder, start):
    assert start().says() == "held"
    os.utime(run_file(folder, 1), (0, 0))
    deadline = time.monotonic() + 20
    while run_file(folder, 1).stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_was_suspended_and_has_lost_the_folder_stops_and_leaves_it(folder, start):
    first = start()
    assert first.says() == "held"
    first.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, first.process.pid, os.WSTOPPED)
    other = write_run(folder, 2, host="elsewhere", pid=7)
    last = run_file(folder, 1).read_text()
    first.process.send_signal(signal.SIGCONT)
    assert first.says() == f"lost to process 7 on elsewhere, which took over {folder}"
    assert first.process.wait(20) == 0
    assert json.loads(run_file(folder, 2).read_text()) == other
    assert run_file(folder, 1).read_text() == last


def test_a_file_cut_off_by_a_kill_holds_nothing_once_it_is_old(folder, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 0.5)
    write_run(folder, 1)
    run_file(folder, 1).write_text('{"host": "els')
    with RunLock(folder) as held:
        assert owns(folder, held.run.token)


def test_a_file_that_is_just_being_written_is_waited_for(folder):
    with RunLock(folder) as held:
        path = run_file(folder, 1)
        text = path.read_text()
        path.write_text("")
        threading.Timer(0.2, path.write_text, [text]).start()
        assert owns(folder, held.run.token)


def test_a_folder_without_the_run_is_another_one(folder, tmp_path):
    write_run(tmp_path / "other", 1)
    with RunLock(folder) as held:
        assert not owns(tmp_path / "other", held.run.token)
        assert not owns(tmp_path / "nowhere", held.run.token)


def test_nothing_is_left_of_a_study_that_wrote_nothing(tmp_path, folder):
    with RunLock(folder) as held:
        assert folder.exists()
        held.renew()
    assert not list(tmp_path.iterdir())
    with RunLock(folder):
        (folder / "study.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["study.json"]


def test_every_run_of_the_command_counts_up_to_its_last_heartbeat(folder, start):
    killed = start()
    assert killed.says() == "held"
    (folder / "study.json").write_text("{}")
    deadline = time.monotonic() + 20
    while not sum(run_seconds(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    with RunLock(folder) as held:
        time.sleep(0.1)
        held.renew()
        first, second = run_seconds(folder)
        assert first > 0 and 0.1 < second < 10
    with RunLock(folder):  # such as of a command with an option that is refused
        pass
    assert run_seconds(folder) == [first, pytest.approx(second, abs=5)]
    assert json.loads(run_file(folder, 2).read_text())["ended"]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_study_in_a_held_folder_ends_with_2_before_anything_starts(tmp_path, folder, start, capsys, resume):
    first = start()
    assert first.says() == "held"
    study = Study(name="toy", question="?", space={})
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert main(study, ["--output", str(folder.parent), "--tracking-uri", uri, *resume]) == 2
    assert f"error: --output: process {first.process.pid} on " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
