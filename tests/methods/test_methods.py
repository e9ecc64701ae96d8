"""Methods by name: their options, their heads, and where gradients go."""

import inspect
from operator import attrgetter
from typing import ClassVar

import pytest
import torch
from torch import nn

from eqssl.config import MethodConfig
from eqssl.methods import METHODS, build_method, find_method, register_method
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.references import NoMethod
from eqssl.methods.simsiam import simsiam_loss
from eqssl.views import Batch
from tests.toy import make_batch, make_model

SIZES = Sizes(inv=16, num_classes=4)
WIDTHS = {
    "vicreg": {"width": 32},
    "barlow_twins": {"width": 32},
    "byol": {"width": 32, "embedding": 24},
    "simsiam": {"width": 32, "bottleneck": 8},
    "moco_v3": {"width": 32, "embedding": 24},
}


def build(name: str) -> Method:
    torch.manual_seed(0)
    return build_method(MethodConfig(name=name), SIZES)


@pytest.mark.parametrize("name", ["simclr", "vicreg", "barlow_twins", "byol", "simsiam", "moco_v3", "supervised"])
def test_a_method_learns_the_views_of_one_batch(name):
    method = build(name)
    image = torch.randn(16, 16)
    pair = Pair(torch.cat([image, image + 0.3 * torch.randn(16, 16)]), labels=torch.arange(16) % 4)
    pair = Pair(pair.inv, teacher=pair.inv[:, None].expand(-1, 3, -1), labels=pair.labels)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(20):
        loss = method(pair)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ["byol", "moco_v3"])
def test_the_teachers_get_no_gradient_and_move_towards_their_students(name):
    model = make_model(name)
    before = {key: p.clone() for key, p in model.named_parameters()}
    model(make_batch(name)).total.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.update_teachers()
    now = dict(model.named_parameters())
    for teacher, student in {"teacher.average.": "encoder.", "method.teacher.average.": "method.projector."}.items():
        names = [key.removeprefix(teacher) for key in now if key.startswith(teacher)]
        assert any(not torch.equal(now[teacher + key], before[teacher + key]) for key in names)
        for key in names:
            assert now[teacher + key].grad is None
            expected = 0.99 * before[student + key] + 0.01 * now[student + key]
            torch.testing.assert_close(now[teacher + key], expected, msg=key)


@pytest.mark.parametrize("name", ["byol", "moco_v3", "dino", "ibot"])
def test_what_is_reconstructed_comes_from_the_student_alone(name):
    model, batch = make_model(name), make_batch(name)
    before = model(batch)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "teacher" in key:
                parameter.add_(torch.randn_like(parameter))
    after = model(batch)
    assert torch.equal(after.recon, before.recon) and not torch.equal(after.ssl, before.ssl)


def test_the_teachers_momentum_rises_to_one():
    method, found = build("byol"), []
    for method.progress in (0.0, 0.5, 1.0):
        found.append(method.momentum_now())
    assert found == pytest.approx([0.99, 0.995, 1.0])


def test_the_target_of_simsiam_gets_no_gradient():
    prediction, target = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    simsiam_loss(prediction, target).backward()
    assert prediction.grad.abs().sum() > 0 and target.grad is None


def test_heads_are_those_of_lightly():
    from lightly.models.modules import heads

    ours = {name: build_method(MethodConfig(name=name, options=WIDTHS[name]), SIZES) for name in WIDTHS}
    theirs = {
        ("vicreg", "projector"): heads.VICRegProjectionHead(16, 32, 32),
        ("barlow_twins", "projector"): heads.BarlowTwinsProjectionHead(16, 32, 32),
        ("byol", "projector"): heads.BYOLProjectionHead(16, 32, 24),
        ("byol", "predictor"): heads.BYOLPredictionHead(24, 32, 24),
        ("simsiam", "projector"): heads.SimSiamProjectionHead(16, 32, 32),
        ("simsiam", "predictor"): heads.SimSiamPredictionHead(32, 8, 32),
        ("moco_v3", "projector"): heads.MoCoProjectionHead(16, 32, 24, num_layers=3, batch_norm=True),
        ("moco_v3", "predictor"): heads.MoCoProjectionHead(24, 32, 24, num_layers=2, batch_norm=True),
    }
    for (name, part), head in theirs.items():
        shapes = [tuple(p.shape) for p in head.parameters()]
        # The authors' code has no bias in these output layers, nor a learned scale and shift after MoCo v3's.
        surplus = {"vicreg": 1, "barlow_twins": 1, "byol": 1, "moco_v3": 2}.get(name, 0)
        mine = getattr(ours[name], part)
        assert [tuple(p.shape) for p in mine.parameters()] == shapes[: len(shapes) - surplus], (name, part)
        kinds = [type(layer) for layer in head.layers]
        assert [type(layer) for layer in mine] == kinds, (name, part)


