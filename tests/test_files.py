"""Files on a disk and in a bucket of a real S3 server."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from eqssl import files
from eqssl.files import (
    as_path,
    check_readable,
    copy_folder,
    create,
    find,
    make_folder,
    modified_s,
    on_disk,
    read,
    read_all,
    remove,
    write_atomically,
)
from eqssl.signals import Interrupted
from eqssl.study.execution.stop import StopSignals
from tests.storage import free_port, s3_at, s3_server


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "results"
    request.getfixturevalue("s3")
    return as_path(f"s3://studies/{tmp_path.name}")


def put(path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def test_what_is_written_is_read_found_and_removed(folder):
    for name in ("a/trial.json", "b/trial.json", "b/checkpoint/trial.json", "trial.json"):
        put(folder / "trials" / name, name)
    assert read(folder / "trials" / "a" / "trial.json") == b"a/trial.json"
    assert read(folder / "trials" / "a" / "result.json") is None
    found = find(folder, "trials/*/trial.json")
    assert sorted(map(str, found)) == [str(folder / "trials" / name / "trial.json") for name in "ab"]
    assert sorted(read_all(found)) == [b"a/trial.json", b"b/trial.json"]
    remove(folder / "trials" / "b")
    assert [path.parent.name for path in find(folder, "trials/*/trial.json")] == ["a"]
    remove(folder / "trials" / "b")
    assert find(folder / "nothing", "*") == list(read_all([])) == []


def test_many_files_are_not_read_all_at_once(folder, monkeypatch):
    """The epochs of 10,000 trials are a gigabyte."""
    monkeypatch.setattr(files, "AT_ONCE", 1)
    for name in "abc":
        put(folder / f"{name}.json", "old")
    texts = read_all(sorted(find(folder, "*.json"), key=str))
    assert next(texts) == b"old"
    put(folder / "b.json", "new")
    assert list(texts) == [b"new", b"old"]


def test_a_file_tells_when_it_was_written(folder):
    assert modified_s(folder / "a.txt") is None
    put(folder / "a.txt", "now")
    assert modified_s(folder / "a.txt") == pytest.approx(time.time(), abs=5)


def test_a_large_file_comes_back_and_none_is_said_to_be_none(folder):
    data = bytes(range(256)) * (1 << 13)
    write_atomically(folder / "large.bin", lambda temporary: temporary.write_bytes(data))
    with on_disk(folder / "large.bin") as path:
        assert (path.name, path.read_bytes()) == ("large.bin", data)
    with pytest.raises(FileNotFoundError), on_disk(folder / "none.bin") as path:
        path.read_bytes()


def test_a_folder_takes_the_place_of_another(folder):
    for name in ("config.json", "model.bin"):
        put(folder / "old" / name, "old")
        put(folder / "new" / name, "new")
    copy_folder(folder / "new", folder / "old")
    assert list(read_all(find(folder / "old", "*"))) == [b"new", b"new"]
    assert len(find(folder, "*/*")) == 4
    with pytest.raises(FileNotFoundError, match="none holds no file"):
        copy_folder(folder / "none", folder / "old")


def test_one_of_several_writers_creates_a_file(folder):
    make_folder(folder, "--output")
    ready, refused = threading.Barrier(6), []

    def write(number: int) -> None:
        ready.wait()
        try:
            create(folder / "0001.json", b"%d" % number)
        except FileExistsError:
            refused.append(number)

    threads = [threading.Thread(target=write, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert int(read(folder / "0001.json")) not in refused


def test_a_write_that_fails_leaves_the_old_file(folder):
    put(folder / "summary.json", "old")

    def fail(temporary):
        temporary.write_text("half")
        raise ValueError("the writer failed")

    with pytest.raises(ValueError, match="the writer failed"):
        write_atomically(folder / "summary.json", fail)
    assert read(folder / "summary.json") == b"old"
    assert [path.name for path in find(folder, "*")] == ["summary.json"]


def test_a_bucket_that_is_away_is_waited_for(s3, caplog):
    path = as_path("s3://studies/outage/a.txt")
    put(path, "before")
    s3.away()
    timer = threading.Timer(3, s3.back)
    timer.start()
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "eqssl"):
        put(path, "after")
    assert 2.5 < time.monotonic() - start < 20
    assert "the storage is unreachable, retrying in 0.5 s" in caplog.text
    assert read(path) == b"after"


def test_a_stop_while_a_bucket_is_away_is_none_of_its_errors(s3):
    s3.away()
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    try:
        with pytest.raises(Interrupted, match="SIGTERM"), StopSignals():
            put(as_path("s3://studies/outage/d.txt"), "?")
    finally:
        s3.back()


def test_the_time_of_a_file_is_waited_for_as_well(s3):
    path = as_path("s3://studies/outage/c.txt")
    put(path, "there")
    written_s = modified_s(path)
    s3.away()
    threading.Timer(1, s3.back).start()
    assert modified_s(path) == written_s


def test_a_bucket_that_stays_away_is_an_error_of_the_system(s3, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE_S", 1.0)
    s3.away()
    try:
        for request in (lambda path: put(path, "?"), read):
            with pytest.raises(OSError, match="Could not connect"):
                request(as_path("s3://studies/outage/b.txt"))
    finally:
        s3.back()


def test_what_another_attempt_cannot_mend_is_said_at_once(s3):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        put(as_path("s3://no-such-bucket/a.txt"), "?")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("check", [make_folder, check_readable])
def test_a_bucket_that_is_not_there_is_refused(s3, check):
    with pytest.raises(ValueError, match=r"--output is 's3://no-such-bucket/x', which cannot be .*does not exist"):
        check(as_path("s3://no-such-bucket/x"), "--output")
    make_folder(as_path("s3://studies/x"), "--output")
    assert find(as_path("s3://studies/x"), "*") == []


def test_an_endpoint_that_refuses_or_is_silent_is_told_within_the_limit(s3, monkeypatch):
    start = time.monotonic()
    with s3_at(free_port()), pytest.raises(ValueError, match=r"--output is .* Could not connect"):
        make_folder(as_path("s3://studies/x"), "--output")
    assert time.monotonic() - start < files.ANSWER_S
    monkeypatch.setattr(files, "ANSWER_S", 1.0)
    refused = pytest.raises(ValueError, match="does not answer in 1 s")
    with socket.create_server(("127.0.0.1", 0)) as silent, s3_at(silent.getsockname()[1]), refused:
        make_folder(as_path("s3://studies/x"), "--output")


def test_wrong_credentials_are_refused(s3):
    refused = pytest.raises(ValueError, match=r"cannot be written: .*Access Key Id .* \(PermissionError\)")
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as port, s3_at(port), refused:
        make_folder(as_path("s3://studies/x"), "--output")


def test_a_package_that_is_missing_is_named():
    code = "import sys; sys.modules['s3fs'] = None; from eqssl.files import as_path; as_path('s3://b/x', '--output')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "ValueError: --output is 's3://b/x': " in said and 'pip install "eqssl[s3]"' in said
    with pytest.raises(ValueError, match=r"--output is 'tape://x/y': .*tape"):
        as_path("tape://x/y", "--output")


def test_a_home_folder_is_expanded_and_an_empty_path_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/x", "--output") == tmp_path / "x"
    with pytest.raises(ValueError, match="--output is empty; allowed: "):
        as_path("", "--output")
    with pytest.raises(ValueError, match=r"--output is '~nobody-here/x', .* no such home folder"):
        as_path("~nobody-here/x", "--output")


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to("there/file.txt")
    for text in ("new", "newer"):  # the target is missing at first
        put(tmp_path / "link.txt", text)
        assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there/file.txt").read_text() == text


def test_a_pipe_is_written_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["timeout", "9", "cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        put(tmp_path / "pipe", "through")
        assert reader.communicate()[0] == b"through"
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("is_file", [True, False])
def test_what_goes_to_standard_output_keeps_its_place(tmp_path, is_file):
    code = """
import sys
from pathlib import Path
from eqssl.files import write_json

print("before")
write_json(Path(sys.argv[1]), 1)
print("after")
"""
    link = tmp_path / "stdout"  # like /dev/stdout, which a fault would replace for all programs if root runs the tests
    link.symlink_to("/proc/self/fd/1")
    with open(tmp_path / "out", "wb") as file:
        to = file if is_file else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code, link], stdout=to, check=True)
    assert ((tmp_path / "out").read_bytes() if is_file else done.stdout) == b"before\n1\nafter\n"
    assert link.is_symlink()
