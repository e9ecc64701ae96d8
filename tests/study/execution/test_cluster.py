import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from eqssl.config import RunConfig, TrainConfig
from eqssl.signals import Interrupted
from eqssl.study import Study, StudyOptions
from eqssl.study.execution import cluster
from eqssl.study.execution.cluster import (
    GPUS_PER_WORKER,
    HEAD,
    NODE_GROUP,
    QUEUED,
    QUEUED_LEARNING,
    capacity,
    ray_running,
)
from eqssl.study.options import settle
from eqssl.training.memory import KEEP


def settled(**given):
    return settle(Study(name="toy", question="?", space={}), StudyOptions(**given))[1]


def node(**resources):
    return {"Resources": resources, "Labels": {}}


def one(**resources):
    return [node(**{HEAD: 1.0}, **resources)]


def growing(**resources):
    return [{"Resources": {HEAD: 1.0} | resources, "Labels": {NODE_GROUP: "head"}}]


def test_one_trial_a_cpu_by_default():
    found = capacity(settled(), one(CPU=2.0), 9)
    assert (found.trials, found.devices, found.worker, found.driver) == (2, ("CPU", 1), {"CPU": 1}, {})
    assert found.text == "nodes: 1 x 2 CPU; a trial takes 1 CPU: 2 at a time"


def test_threads_take_cpus_and_concurrency_is_a_bound():
    options = settled(run=RunConfig(train=TrainConfig(threads=4)), concurrency=3)
    assert capacity(options, one(CPU=20.0), 9).trials == 3
    assert capacity(options, one(CPU=8.0), 9).trials == 2


def test_gpus_are_used_where_there_are_any_and_can_be_shared():
    assert capacity(settled(), one(CPU=16.0, GPU=4.0), 9).trials == 4
    assert capacity(settled(gpus_per_trial=0.25), one(CPU=16.0, GPU=1.0), 9).trials == 4
    assert capacity(settled(gpus_per_trial=0.4), one(CPU=16.0, GPU=2.0), 9).trials == 4  # none lies on two
    assert capacity(settled(gpus_per_trial=0.0), one(CPU=16.0, GPU=1.0), 9).trials == 16


def test_drivers_of_several_workers_take_no_cpu():
    found = capacity(settled(workers_per_trial=4), one(CPU=8.0), 9)
    assert (found.trials, found.driver) == (2, {HEAD: 0.001})
    assert capacity(settled(workers_per_trial=2), one(CPU=8.0, train_driver=1.0), 9).trials == 1


def test_an_autoscaler_adds_nodes_for_all_trials_that_are_left():
    found = capacity(settled(), growing(CPU=0.0), 14)
    assert (found.trials, found.worker) == (14, {"CPU": 1})
    assert found.text == "nodes: 1 x 0 CPU, and more from the autoscaler; a trial takes 1 CPU: up to 14 at a time"
    assert capacity(settled(), growing(CPU=0.0), 10_000).trials == QUEUED
    assert capacity(settled(concurrency=300), growing(CPU=0.0), 10_000).trials == 300


def test_a_sampler_that_learns_is_not_asked_for_all_trials_at_once():
    assert capacity(settled(sampler="tpe"), growing(CPU=0.0), 100).trials == QUEUED_LEARNING
    assert capacity(settled(sampler="tpe", concurrency=16), growing(CPU=0.0), 100).trials == 16


def test_drivers_are_bounded_where_nodes_are_added():
    options = settled(workers_per_trial=2)
    found = capacity(options, growing(CPU=0.0, train_driver=3.0), 100)
    assert (found.trials, found.driver) == (3, {"train_driver": 1.0})
    assert found.text.endswith("a trial takes 2 x (1 CPU): up to 3 at a time")
    assert capacity(options, growing(CPU=0.0), 100).trials == QUEUED_LEARNING


def test_gpus_of_nodes_that_are_still_to_come_are_known_by_the_cluster_s_variable(monkeypatch):
    monkeypatch.delenv(GPUS_PER_WORKER, raising=False)
    two = settled(workers_per_trial=2)
    assert capacity(two, growing(CPU=0.0), 9).devices == ("CPU", 2)
    assert capacity(two, [*growing(CPU=0.0), node(CPU=8.0, GPU=1.0)], 9).devices == ("GPU", 2)
    monkeypatch.setenv(GPUS_PER_WORKER, "1")
    assert capacity(two, growing(CPU=0.0), 9).worker == {"CPU": 1, "GPU": 1.0}
    assert capacity(settled(gpus_per_trial=0.0), growing(CPU=0.0), 9).devices == ("CPU", 1)
    assert capacity(settled(), one(CPU=2.0), 9).devices == ("CPU", 1)  # none will come


