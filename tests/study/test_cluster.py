import pytest

from eqssl.config import RunConfig, TrainConfig
from eqssl.study import StudyOptions
from eqssl.study.cluster import room


def test_one_trial_a_cpu_by_default():
    found = room(StudyOptions(), {"CPU": 2.0})
    assert (found.trials, found.gpus, found.resources) == (2, 0.0, {"cpu": 1, "gpu": 0.0})
    assert found.text == "2 CPU / 1 a trial = 2 at a time"


def test_threads_take_cpus_and_concurrency_is_a_bound():
    options = StudyOptions(run=RunConfig(train=TrainConfig(threads=4)), concurrency=3)
    assert room(options, {"CPU": 20.0}).trials == 3
    assert room(options, {"CPU": 8.0}).trials == 2


def test_gpus_are_used_where_there_are_any_and_can_be_shared():
    assert room(StudyOptions(), {"CPU": 16.0, "GPU": 4.0}).trials == 4
    assert room(StudyOptions(gpus_per_trial=0.25), {"CPU": 16.0, "GPU": 1.0}).trials == 4
    assert room(StudyOptions(gpus_per_trial=0.0), {"CPU": 16.0, "GPU": 1.0}).trials == 16


def test_drivers_of_several_workers_take_no_cpu():
    cluster = {"CPU": 8.0, "node:__internal_head__": 1.0}
    found = room(StudyOptions(workers_per_trial=4), cluster)
    assert found.trials == 2
    assert "cpu" not in found.resources
    assert room(StudyOptions(workers_per_trial=2), cluster | {"train_driver": 1.0}).trials == 1


@pytest.mark.parametrize(
    ("options", "cluster"),
    [
        (StudyOptions(workers_per_trial=3), {"CPU": 2.0, "node:__internal_head__": 1.0}),
        (StudyOptions(gpus_per_trial=1.0), {"CPU": 2.0}),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_at_once(options, cluster):
    with pytest.raises(ValueError, match="the cluster has"):
        room(options, cluster)
