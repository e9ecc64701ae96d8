"""What AugSelf, EquiMod and SIE share: their base, the factors they are told, refusals, and short runs."""

import dataclasses
import math

import pytest
import torch

from eqssl.config import MethodConfig, RunConfig, replace
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.methods import METHODS, build_method, find_method
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.training.loop import Result, train

TOLD = [name for name in METHODS if find_method(name).requires_transform]
SIZES = Sizes(inv=8, equi=4, width=8, tokens=16, num_classes=4, theta={"rotation": 4, "dx": 1})


def build(name: str, sizes: Sizes = SIZES, **options) -> Method:
    return build_method(MethodConfig(name=name, options=options), sizes)


def run(dataset: Dataset, **values) -> Result:
    small = {"train.epochs": 1, "train.batch_size": 16, "train.precision": "fp32", "recon.weight": 0.0,
             "evaluate.train_images": 48, "evaluate.images": 24}  # fmt: skip
    split = dataset.train
    images = MemoryImages(split.images.pixels[:48])
    objects = None if split.objects is None else split.objects[:48]
    factors = {name: values[:48] for name, values in split.factors.items()}
    few = Split(images, split.ids[:48], objects=objects, factors=factors)
    return train(replace(RunConfig(), small | values), dataset=dataclasses.replace(dataset, train=few))


def losses_after_training(method: Method, pair: Pair, steps: int) -> tuple[float, float]:
    """Return the loss once the method was trained on the pair, and the one with every pair told another's theta."""
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        method(pair).backward()
        optimizer.step()
    others = {name: values.roll(1, 0) for name, values in pair.theta.items()}
    with torch.no_grad():
        return method(pair).item(), method(Pair(pair.inv, pair.equi, theta=others)).item()


@pytest.mark.parametrize("recon_weight", [0.0, 1.0])
@pytest.mark.parametrize("source", ["textured_images", "objects"])
@pytest.mark.parametrize("method", TOLD)
def test_it_trains_on_images_and_on_objects(method, source, recon_weight, request):
    dataset = request.getfixturevalue(source)
    metrics = run(dataset, **{"method.name": method, "recon.weight": recon_weight}).metrics
    assert metrics["ssl"] > 0 and (metrics["recon"] > 0) == (recon_weight > 0)
    assert all(math.isfinite(metrics[name]) for name in ("loss", "train_std/inv", "train_std/equi"))


@pytest.mark.parametrize("method", ["augself", "equimod"])
def test_at_weight_zero_it_is_bit_for_bit_its_base(method, textured_images):
    def weights(**values):
        return list(run(textured_images, **values).encoder.parameters())

    told = {"method.name": method, "method.options.base": "vicreg"}
    expected = weights(**{"method.name": "vicreg"})
    assert all(map(torch.equal, expected, weights(**told | {"method.options.weight": 0.0})))
    assert not all(map(torch.equal, expected, weights(**told)))


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("method", ["augself", "equimod"])
def test_its_own_loss_reaches_both_parts_and_the_bases_only_the_invariant_one(method, weight):
    torch.manual_seed(0)
    inv, equi = torch.randn(64, 8, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    theta = {name: torch.randn(32, components) for name, components in SIZES.theta.items()}
    build(method, weight=weight)(Pair(inv, equi, theta=theta)).backward()
    assert inv.grad.abs().sum() > 0
    assert (equi.grad.abs().sum() > 0) == (weight > 0)


@pytest.mark.parametrize("method", ["augself", "equimod"])
def test_the_base_has_the_heads_of_its_scale(method):
    config = MethodConfig(name=method, scale="small", options={"base": "vicreg"})
    assert build_method(config, SIZES).base.projector[0].out_features == 2048


@pytest.mark.parametrize("base", ["byol", "ibot", "supervised"])
@pytest.mark.parametrize("method", ["augself", "equimod"])
def test_a_base_with_teacher_or_labels_is_refused(method, base):
    with pytest.raises(ValueError, match=rf"--method.options base is '{base}'; allowed: methods without a teacher"):
        build(method, base=base)


@pytest.mark.parametrize("method", TOLD)
def test_the_factors_are_all_some_or_refused(method):
    assert build(method).factors == {"rotation": 4, "dx": 1}
    assert build(method, factors="dx").factors == {"dx": 1}
    assert build(method, factors="dx, rotation").factors == {"dx": 1, "rotation": 4}
    with pytest.raises(ValueError, match=r"factors names 'dz'; allowed: all, rotation, dx"):
        build(method, factors="dx,dz")
    with pytest.raises(ValueError, match=r"every --augment strength is 0 .* allowed: a strength above 0"):
        build(method, dataclasses.replace(SIZES, theta={}))
