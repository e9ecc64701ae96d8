"""N workers give the loss and the gradient of one with the whole batch, for every method, reconstruction included."""

from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eqssl.config import WITH_LOCAL_CROPS, ReconAttention, ReconView
from eqssl.distributed import convert_sync_batch_norm, set_local_batch_sizes
from eqssl.methods import METHODS
from eqssl.models.model import Model
from eqssl.views import Batch
from tests.toy import BATCH, make_batch, make_model
from tests.workers import run_workers

CHANNELS = 3
# Every method, every target, every attention, and local crops.
CASES = [
    *((method, "second", "target-queries", 0) for method in METHODS),
    *(("vicreg", view, "pooled-query", 0) for view in get_args(ReconView)),
    *(("vicreg", "second", a, 0) for a in get_args(ReconAttention) if a not in ("target-queries", "pooled-query")),
    *((method, "second", "target-queries", 3) for method in WITH_LOCAL_CROPS),
]


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


def share_of(rank: int, world_size: int, method: str, view: ReconView, attention: ReconAttention, local_crops: int):
    model = convert_sync_batch_norm(make_model(method, view, attention, local_crops))
    batch = make_batch(method, rank, world_size, view, local_crops)
    loss, grads = second_step(model, DistributedDataParallel(model), batch)
    return loss, grads, dict(model.named_buffers())


def all_shares(rank: int, world_size: int):
    set_local_batch_sizes(BATCH)
    return {case: share_of(rank, world_size, *case) for case in CASES} | {
        "bf16": autocast_loss(rank, world_size),
        "normalised": normalised_everywhere(rank, world_size, "cpu"),
    }


def normalised(
    layer: nn.Module, rank: int = 0, world_size: int = 1, sides: tuple[int, ...] = (4, 4), device: str = "cpu"
) -> list[torch.Tensor]:
    """Return what a layer makes of its share of images in bf16, far from 0, and the gradients of input and weight."""
    share = torch.arange(BATCH).tensor_split(world_size)[rank]
    torch.manual_seed(0)
    images, direction = torch.randn(2, BATCH, CHANNELS, *sides)
    layer = layer.to(device)
    if layer.affine:
        nn.init.constant_(layer.weight, 0.7)
    x = (images + 5 * torch.arange(CHANNELS).view(-1, *(1 for _ in sides)))[share].bfloat16().to(device)
    if sides:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = layer(x)
    (y * (direction * images)[share].to(device)).sum().backward()
    return [y.detach().float().cpu(), x.grad.float().cpu(), *(p.grad.cpu() for p in layer.parameters())]


def normalised_everywhere(rank: int, world_size: int, device: str) -> list[list[torch.Tensor]]:
    set_local_batch_sizes(BATCH)
    return [
        normalised(convert_sync_batch_norm(layer), rank, world_size, sides, device)
        for layer, sides in layers_of_a_run()
    ]


def layers_of_a_run() -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return batch normalisations and the sides of their inputs: of a backbone, of a head, and that of its output."""
    return [
        (nn.BatchNorm2d(CHANNELS), (4, 4)),
        (nn.BatchNorm1d(CHANNELS), ()),
        (nn.BatchNorm1d(CHANNELS, affine=False), ()),
    ]


def autocast_loss(rank: int, world_size: int) -> float:
    model = convert_sync_batch_norm(make_model("vicreg").float())
    share = make_batch("vicreg", rank, world_size)
    share = share._replace(first=share.first.float(), second=share.second.float(), clean=share.clean.float())
    losses = DistributedDataParallel(model)(share, True)
    losses.total.backward()
    return losses.ssl.item()


def assert_near(grad: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Compare a tensor by its own largest gradient; what a normalisation takes back has none but for rounding."""
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-6 * float(expected.abs().max()) + 1e-12, msg=name)


@pytest.fixture(scope="module", params=[2, 3, 4])  # with 3, not all hold equally many images
def shares(request):
    return run_workers(request.param, all_shares)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_gradient_of_workers_is_that_of_one_process(shares, case):
    method, view, attention, local_crops = case
    model = make_model(method, view, attention, local_crops)
    loss, expected = second_step(model, model, make_batch(method, view=view, local_crops=local_crops))
    for other in shares:
        assert other[case][1].keys() == expected.keys()
        for name, grad in other[case][1].items():
            assert_near(grad, expected[name], name)
        assert other[case][0] == pytest.approx(loss, rel=1e-9)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(shares[0][case][2][name], buffer, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_batch_norm_is_synchronised_under_autocast(shares):
    losses = [other["bf16"] for other in shares]
    model = make_model("vicreg")
    exact = model(make_batch("vicreg")).ssl.item()
    assert losses == pytest.approx([exact] * len(losses), rel=0.05)  # bf16 has 8 bits


@pytest.mark.slow
def test_batch_norm_in_bf16_is_that_of_the_whole_batch_to_the_last_bits(shares):
    check_normalised([share["normalised"] for share in shares])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batch_norm_on_a_gpu_is_that_of_a_cpu():
    """Two workers share the GPU, by gloo: a GPU takes other kernels by layout and by what is affine."""
    check_normalised(run_workers(2, normalised_everywhere, "cuda"))


def check_normalised(theirs: list[list[list[torch.Tensor]]]) -> None:
    """Compare the shares of workers with the whole batch in bf16, whose sums over channels-last images are coarse."""
    step = torch.finfo(torch.bfloat16).eps
    for i, (layer, sides) in enumerate(layers_of_a_run()):
        outputs, of_x, *of_affine = normalised(layer, sides=sides)
        output, grad = (torch.cat([worker[i][k] for worker in theirs]) for k in (0, 1))
        torch.testing.assert_close(output, outputs, rtol=step, atol=step)
        summed = [sum(worker[i][k] for worker in theirs) for k in range(2, 2 + len(of_affine))]
        for mine, whole in zip([grad, *summed], [of_x, *of_affine], strict=True):
            torch.testing.assert_close(mine, whole, rtol=2 * step, atol=2 * step * float(whole.abs().max()))