def test_other_resources_are_reserved_too():
    options = settled(resources_per_worker={"accelerator": 1.0})
    found = capacity(options, one(CPU=8.0, accelerator=2.0), 9)
    assert (found.trials, found.worker) == (2, {"CPU": 1, "accelerator": 1.0})


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory"])
def test_resources_with_an_option_of_their_own_are_refused(name):
    with pytest.raises(ValueError, match=f"--resources-per-worker has {name} 1; allowed"):
        settled(resources_per_worker={name: 1.0})


@pytest.mark.parametrize(("cpus", "trials", "workers"), [(2.0, 1, 2), (3.0, 1, 3), (9.0, 2, 4)])
def test_elastic_trials_take_what_there_is_up_to_their_most(cpus, trials, workers):
    found = capacity(settled(workers_per_trial="2:4"), one(CPU=cpus), 9)
    assert (found.trials, found.workers) == (trials, workers)
    assert "a trial takes 2:4 x (1 CPU)" in found.text
    with pytest.raises(ValueError, match="--workers-per-trial is 2:4, --gpus-per-trial 0: a trial takes 2:4 x"):
        capacity(settled(workers_per_trial="2:4"), one(CPU=1.0), 9)


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        (settled(workers_per_trial=3), one(CPU=2.0)),
        (settled(gpus_per_trial=1.0), one(CPU=2.0)),
        (settled(run=RunConfig(train=TrainConfig(threads=3))), 4 * [node(CPU=2.0)]),
    ],
)
def test_a_trial_that_the_nodes_cannot_hold_is_refused_at_once(options, nodes):
    with pytest.raises(ValueError, match=r"a trial takes .* and the nodes of the cluster .* have room for"):
        capacity(options, nodes, 9)


class Task:
    """A task that ends after so many minutes; each `ray.get` takes one."""

    def __init__(self, minutes):
        self.minutes = minutes

    def get(self, task, timeout):
        self.minutes -= 1
        if self.minutes >= 0:
            raise ray.exceptions.GetTimeoutError
        return "done"


@pytest.mark.parametrize(
    ("pending", "failed", "told"),
    [
        ([SimpleNamespace(ray_node_type_name="gpu_spot", count=2)], [], "the autoscaler starts 3 x gpu_spot"),
        ([], [SimpleNamespace(ray_node_type_name="gpu_spot", details="no capacity")], "cannot start gpu_spot: no cap"),
        (None, [], "starts none: no node type is large enough"),
    ],
)
def test_what_waits_for_a_node_says_what_the_autoscaler_does(monkeypatch, pending, failed, told):
    status = SimpleNamespace(pending_launches=pending or [], failed_launches=failed, pending_nodes=(pending or [])[:1])
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda address: status)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=""))
    monkeypatch.setattr(ray, "get", Task(minutes=2).get)
    monkeypatch.setattr(cluster, "alive_nodes", lambda: growing(CPU=0.0))
    said = []
    assert cluster.result_of(None, {"CPU": 1, "GPU": 1}, said.append) == "done"
    assert len(said) == 2 and said[0].startswith("waiting for a node with 1 CPU + 1 GPU: ") and told in said[0]
    monkeypatch.setattr(ray, "get", Task(minutes=2).get)
    monkeypatch.setattr(cluster, "alive_nodes", lambda: [*growing(CPU=0.0), node(CPU=8.0, GPU=1.0)])
    assert cluster.result_of(None, {"CPU": 1, "GPU": 1}, said.append) == "done"
    assert said[2:] == [
        f"after {minutes} min: a worker prepares the data, checks the options on them and times an epoch"
        for minutes in (1, 2)
    ]


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


@pytest.mark.parametrize("listening", [False, True])
def test_an_address_without_a_ray_is_refused_soon(monkeypatch, listening):
    """An HTTP server such as the dashboard's speaks no gRPC."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
        monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would try for 14 minutes"))
        with pytest.raises(ValueError, match=f"RAY_ADDRESS is {address}, and no Ray answers there"), ray_running():
            pass


def test_a_late_start_of_ray_is_tried_again(monkeypatch):
    met = [Exception("The current node timed out during startup.")] * 2
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(met.pop()) if met else None)
    with ray_running():
        assert not met


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


@pytest.mark.slow
def test_garbage_that_refers_to_rays_objects_does_not_end_the_process_at_the_shutdown():
    code = """
import gc, threading, time, ray
from eqssl.study.execution.cluster import ray_running

def leave_cycles():
    while references:
        cycle = [references.pop()]
        cycle.append(cycle)
        time.sleep(0.001)

gc.set_threshold(1)
with ray_running():
    references = [ray.put(None) for _ in range(20_000)]
    thread = threading.Thread(target=leave_cycles)
    thread.start()
left = len(references)
references.clear()
thread.join()
print("left", left)
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    text = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert int(text.removeprefix("left ")) > 0  # the thread left cycles until Ray had shut down
