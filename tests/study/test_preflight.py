"""What a node of the cluster finds wrong with the study's folder."""

import json
import os
import threading

import pytest

from eqssl.study.lease import Lease
from eqssl.study.preflight import check_node


@pytest.fixture
def lease(tmp_path):
    with Lease(tmp_path / "study") as lease:
        yield lease


def test_the_study_s_own_folder_is_accepted_and_left_as_it_was(lease, tmp_path):
    assert check_node(str(tmp_path / "study"), lease.holder.token) is None
    assert os.listdir(tmp_path / "study") == ["lease.json"]


def test_a_heartbeat_that_is_just_being_written_is_waited_for(lease, tmp_path):
    path = tmp_path / "study" / "lease.json"
    text = path.read_text()
    path.write_text("")
    threading.Timer(0.2, path.write_text, [text]).start()
    assert check_node(str(tmp_path / "study"), lease.holder.token) is None


def test_a_local_folder_of_the_same_name_is_told_from_a_shared_one(lease, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "lease.json").write_text(json.dumps({"token": "of an earlier study"}))
    for folder in (other, tmp_path / "nowhere"):
        wrong = check_node(str(folder), lease.holder.token)
        assert f"--output: {folder}, seen from " in wrong and "a folder that all share, or s3://..." in wrong


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(lease, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    wrong = check_node(str(tmp_path / "study"), lease.holder.token)
    assert "cannot be written" in wrong and "No space left on device" in wrong
