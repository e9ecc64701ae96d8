"""The owner of a study's folder in a bucket, against a real S3 server."""

import dataclasses
import json
import os
import threading
import time

import pytest

from eqssl.files import as_path, find
from eqssl.study.store import lock
from eqssl.study.store.lock import RunLock, owns


@pytest.fixture
def folder(s3, tmp_path):
    return as_path(f"s3://studies/{tmp_path.name}/toy")


def run_file(folder, number: int):
    return folder / "runs" / f"{number:04d}.json"


def elsewhere(folder, number: int = 1, **values) -> dict:
    """Write the run of a process on another host."""
    known = dataclasses.asdict(RunLock(folder).run) | {"host": "elsewhere", "token": f"{number:04d}-theirs"} | values
    run_file(folder, number).write_text(json.dumps(known))
    return known


def enter_at_once(folder, count: int) -> list[RunLock | ValueError]:
    """Let threads enter in one instant; return the locks and the refusals."""
    ready, found = threading.Barrier(count), []

    def enter() -> None:
        mine = RunLock(folder)
        ready.wait()
        try:
            found.append(mine.__enter__())
        except ValueError as error:
            found.append(error)

    threads = [threading.Thread(target=enter) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("silent", [False, True])
def test_of_many_that_start_at_once_one_gets_the_folder(folder, monkeypatch, silent):
    if silent:  # so that all of them find a holder that is gone
        monkeypatch.setattr(lock, "SILENCE_S", 1.0)
        elsewhere(folder)
        time.sleep(2.1)  # a store tells whole seconds
    found = enter_at_once(folder, 6)
    (held,) = (one for one in found if isinstance(one, RunLock))
    assert owns(folder, held.run.token)
    told = f"--output: process {os.getpid()} on "
    assert sum(str(one).startswith(told) and f"running the study in {folder} since" in str(one) for one in found) == 5
    held.__exit__()
    assert find(folder, "runs/*") == ([run_file(folder, 1)] if silent else [])


def test_another_host_keeps_the_folder_until_it_has_been_silent(folder, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 5.0)
    elsewhere(folder)
    said = []
    with RunLock(folder, said.append) as mine:
        assert owns(folder, mine.run.token)
    assert "on elsewhere has been running" in said[0] and "waiting" in said[0]
    assert find(folder, "runs/*") == [run_file(folder, 1)]


def test_a_dead_process_of_this_host_is_taken_over_at_once(folder):
    elsewhere(folder, host=RunLock(folder).run.host, pid_start="long ago")
    with RunLock(folder) as mine:
        assert owns(folder, mine.run.token)


def test_heartbeats_are_seen_and_whoever_is_taken_over_learns_it_from_the_next(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    reasons, ended = [], threading.Event()

    def lost(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with RunLock(folder) as mine:
        first = folder.fs.modified(run_file(folder, 1).path)
        with mine.heartbeat(lost=lost):
            deadline = time.monotonic() + 20
            while folder.fs.modified(run_file(folder, 1).path) == first:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            theirs = elsewhere(folder, 2)
            assert ended.wait(20)
    assert mine.lost
    assert reasons == [f"process {theirs['pid']} on elsewhere, which took over {folder}"]
    assert json.loads(run_file(folder, 2).read_text()) == theirs


def test_an_outage_loses_no_lock(folder, s3, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    reasons = []
    with RunLock(folder) as mine, mine.heartbeat(lost=reasons.append):
        s3.away()
        time.sleep(1)
        s3.back()
        first, deadline = lock.run_seconds(folder), time.monotonic() + 60
        while lock.run_seconds(folder) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not reasons and not mine.lost


def test_a_run_whose_creation_was_not_answered_owns_the_folder(folder, s3):
    s3.lose_answers(b"PUT ")
    with RunLock(folder) as mine:
        assert s3.unanswered == []
        assert mine.run.token.startswith("0001-") and owns(folder, mine.run.token)
