import os
import signal
import subprocess
import sys

import pytest
import ray

from eqssl.config import RunConfig, TrainConfig
from eqssl.study import StudyOptions
from eqssl.study.execution.cluster import ray_running, room
from eqssl.study.execution.nodes import HEAD, Cluster, Nodes
from eqssl.study.execution.signals import Interrupted
from eqssl.training.memory import KEEP


def one(**resources):
    return Cluster([Nodes(1, resources | {HEAD: 1.0})])


def test_one_trial_a_cpu_by_default():
    found = room(StudyOptions(), one(CPU=2.0))
    assert (found.trials, found.gpus, found.resources) == (2, 0.0, {"cpu": 1})
    assert found.text == "nodes: 1 x 2 CPU; a trial takes 1 CPU: 2 at a time"


def test_threads_take_cpus_and_concurrency_is_a_bound():
    options = StudyOptions(run=RunConfig(train=TrainConfig(threads=4)), concurrency=3)
    assert room(options, one(CPU=20.0)).trials == 3
    assert room(options, one(CPU=8.0)).trials == 2


def test_gpus_are_used_where_there_are_any_and_can_be_shared():
    assert room(StudyOptions(), one(CPU=16.0, GPU=4.0)).trials == 4
    assert room(StudyOptions(gpus_per_trial=0.25), one(CPU=16.0, GPU=1.0)).trials == 4
    assert room(StudyOptions(gpus_per_trial=0.0), one(CPU=16.0, GPU=1.0)).trials == 16


def test_drivers_of_several_workers_take_no_cpu():
    found = room(StudyOptions(workers_per_trial=4), one(CPU=8.0))
    assert found.trials == 2
    assert found.resources == {HEAD: 0.001}
    assert room(StudyOptions(workers_per_trial=2), one(CPU=8.0, train_driver=1.0)).trials == 1


def test_an_autoscaler_is_counted_on():
    cluster = Cluster([Nodes(1, {"train_driver": 3.0, HEAD: 1.0})], [Nodes(4, {"CPU": 8.0, "GPU": 2.0})])
    found = room(StudyOptions(workers_per_trial=2), cluster)
    assert (found.trials, found.worker, found.gpus) == (3, {"CPU": 1, "GPU": 1.0}, 2.0)
    assert found.text == (
        "nodes: 1 x 3 train_driver; may come: 4 x 8 CPU + 2 GPU; "
        "a trial takes 2 x (1 CPU + 1 GPU) + 1 train_driver: 3 at a time"
    )


def test_other_resources_are_reserved_too():
    options = StudyOptions(resources_per_worker={"accelerator": 1.0})
    found = room(options, one(CPU=8.0, accelerator=2.0))
    assert (found.trials, found.resources) == (2, {"cpu": 1, "accelerator": 1.0})


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory"])
def test_resources_with_an_option_of_their_own_are_refused(name):
    with pytest.raises(ValueError, match=f"--resources-per-worker has {name} 1; allowed"):
        StudyOptions(resources_per_worker={name: 1.0})


@pytest.mark.parametrize(("cpus", "trials", "workers"), [(2.0, 1, 2), (3.0, 1, 3), (9.0, 2, 4)])
def test_elastic_trials_take_what_there_is_up_to_their_most(cpus, trials, workers):
    found = room(StudyOptions(workers_per_trial="2:4"), one(CPU=cpus))
    assert (found.trials, found.workers) == (trials, workers)
    assert "a trial takes 2:4 x (1 CPU)" in found.text
    with pytest.raises(ValueError, match="--workers-per-trial is 2:4, --gpus-per-trial 0: a trial takes 2:4 x"):
        room(StudyOptions(workers_per_trial="2:4"), one(CPU=1.0))


@pytest.mark.parametrize(
    ("options", "cluster"),
    [
        (StudyOptions(workers_per_trial=3), one(CPU=2.0)),
        (StudyOptions(gpus_per_trial=1.0), one(CPU=2.0)),
        (StudyOptions(run=RunConfig(train=TrainConfig(threads=3))), Cluster([Nodes(4, {"CPU": 2.0, HEAD: 1.0})])),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_at_once(options, cluster):
    with pytest.raises(ValueError, match=r"a trial takes .* and the nodes of the cluster .* have room for"):
        room(options, cluster)


@pytest.mark.parametrize(
    ("met", "told", "match"),
    [
        (Exception("the node timed out"), ValueError, "cannot be started .*the node timed out"),
        (Interrupted(signal.SIGTERM), Interrupted, "SIGTERM"),
    ],
)
def test_what_is_met_at_the_start_is_told_and_a_stop_is_a_stop(monkeypatch, met, told, match):
    def start(**options):
        raise met

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(told, match=match), ray_running():
        pass


@pytest.mark.slow
def test_processes_of_a_ray_that_is_started_here_keep_what_they_free():
    code = """
import os, ray
from eqssl.study.execution.cluster import ray_running
with ray_running():
    print(ray.get(ray.remote(lambda: dict(os.environ)).remote()))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS" and name not in KEEP}
    text = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert all(variable in text for variable in KEEP)
