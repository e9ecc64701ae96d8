"""N workers give the loss and the gradient of one with the whole batch, for every method, reconstruction included."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eqssl.distributed import share_out, synchronise_batch_norm
from eqssl.methods import METHODS
from eqssl.model import Model
from eqssl.views import Batch
from tests.toy import BATCH, make_batch, make_model
from tests.workers import run_workers

CHANNELS = 3


def second_step(model: Model, run: nn.Module, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients after a step, when teachers and students no longer agree."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.step()  # nothing at first, without gradients
        model.update_teachers()
        optimizer.zero_grad()
        losses = run(batch)
        losses.total.backward()
    return losses.total.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def share_of(rank: int, world_size: int, method: str):
    model = synchronise_batch_norm(make_model(method))
    loss, grads = second_step(model, DistributedDataParallel(model), make_batch(method, rank, world_size))
    return loss, grads, dict(model.named_buffers())


def all_shares(rank: int, world_size: int):
    share_out(BATCH)
    return {method: share_of(rank, world_size, method) for method in METHODS} | {
        "bf16": autocast_loss(rank, world_size),
        "normalised": normalised(synchronise_batch_norm(nn.BatchNorm2d(CHANNELS)), rank, world_size),
    }


def normalised(layer: nn.BatchNorm2d, rank: int = 0, world_size: int = 1) -> tuple[torch.Tensor, ...]:
    """Return what a layer makes of its share of images in bf16, far from 0, and the gradients of input and weight."""
    share = torch.arange(BATCH).tensor_split(world_size)[rank]
    torch.manual_seed(0)
    images, direction = torch.randn(2, BATCH, CHANNELS, 4, 4)
    nn.init.uniform_(layer.weight)
    x = (images + 5 * torch.arange(CHANNELS)[:, None, None])[share].bfloat16().requires_grad_()
    (layer(x) * direction[share] * images[share]).sum().backward()
    return layer(x).detach().float(), x.grad.float(), layer.weight.grad


def autocast_loss(rank: int, world_size: int) -> float:
    model = synchronise_batch_norm(make_model("vicreg").float())
    share = make_batch("vicreg", rank, world_size)
    share = share._replace(first=share.first.float(), second=share.second.float(), clean=share.clean.float())
    losses = DistributedDataParallel(model)(share, True)
    losses.total.backward()
    return losses.ssl.item()


@pytest.fixture(scope="module", params=[2, 3, 4])  # with 3, not all hold equally many images
def shares(request):
    return run_workers(request.param, all_shares)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_workers_is_that_of_one_process(shares, method):
    model = make_model(method)
    loss, expected = second_step(model, model, make_batch(method))
    scale = max(g.abs().max() for g in expected.values())
    for other in shares:
        assert other[method][1].keys() == expected.keys()
        for name, grad in other[method][1].items():
            torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-6 * float(scale), msg=name)
        assert other[method][0] == pytest.approx(loss, rel=1e-9)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(shares[0][method][2][name], buffer, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_batch_norm_is_synchronised_under_autocast(shares):
    losses = [other["bf16"] for other in shares]
    model = make_model("vicreg")
    exact = model(make_batch("vicreg")).ssl.item()
    assert losses == pytest.approx([exact] * len(losses), rel=0.05)  # bf16 has 8 bits


@pytest.mark.slow
def test_batch_norm_in_bf16_is_that_of_the_whole_batch_to_the_last_bits(shares):
    outputs, of_x, of_weight = normalised(nn.BatchNorm2d(CHANNELS))
    step = torch.finfo(torch.bfloat16).eps
    theirs = [torch.cat([share["normalised"][i] for share in shares]) for i in (0, 1)]
    torch.testing.assert_close(theirs[0], outputs, rtol=step, atol=step)
    torch.testing.assert_close(theirs[1], of_x, rtol=2 * step, atol=2 * step * float(of_x.abs().max()))
    torch.testing.assert_close(sum(share["normalised"][2] for share in shares), of_weight, rtol=1e-3, atol=1e-3)
