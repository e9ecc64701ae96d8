"""The schedule's numbers, and who gets weight decay and LARS' adaptation."""

import math

import pytest
import torch
from torch import nn

from eqssl.config import TrainConfig
from eqssl.training.optim import learning_rate, make_optimizer, set_schedules, warn_of_small_rate


def test_warm_up_then_cosine_to_zero_in_proportion_to_the_batch():
    config = TrainConfig(lr=0.1, batch_size=512, epochs=10, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.02) and rates[9] == pytest.approx(0.2) == max(rates)
    assert rates[30] == pytest.approx(0.1 * (1 + math.cos(math.pi * 0.5)))
    assert 0 < rates[-1] < 0.002 and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0.02, 0.3, 0.5, 1.0])
def test_a_warm_up_that_ends_within_a_step_stays_below_the_peak(warmup):
    config = TrainConfig(lr=0.1, batch_size=256, epochs=10, warmup_epochs=warmup)
    assert 0.09 < max(learning_rate(config, step, 5) for step in range(50)) <= 0.1


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_vectors_are_not_decayed(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.5, lr=0.1))
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = [not torch.allclose(a, b, atol=1e-9) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [True, False, False, False]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_lars_adapts_the_step_of_matrices_with_and_without_decay_and_of_nothing_else(decay):
    """The first step is lr x trust x (g + decay w), trust = .001 |w| / (|g| + decay |w|) (arXiv 1708.03888, Eq. 6)."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = make_optimizer(model, TrainConfig(optimizer="lars", weight_decay=decay, lr=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    w, g = before["weight"], model.weight.grad
    trust = 1e-3 * w.norm() / (g.norm() + decay * w.norm())
    torch.testing.assert_close(w - model.weight, 0.1 * trust * (g + decay * w), rtol=1e-6, atol=0)
    torch.testing.assert_close(before["bias"] - model.bias, 0.1 * model.bias.grad)


def test_sgd_steps_along_the_gradient_with_momentum():
    model = nn.Linear(2, 1, bias=False)
    optimizer = make_optimizer(model, TrainConfig(optimizer="sgd", weight_decay=0.0, lr=0.1))
    before = model.weight.detach().clone()
    for _ in range(2):
        model.weight.grad = torch.ones(1, 2)
        optimizer.step()
    torch.testing.assert_close(before - model.weight.detach(), torch.full((1, 2), 0.1 * (1 + 1.9)))


def test_the_decay_rises_by_a_cosine_for_matrices_alone():
    model = nn.Linear(2, 1)
    config = TrainConfig(weight_decay=0.04, weight_decay_end=0.4, epochs=10, lr=0.1, batch_size=256, warmup_epochs=0)
    optimizer, decays = make_optimizer(model, config), []
    for step in (0, 25, 50):
        set_schedules(optimizer, config, step, 5)
        decays.append(optimizer.param_groups[0]["weight_decay"])
        assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"] == learning_rate(config, step, 5)
    assert decays == pytest.approx([0.04, 0.22, 0.4]) and optimizer.param_groups[1]["weight_decay"] == 0


def test_a_rate_at_which_lars_trains_nothing_is_warned_of(caplog):
    warn_of_small_rate(TrainConfig(optimizer="lars", lr=1e-3, epochs=3, batch_size=256), 100)
    assert "--train.lr is 0.001: in 300 steps --train.optimizer lars moves a matrix by 0.0015 of its" in caplog.text
    caplog.clear()
    warn_of_small_rate(TrainConfig(optimizer="lars", lr=0.3, epochs=100, batch_size=1024), 1000)
    warn_of_small_rate(TrainConfig(optimizer="adamw", lr=1e-3, epochs=3), 100)
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("contiguous", ["gradient", "moments"])
def test_a_step_is_the_same_in_any_memory_order(name, contiguous):
    def trained(weight, layout):
        model = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=layout)
        model.weight.data.copy_(weight)
        optimizer = make_optimizer(model, TrainConfig(optimizer=name, lr=0.1))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            gradient = torch.randn(8, 4, 3, 3, generator=generator)
            model.weight.grad = gradient if contiguous == "gradient" else gradient.contiguous(memory_format=layout)
            optimizer.step()
            if contiguous == "moments":
                state = optimizer.state[model.weight]
                state |= {key: value.contiguous() for key, value in state.items() if value.ndim == 4}
        return model.weight.detach()

    weight = torch.randn(8, 4, 3, 3)
    expected, found = (trained(weight, layout) for layout in (torch.contiguous_format, torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
