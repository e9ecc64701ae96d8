"""Who has a study's folder in a bucket, against a real S3 server."""

import dataclasses
import json
import os
import threading
import time

import pytest

from eqssl.files import as_path, find
from eqssl.study.store import lock as lease
from eqssl.study.store.lock import FILE, SILENCE_S, Lease
from eqssl.study.store.lock_backends import LeaseObject


@pytest.fixture
def folder(s3, tmp_path):
    return as_path(f"s3://studies/{tmp_path.name}/toy")


def elsewhere(folder) -> dict:
    """Write the lease of a process on another host."""
    known = dataclasses.asdict(Lease(folder).holder) | {"host": "elsewhere", "token": "theirs"}
    (folder / FILE).write_text(json.dumps(known))
    return known


def holder(folder) -> dict:
    return json.loads((folder / FILE).read_text())


def enter_at_once(folder, count: int) -> list[Lease | ValueError]:
    """Let threads enter in one instant; return the leases and the refusals."""
    ready, found = threading.Barrier(count), []

    def enter() -> None:
        mine = Lease(folder)
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
        monkeypatch.setattr(lease, "SILENCE_S", 1.0)
        elsewhere(folder)
        time.sleep(2.1)  # a store tells whole seconds
    found = enter_at_once(folder, 6)
    (held,) = (one for one in found if isinstance(one, Lease))
    assert holder(folder)["token"] == held.holder.token
    told = f"--output: process {os.getpid()} on "
    assert sum(str(one).startswith(told) and f"running the study in {folder} since" in str(one) for one in found) == 5
    held.__exit__()
    assert find(folder, "*") == []


def test_another_host_keeps_the_folder_until_it_has_been_silent(folder, monkeypatch):
    elsewhere(folder)
    with pytest.raises(
        ValueError,
        match=rf"^--output: process \d+ on elsewhere .* said so \d s ago; .* try again in (5\d|{SILENCE_S:.0f}) s",
    ):
        Lease(folder).__enter__()
    monkeypatch.setattr(lease, "SILENCE_S", 1.0)
    time.sleep(2.1)
    with Lease(folder) as mine:
        assert holder(folder)["token"] == mine.holder.token
    assert find(folder, "*") == []


def test_a_dead_process_of_this_host_is_taken_over_at_once(folder):
    (folder / FILE).write_text(
        json.dumps(dataclasses.asdict(Lease(folder).holder) | {"token": "?", "born": "long ago"})
    )
    with Lease(folder) as mine:
        assert holder(folder)["token"] == mine.holder.token


def test_heartbeats_are_seen_and_whoever_is_taken_over_learns_it_from_the_next(folder, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    beats, reasons, ended = [], [], threading.Event()

    def lost(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with Lease(folder) as mine:
        first = folder.fs.modified((folder / FILE).path)
        with mine.kept(beat=lambda: beats.append(1), lost=lost):
            deadline = time.monotonic() + 20
            while folder.fs.modified((folder / FILE).path) == first:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            theirs = elsewhere(folder)
            assert ended.wait(20)
    assert beats and mine.lost
    assert reasons == [f"process {theirs['pid']} on elsewhere, which took over {folder}"]
    assert holder(folder) == theirs


def test_an_outage_ends_no_lease(folder, s3, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    beats, reasons = [], []
    with Lease(folder) as mine, mine.kept(beat=lambda: beats.append(1), lost=reasons.append):
        s3.away()
        time.sleep(1)
        s3.back()
        before, deadline = len(beats), time.monotonic() + 60
        while len(beats) < before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not reasons and not mine.lost


def test_nothing_is_written_over_what_another_wrote_since(folder):
    one, other = LeaseObject(folder / FILE), LeaseObject(folder / FILE)
    assert one.read() is other.read() is None
    assert one.write({"token": "one"}) and not other.write({"token": "other"})
    assert one.read() == other.read() == {"token": "one"}
    assert other.write({"token": "other"}) and not one.write({"token": "one"})
    assert holder(folder) == {"token": "other"}
    assert other.write({"token": "other"})  # as after an answer that was lost
