"""What a batch carries beside its two views, and that only those who ask for it get it."""

from dataclasses import replace as replace_field
from itertools import pairwise

import pytest
import torch

from eqssl.config import RunConfig, replace
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.data.rotation import euler_to_quaternion
from eqssl.data.stores import FramedImages
from eqssl.methods import METHODS, find_method
from eqssl.views import Batch, Views


def toy(paired: bool = False) -> Dataset:
    pixels = torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    hue = torch.arange(8.0)[:, None] / 8
    known = {"quaternion": euler_to_quaternion(hue.expand(8, 3)), "floor_hue": hue} if paired else {}
    split = Split(MemoryImages(pixels), torch.arange(8), torch.arange(8) % 2, torch.arange(8) // 2, known)
    return Dataset("toy", split, split, split, paired, 3, 32, 2, (0.5,) * 3, (0.3,) * 3, "0")


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_only_methods_that_say_so_are_told_the_transformation(method, paired):
    config = replace(RunConfig(), {"method.name": method})
    kind = find_method(method)
    batch = Views(config, toy(paired), method=kind, tokens=16).batch(toy(paired).train, torch.arange(4), 0)
    assert kind.requires_transform == (method in ("augself", "equimod", "sie"))
    assert kind.requires_factors == (method == "supervised_factors")
    assert (batch.theta is not None) == (kind.requires_transform or (kind.requires_factors and not paired))
    assert (batch.factors is not None) == (kind.requires_factors and paired)
    assert (batch.mask is not None) == (kind.draw_masks is not None) == (method == "ibot")
    assert (batch.labels is not None) == (method == "supervised")
    assert batch.intermediate is None


def test_the_images_part_way_lie_between_the_unaugmented_one_and_the_second_view():
    config = replace(RunConfig(), {"recon.view": "intermediate", "augment.flip": 0.0, "augment.crop": 0.0})
    batch = Views(config, toy()).batch(toy().train, torch.arange(4), 0)
    stops = [batch.clean, *batch.intermediate.chunk(2), batch.second]
    steps = [(stop - batch.second).square().mean((1, 2, 3)) for stop in stops]
    assert all((near < far).all() for far, near in pairwise(steps))
    with pytest.raises(ValueError, match=r"intermediate.*allowed for pairs of one object: first"):
        Views(config, toy(paired=True))
    without = Views(replace(config, {"recon.weight": 0.0}), toy(paired=True))
    assert without.batch(toy(paired=True).train, torch.arange(4), 0).intermediate is None


def test_theta_holds_what_is_known_of_objects_and_what_augmentations_change():
    views = Views(replace(RunConfig(), {"method.name": "sie"}), toy(paired=True))
    assert views.theta_sizes() == {"rotation": 4, "floor_hue": 1}
    views = Views(replace(RunConfig(), {"augment.blur": 0.0}), toy(), method=find_method("sie"))
    expected = {"dx", "dy", "log_scale", "angle_deg", "flip", "brightness", "contrast", "saturation", "hue"}
    assert views.theta_sizes() == dict.fromkeys(expected, 1)
    theta = views.batch(toy().train, torch.arange(8), 0).theta
    assert set(theta) == expected and all(values.abs().max() <= 4 for values in theta.values())


def test_a_blur_without_effect_is_no_part_of_theta():
    dataset = toy()
    assert "blur" in Views(replace(RunConfig(), {"method.name": "sie", "augment.blur": 1.0}), dataset).theta_sizes()
    assert "blur" not in Views(replace(RunConfig(), {"method.name": "sie", "augment.blur": 0.4}), dataset).theta_sizes()


def framed(aspects: torch.Tensor, size: int) -> Dataset:
    dataset = toy()
    smooth = torch.nn.functional.interpolate(dataset.train.images.pixels[..., :4, :4], size=(32, 32), mode="bilinear")
    images = FramedImages(MemoryImages(smooth), aspects, size)
    split = replace_field(dataset.train, images=images)
    return replace_field(dataset, train=split, val=split, test=split, image_size=size)


def test_views_are_cut_from_larger_oblong_images():
    config = replace(RunConfig(), {"augment.crop": 1.0, "augment.crop_ratio": 4 / 3, "recon.view": "intermediate"})
    dataset = framed(torch.linspace(0.6, 1.6, 8).double(), 16)
    batch = Views(config, dataset).batch(dataset.train, torch.arange(8), 0)
    assert batch.first.shape == batch.second.shape == (8, 3, 16, 16) and batch.intermediate.shape == (16, 3, 16, 16)
    framing = dataset.train.images.take(torch.arange(8)).float() / 255
    assert (batch.clean - framing).abs().mean() < 0.06 < (batch.clean - framing.flip(0)).abs().mean()


def test_stored_squares_of_the_views_size_give_the_same_views_and_conditions():
    config = replace(RunConfig(), {"method.name": "equimod", "augment.blur": 1.0})
    other = framed(torch.ones(8).double(), 32)
    squares = replace_field(other.train, images=other.train.images.whole)
    for method in (None, find_method("equimod")):
        plain = Views(config, toy(), method=method).batch(squares, torch.arange(8), 3)
        stored = Views(config, other, method=method).batch(other.train, torch.arange(8), 3)
        torch.testing.assert_close(stored.first, plain.first, rtol=0, atol=1e-5)
        assert method is None or all(torch.equal(stored.theta[name], plain.theta[name]) for name in plain.theta)


def test_crops_that_are_no_squares_are_part_of_theta_or_refused():
    given = {"method.name": "equimod", "augment.crop_ratio": 1.5, "augment.rotation": 0.0}
    views = Views(replace(RunConfig(), given), toy(), method=find_method("equimod"))
    theta = views.batch(toy().train, torch.arange(8), 0).theta
    assert views.theta_sizes()["log_ratio"] == 1 and theta["log_ratio"].abs().max() <= 2
    with pytest.raises(ValueError, match=r"crop-ratio is 1.5; allowed with --method.name equimod .*rotation 0.5: 1"):
        Views(replace(RunConfig(), given | {"augment.rotation": 0.5}), toy(), method=find_method("equimod"))
    with pytest.raises(ValueError, match=r"crop-ratio is 1.5; allowed without --augment.crop: 1"):
        Views(replace(RunConfig(), given | {"augment.crop": 0.0}), toy())


def made(config: RunConfig, dataset: Dataset, indices: torch.Tensor, local_size: int = 12) -> Batch:
    views = Views(config, dataset, method=find_method("ibot"), tokens=16, local_size=local_size)
    return views.batch(dataset.train, indices, 1)


def test_local_crops_are_further_views_of_their_image_and_change_nothing_else():
    config = replace(RunConfig(), {"method.name": "ibot", "augment.local_crops": 3})
    batch, plain = (made(config, toy(), torch.arange(8), local_size) for local_size in (12, 0))
    assert plain.local is None and batch.local.shape == (24, 3, 12, 12)
    assert all(torch.equal(getattr(batch, name), getattr(plain, name)) for name in ("first", "second", "clean", "mask"))
    crops = batch.local.unflatten(0, (3, 8))
    assert all((a - b).abs().mean((1, 2, 3)).min() > 0.01 for a, b in pairwise([*crops, crops[0]]))
    assert torch.equal(made(config, toy(), torch.arange(3, 5)).local.unflatten(0, (3, 2)), crops[:, 3:5])
    more = made(replace(config, {"augment.local_crops": 5}), toy(), torch.arange(8))
    assert torch.equal(more.local[:24], batch.local)


def test_local_crops_of_an_object_are_of_both_its_renders_by_turns():
    dataset = toy(paired=True)
    grey = torch.arange(8)[:, None, None, None].expand(8, 3, 32, 32) * 30
    dataset = replace_field(dataset, train=replace_field(dataset.train, images=MemoryImages(grey.to(torch.uint8))))
    batch = made(replace(RunConfig(), {"method.name": "ibot", "augment.local_crops": 4}), dataset, torch.arange(8))
    first, second = (view.mean((1, 2, 3)) for view in (batch.first, batch.second))
    assert (first - second).abs().min() > 0.1
    expected = torch.cat([first, second]).repeat(2)
    torch.testing.assert_close(batch.local.mean((1, 2, 3)), expected, rtol=0, atol=1e-5)


def test_local_crops_are_cut_from_larger_oblong_images():
    dataset = framed(torch.linspace(0.6, 1.6, 8).double(), 16)
    config = replace(RunConfig(), {"method.name": "ibot", "augment.local_crops": 2, "augment.crop_ratio": 4 / 3})
    assert made(config, dataset, torch.arange(8), local_size=8).local.shape == (16, 3, 8, 8)
