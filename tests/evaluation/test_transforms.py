"""The fixed distribution: its ranges, its digest, and what is not applicable."""

import math

import pytest
import torch

from eqssl.evaluation.transforms import RANGES, digest, draw, draw_binary

IDS = torch.arange(5000)


def test_draws_fill_their_ranges():
    params = draw(IDS, channels=3, image_size=112)
    assert list(params) == list(RANGES)
    for name, (low, high) in RANGES.items():
        unit = 112 if name == "blur" else 1
        assert float(params[name].min()) == pytest.approx(low * unit, abs=0.002 * (high - low) * unit)
        assert float(params[name].max()) == pytest.approx(high * unit, abs=0.002 * (high - low) * unit)
    assert params["dx"].max() < 10 / 224 and params["blur"].max() < 1
    assert math.exp(params["log_scale"].min()) > 0.69 and math.exp(params["log_scale"].max()) < 1.11


def test_draws_belong_to_the_image_and_factors_are_independent():
    params = draw(IDS, channels=3, image_size=64)
    few = draw(torch.tensor([7, 4000]), channels=3, image_size=64)
    assert all(torch.equal(few[name], params[name][[7, 4000]]) for name in params)
    correlation = torch.corrcoef(torch.stack(list(params.values()))).fill_diagonal_(0)
    assert correlation.abs().max() < 0.06


def test_what_has_no_effect_is_absent():
    assert draw(IDS, channels=1, image_size=64).keys() == RANGES.keys() - {"saturation", "hue"}
    assert draw_binary(IDS, channels=1).keys() == {"flip", "solarize"}
    assert "blur" not in draw(IDS, channels=3, image_size=28)
    assert "blur" in draw(IDS, channels=3, image_size=32)


def test_binary_factors_are_even_and_independent():
    binary = torch.stack(list(draw_binary(IDS, channels=3).values()))
    assert set(binary.unique().tolist()) == {0, 1}
    assert (binary.mean(1) - 0.5).abs().max() < 0.03
    assert torch.corrcoef(binary).fill_diagonal_(0).abs().max() < 0.06


def test_the_distribution_is_the_one_of_protocol_1():
    assert digest() == "3f73943c22d046bb"