def test_options_reach_the_method_and_unknown_ones_are_refused():
    method = build_method(MethodConfig(name="simclr", options={"temperature": 0.5, "width": 32.0}), SIZES)
    assert method.temperature == 0.5 and method.projector[0].out_features == 32
    with pytest.raises(
        ValueError, match=r"--method.options tau is not an option of simclr; allowed: width .*temperature"
    ):
        build_method(MethodConfig(name="simclr", options={"tau": 1.0}), SIZES)
    with pytest.raises(ValueError, match=r"--method.name is 'simclear'; allowed: simclr"):
        build_method(MethodConfig(name="simclear"), SIZES)
    with pytest.raises(ValueError, match="supervised needs labels"):
        build_method(MethodConfig(name="supervised"), Sizes(inv=16))


@pytest.mark.parametrize(
    ("name", "options", "wrong"),
    [
        ("byol", {"momentum": 2.0}, "momentum is 2.0; allowed: 0 to 1"),
        ("simclr", {"width": "abc"}, "width is abc; allowed: 1 or more"),
        ("simclr", {"width": 0.0}, "width is 0.0; allowed: 1 or more"),
        ("simclr", {"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
        ("vicreg", {"cov_coeff": float("nan")}, "cov_coeff is nan; allowed: numbers"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused_by_name(name, options, wrong):
    with pytest.raises(ValueError, match=f"--method.options {wrong}"):
        build_method(MethodConfig(name=name, options=options), SIZES)


@pytest.mark.parametrize(("name", "options"), [("simclr", {}), ("augself", {"scale": "huge"})])
def test_another_scale_is_refused(name, options):
    with pytest.raises(ValueError, match=r"--method.scale is 'huge'; allowed: tiny, small, imagenet"):
        build_method(MethodConfig(name=name, scale="tiny" if options else "huge", options=options), SIZES)


def test_a_width_from_a_range_is_rounded():
    assert build_method(MethodConfig(name="simclr", options={"width": 31.7}), SIZES).projector[0].out_features == 32


def test_an_option_of_ones_own_has_what_its_default_has(monkeypatch):
    class Mine(NoMethod):
        scales: ClassVar = {"mine": {"kind": "c"}}

        def __init__(self, sizes, margin: float, layers: int = 2, kind: str = "a", other=None):
            super().__init__(sizes)
            self.given = margin, layers, kind, other

    monkeypatch.setitem(METHODS, "mine", Mine)
    given = {"margin": 0.5, "layers": 0.0, "kind": "b", "other": 2.0}
    assert build_method(MethodConfig(name="mine", options=given), SIZES).given == (0.5, 0, "b", 2.0)
    scaled = build_method(MethodConfig(name="mine", scale="mine", options={"margin": 1.0}), SIZES)
    assert scaled.given == (1.0, 2, "c", None)


@pytest.mark.parametrize("name", METHODS)
def test_scales_are_made_of_options(name):
    method = find_method(name)
    for scale, options in method.scales.items():
        assert scale in ("small", "imagenet") and options.keys() <= inspect.signature(method).parameters.keys()


# solo-learn's on CIFAR and ImageNet-100, the authors' on ImageNet, STL-10 and 3DIEBench: widths of the heads' layers
# (of SIE a part's), temperatures, coefficients, the teacher's momentum at the start.
PUBLISHED = {
    ("simclr", "small"): {"projector": [2048, 256], "temperature": 0.2},
    ("simclr", "imagenet"): {"projector": [4096, 512], "temperature": 0.2},
    ("vicreg", "small"): {"projector": [2048] * 3, "coefficients": (25, 50, 1)},  # its 25 is of a variance not halved
    ("vicreg", "imagenet"): {"projector": [8192] * 3, "coefficients": (25, 25, 1)},
    ("barlow_twins", "small"): {"projector": [2048] * 3, "off_diagonal": 0.005, "loss_scale": 0.1},
    ("barlow_twins", "imagenet"): {"projector": [8192] * 3, "off_diagonal": 0.0051, "loss_scale": 1},
    ("byol", "small"): {"projector": [4096, 256], "predictor": [4096, 256], "momentum": 0.99},
    ("byol", "imagenet"): {"projector": [4096, 256], "predictor": [4096, 256], "momentum": 0.996},
    ("simsiam", "small"): {"projector": [2048] * 3, "predictor": [512, 2048]},
    ("simsiam", "imagenet"): {"projector": [2048] * 3, "predictor": [512, 2048]},
    ("moco_v3", "small"): {"projector": [4096, 4096, 256], "temperature": 0.2, "momentum": 0.99},
    ("moco_v3", "imagenet"): {"projector": [4096, 4096, 256], "predictor": [4096, 256], "temperature": 0.2},
    ("dino", "small"): {"head": [2048, 2048, 256, 4096], "teacher_temperature": 0.07, "momentum": 0.9995},
    ("dino", "imagenet"): {"head": [2048, 2048, 256, 65536], "teacher_temperature": 0.07, "momentum": 0.996},
    ("equimod", "small"): {"projector": [2048, 2048, 128], "temperature": 0.2, "weight": 1, "base.temperature": 0.5},
    ("equimod", "imagenet"): {"projector": [2048, 2048, 128], "weight": 1, "base.temperature": 0.2},
    ("augself", "small"): {"predictor": [512, 512, 7], "weight": 1},
    ("augself", "imagenet"): {"predictor": [512, 512, 7], "weight": 0.5},
    ("sie", "imagenet"): {"projector_inv": [1024] * 3, "projector_equi": [1024] * 3, "coefficients": (10, 4.5, 10, 1)},
}


@pytest.mark.parametrize(("name", "scale"), PUBLISHED)
def test_the_scales_are_the_published_ones(name, scale):
    sizes = Sizes(inv=16, equi=16, theta={"rotation": 4, "crop": 3})
    with torch.device("meta"):
        method = build_method(MethodConfig(name=name, scale=scale), sizes)
    for path, expected in PUBLISHED[name, scale].items():
        found = attrgetter(path)(method)
        if isinstance(found, nn.Module):
            found = [layer.out_features for layer in found.modules() if isinstance(layer, nn.Linear)]
        assert found == expected, path


def test_a_scale_sets_the_widths_and_an_option_overrides_it():
    method = build_method(MethodConfig(name="byol", scale="small", options={"embedding": 32}), SIZES)
    assert method.projector[0].out_features == 4096 and method.projector[-1].out_features == 32


def test_a_method_of_ones_own_needs_no_fork(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", "")

    class Mine(Method):
        def __init__(self, sizes, *, scale: float = 1.0):
            super().__init__()
            self.scale = scale

        def forward(self, pair):
            first, second = pair.inv.chunk(2)
            return self.scale * (first - second).square().mean()

    register_method("mine", Mine)
    method = build_method(MethodConfig(name="mine", options={"scale": 3.0}), Sizes(inv=16))
    assert method(Pair(torch.tensor([[1.0], [0.0]]).expand(2, 16))) == 3.0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_bf16_with_a_loss_in_float32(name):
    model, batch = make_model(name), make_batch(name)
    exact = model(batch).total.item()
    model, batch = model.float(), Batch(*map(as_float, batch))
    losses = model(batch, autocast=True)
    losses.total.backward()
    assert losses.total.dtype == torch.float32 and losses.total.item() == pytest.approx(exact, rel=0.05, abs=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def as_float(value):
    if isinstance(value, dict):
        return {key: as_float(part) for key, part in value.items()}
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
