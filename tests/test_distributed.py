"""N workers give the loss and the gradient of one with the whole batch, for every method, reconstruction included."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eqssl.config import EncoderConfig, MethodConfig, ReconConfig, RunConfig
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.distributed import synchronise_batch_norm
from eqssl.model import Batch, Model
from tests.workers import run_workers

METHODS = ("simclr", "vicreg", "supervised")
BATCH = 16


def make_model(method: str) -> Model:
    torch.manual_seed(0)
    split = Split(MemoryImages(torch.zeros(4, 1, 32, 32, dtype=torch.uint8)), torch.arange(4), torch.arange(4))
    dataset = Dataset("toy", split, split, split, False, 1, 32, 4, (0.5,), (0.3,), "0")
    config = RunConfig(
        encoder=EncoderConfig(name="resnet_tiny"), method=MethodConfig(name=method), recon=ReconConfig(weight=0.7)
    )
    return Model(config, dataset).double()


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    first, second, clean = torch.rand(3, BATCH, 1, 32, 32, generator=generator, dtype=torch.float64)
    return Batch(first, second, clean, torch.arange(BATCH) % 2 == 0, torch.arange(BATCH) % 4)


def gradients(model: nn.Module, run: nn.Module, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    losses = run(batch)
    losses.total.backward()
    return losses.total.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def share_of(rank: int, world_size: int, method: str):
    model = synchronise_batch_norm(make_model(method))
    share = Batch(*(x.chunk(world_size)[rank] for x in make_batch()))
    loss, grads = gradients(model, DistributedDataParallel(model), share)
    return loss, grads, dict(model.named_buffers())


def all_shares(rank: int, world_size: int):
    return {method: share_of(rank, world_size, method) for method in METHODS} | {
        "bf16": autocast_loss(rank, world_size)
    }


def autocast_loss(rank: int, world_size: int) -> float:
    model = synchronise_batch_norm(make_model("vicreg").float())
    share = Batch(*(x.chunk(world_size)[rank] for x in make_batch()))
    share = share._replace(first=share.first.float(), second=share.second.float(), clean=share.clean.float())
    losses = DistributedDataParallel(model)(share, True)
    losses.total.backward()
    return losses.ssl.item()


@pytest.fixture(scope="module", params=[2, 4])
def shares(request):
    return run_workers(request.param, all_shares)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_workers_is_that_of_one_process(shares, method):
    model = make_model(method)
    loss, expected = gradients(model, model, make_batch())
    scale = max(g.abs().max() for g in expected.values())
    for other in shares:
        for name, grad in other[method][1].items():
            torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-6 * float(scale), msg=name)
    mean_loss = sum(other[method][0] for other in shares) / len(shares)
    assert mean_loss == pytest.approx(loss, rel=1e-9)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(shares[0][method][2][name], buffer, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_batch_norm_is_synchronised_under_autocast(shares):
    losses = [other["bf16"] for other in shares]
    model = make_model("vicreg")
    exact = model(make_batch()).ssl.item()
    assert losses == pytest.approx([exact] * len(losses), rel=0.05)  # bf16 has 8 bits
