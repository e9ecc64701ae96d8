"""Parameters that are shared out over workers train as those that every worker holds."""

from pathlib import Path

import pytest
import torch

from eqssl.training import checkpoint
from eqssl.training.loop import train
from tests.training.test_loop import configuration, toy
from tests.workers import Worker, run_workers

VALUES = {"train.fsdp": True, "train.precision": "fp32", "train.epochs": 3}
METHODS = ("vicreg", "dino", "ibot")  # one without and one with a teacher, and one whose encoder sees masks
VIT = {"encoder.name": "test_vit", "encoder.output_stride": 8}


class One(Worker):
    """One of several workers, which stops after some epochs."""

    def __init__(self, folder: Path, rank: int, world_size: int, epochs: int):
        super().__init__(rank, world_size, folder)
        self.epochs = epochs

    def report(self, metrics, state):
        super().report(metrics, state)
        if metrics["epoch"] == self.epochs:
            raise StopIteration


def trained(rank: int, world_size: int, folder: Path, method: str, epochs: int = -1) -> dict | None:
    values = VALUES | {"method.name": method, "method.options.width": 32.0} | (VIT if method == "ibot" else {})
    try:
        result = train(configuration(**values), One(folder, rank, world_size, epochs), toy())
    except StopIteration:
        return None
    return {"weights": result.encoder.state_dict(), "metrics": result.metrics}


def all_trained(rank: int, world_size: int, folder: Path) -> dict:
    """Train by all workers: to the end; and for an epoch, after which one worker alone goes on."""
    ended = {method: trained(rank, world_size, folder / method, method) for method in METHODS}
    trained(rank, world_size, folder / "begun", "dino", epochs=1)
    return ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def workers(folder):
    return run_workers(2, all_trained, folder)


def assert_alike(weights, expected):
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_sharing_parameters_out_changes_nothing(folder, workers, method):
    alone = trained(0, 1, folder / f"{method} alone", method)
    for worker in workers:
        assert_alike(worker[method]["weights"], alone["weights"])
    metrics = workers[0][method]["metrics"]
    for name in ("loss", "knn", "r2_mean", "parameters", "recon/error"):
        assert metrics[name] == pytest.approx(alone["metrics"][name], rel=1e-3)
    assert "recon_share/loss" in metrics and "recon_share/gradient" not in metrics


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers(folder, workers):
    assert checkpoint.load(folder / "begun")["epoch"] == 1
    assert_alike(trained(0, 1, folder / "begun", "dino")["weights"], workers[0]["dino"]["weights"])


def sizes(rank: int, world_size: int) -> tuple[int, int]:
    from eqssl.models.model import Model
    from eqssl.training.fsdp import parallelize_model

    model = Model(configuration(**VALUES), toy())
    whole = sum(p.numel() for p in model.parameters())
    parallelize_model(model, fsdp=True)
    return whole, sum(p.to_local().numel() for p in model.parameters())


@pytest.mark.slow
def test_every_worker_holds_its_share():
    held = run_workers(2, sizes)
    assert sum(own for _, own in held) == held[0][0]
    assert max(own for _, own in held) < 0.6 * held[0][0]
