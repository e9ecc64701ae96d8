"""Augmentation against torchvision, NumPy and the documented ranges."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from eqssl.augment import (
    COLOUR,
    GEOMETRIC,
    MAX_PROBABILITY,
    PARAMETERS,
    PHOTOMETRIC,
    Params,
    apply,
    draw,
    interpolate_params,
    max_params,
    relative,
    strengths,
)
from eqssl.config import AUGMENTATIONS, AugmentConfig

FULL = dict.fromkeys(AUGMENTATIONS, 1.0)
NONE = dict.fromkeys(AUGMENTATIONS, 0.0)
SIDE = 64
MANY = torch.arange(20_000)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """60 colour crops (60, 3, 64, 64) of real photographs, no two alike."""
    crops = [np.stack([image[y : y + SIDE, x : x + SIDE] for y in range(0, 321, 80) for x in range(0, 501, 100)])
             for image in load_sample_images().images]  # fmt: skip
    return torch.from_numpy(np.concatenate(crops)).permute(0, 3, 1, 2).float() / 255


def make(count: int, **values: float | list[float]) -> Params:
    """Parameters of `count` samples, those not given at the identity."""
    params = {name: torch.zeros(count) for name in PARAMETERS}
    return params | {name: torch.tensor(value, dtype=torch.float32).expand(count) for name, value in values.items()}


def matrices(params: Params) -> np.ndarray:
    """Homogeneous (B, 3, 3): a position in the image, in sides from its centre, y down, to that in the view."""
    dx, dy, log_scale, angle_deg, flip = (params[name].double().numpy() for name in GEOMETRIC)
    angle, mirror, zero, one = np.deg2rad(angle_deg), 1 - 2 * flip, np.zeros_like(dx), np.ones_like(dx)
    cos, sin = np.exp(log_scale) * np.cos(angle), np.exp(log_scale) * np.sin(angle)
    rows = [[mirror * cos, sin, dx], [-mirror * sin, cos, dy], [zero, zero, one]]
    return np.moveaxis(np.array(rows), -1, 0)


def take(params: Params, part: slice) -> Params:
    return {name: value[part] for name, value in params.items()}


def draw_all(strength: dict[str, float] = FULL, ids: Tensor = MANY, **changed: int) -> Params:
    return draw(strength, ids, **{"epoch": 0, "seed": 0, "view": 0, "image_size": SIDE, **changed})


REFERENCES = {
    "brightness": ([-0.8, -0.3, 0.4, 0.8], lambda x, v: reference.adjust_brightness(x, 1 + v)),
    "contrast": ([-0.8, -0.3, 0.4, 0.8], lambda x, v: reference.adjust_contrast(x, 1 + v)),
    "saturation": ([-0.8, -0.3, 0.4, 0.8], lambda x, v: reference.adjust_saturation(x, 1 + v)),
    "hue": ([-0.2, -0.05, 0.1, 0.2], lambda x, v: reference.adjust_hue(x, v)),
    "grayscale": ([1, 0, 1, 0], lambda x, v: reference.rgb_to_grayscale(x, 3) if v else x),
    "blur": ([0.2, 0.5, 1.0, 8 / 7], lambda x, v: reference.gaussian_blur(x, [9, 9], [v, v])),
    "solarize": ([1, 0, 1, 0], lambda x, v: reference.solarize(x, 0.5) if v else x),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_operations_equal_torchvision(photos: Tensor, name: str, channels: int) -> None:
    values, operation = REFERENCES[name]
    images = photos[:4, :channels]
    views = apply(images, make(4, **{name: values}))
    if channels == 1 and name in COLOUR:
        assert torch.equal(views, images)
    else:
        expected = torch.stack([operation(image, value) for image, value in zip(images, values, strict=True)])
        torch.testing.assert_close(views, expected, rtol=0, atol=2e-6)


def test_hue_equals_torchvision_for_every_order_of_the_channels() -> None:
    level = torch.linspace(0, 1, 5)
    colours = torch.cartesian_prod(level, level, level).T.reshape(1, 3, 5, 25).repeat(1, 1, 5, 1)
    for value in (-0.5, -0.2, 0.01, 0.2, 0.5):
        expected = reference.adjust_hue(colours, value)
        torch.testing.assert_close(apply(colours, make(1, hue=value)), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"dx": [0.25, -0.1, 0.033], "dy": [0.0, 0.125, -0.2]},
        {"angle_deg": [30.0, -77.0, 90.0]},
        {"log_scale": [0.5, -0.3, 0.1]},
        {"flip": [1.0, 0.0, 1.0]},
        {"flip": [1.0, 1.0, 0.0], "angle_deg": [20.0, -45.0, 80.0], "log_scale": [0.3, -0.2, 0.6],
         "dx": [0.1, -0.2, 0.05], "dy": [-0.15, 0.1, 0.3]},
    ],
    ids=["shift", "rotation", "scale", "flip", "all"],
)  # fmt: skip
def test_geometric_operations_equal_torchvision(photos: Tensor, values: dict[str, list[float]]) -> None:
    """Flip, then rotation and scale about the centre, then shift; only where no border is read."""
    params = make(3, **values)
    views = apply(photos[:3], params)
    for i, image in enumerate(photos[:3]):
        p = {name: value[i].item() for name, value in params.items()}
        both = torch.cat([image, torch.ones(1, SIDE, SIDE)])
        both = reference.affine(
            reference.horizontal_flip(both) if p["flip"] else both,
            angle=-p["angle_deg"],  # affine turns clockwise, rotate and we counter-clockwise
            translate=[p["dx"] * SIDE, p["dy"] * SIDE],
            scale=math.exp(p["log_scale"]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        inside = both[3] > 0.9999
        assert inside.float().mean() > 0.3
        torch.testing.assert_close(views[i][:, inside], both[:3, inside], rtol=0, atol=1e-4)


def test_angles_are_those_of_torchvision_rotate(photos: Tensor) -> None:
    disc = (torch.linspace(-1, 1, SIDE)[:, None] ** 2 + torch.linspace(-1, 1, SIDE) ** 2) < 0.9
    expected = reference.rotate(photos[0], 33.0, interpolation=InterpolationMode.BILINEAR)
    view = apply(photos[:1], make(1, angle_deg=33.0))[0]
    torch.testing.assert_close(view[:, disc], expected[:, disc], rtol=0, atol=1e-4)


def test_a_crop_is_torchvision_resized_crop(photos: Tensor) -> None:
    for left, top, size in ((0, 0, 32), (10, 25, 20), (3, 1, 60)):
        magnification = SIDE / size
        dx, dy = (-magnification * ((start + size / 2) / SIDE - 0.5) for start in (left, top))
        view = apply(photos[:1], make(1, dx=dx, dy=dy, log_scale=math.log(magnification)))[0]
        expected = reference.resized_crop(photos[0], top, left, size, size, [SIDE, SIDE], antialias=False)
        inside = slice(math.ceil(magnification), -math.ceil(magnification))  # its border repeats the crop's own pixels
        torch.testing.assert_close(view[:, inside, inside], expected[:, inside, inside], rtol=0, atol=1e-4)


def test_geometry_equals_numpy_on_a_smooth_image() -> None:
    """Cosines over the side are their own reflection, so the reference holds up to and beyond the borders."""

    def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.2 * np.cos(np.pi * (x + 0.5)) + 0.2 * np.cos(2 * np.pi * (y + 0.5)) * np.cos(np.pi * (x + 0.5))

    axis = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    x, y = np.meshgrid(axis, axis)
    params = make(1, dx=0.3, dy=-0.2, log_scale=-0.25, angle_deg=52.0, flip=1.0)
    inverse = np.linalg.inv(matrices(params)[0])
    from_x, from_y = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))[:2]
    view = apply(torch.from_numpy(smooth(x, y)).float()[None, None], params)
    np.testing.assert_allclose(view[0, 0].numpy(), smooth(from_x, from_y), rtol=0, atol=1e-3)


def test_parameters_of_zero_leave_the_bits_alone(photos: Tensor) -> None:
    for images in (photos, photos[:, :1]):
        params = draw_all(NONE, torch.arange(60))
        assert all((value == 0).all() and value.dtype == torch.float32 for value in params.values())
        assert torch.equal(apply(images, params), images)
        mixed = draw_all(FULL, torch.arange(60))
        still = torch.arange(60) % 2 == 0
        views = apply(images, {name: value.masked_fill(still, 0) for name, value in mixed.items()})
        assert torch.equal(views[still], images[still])
        assert (views[~still] != images[~still]).flatten(1).any(1).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "side", "count"), [(1, 64, 60), (3, 64, 60), (1, 224, 12), (3, 224, 8)])
def test_a_view_does_not_depend_on_its_batch(
    photos: Tensor, channels: int, side: int, count: int, threads: int
) -> None:
    images = torch.nn.functional.interpolate(photos[:count, :channels], size=side)
    params = draw_all(FULL, torch.arange(count), image_size=side)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = apply(images, params)
        for part in (*(slice(i, i + 1) for i in range(count)), slice(2, 5), slice(3, count - 2)):
            assert torch.equal(apply(images[part], take(params, part)), whole[part])
    finally:
        torch.set_num_threads(before)


def test_views_stay_in_range_and_images_as_they_were(photos: Tensor) -> None:
    params = draw_all(FULL, torch.arange(60))
    before = photos.clone()
    views = apply(photos, params)
    assert torch.equal(photos, before)
    assert views.shape == photos.shape and views.min() >= 0 and views.max() <= 1
    white, geometric = torch.ones(60, 3, SIDE, SIDE), {name: params[name] for name in GEOMETRIC}
    unmarked = apply(white, make(60) | geometric)
    assert unmarked.max() <= 1 and unmarked.min() > 1 - 1e-6, "no border may show"


def test_draws_fill_the_documented_ranges_uniformly() -> None:
    params = draw_all(FULL | {"crop": 0.0}) | {"log_scale": draw_all()["log_scale"]}
    half = {"dx": 20 / 224, "dy": 20 / 224, "angle_deg": 90, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8,
            "hue": 0.2}  # fmt: skip
    uniform = {name: (params[name] / limit + 1) / 2 for name, limit in half.items()}
    uniform["blur"] = params["blur"] / (4 / 224 * SIDE)
    uniform["area"] = (torch.exp(-2 * params["log_scale"]) - 0.08) / 0.92
    for name, values in uniform.items():
        assert -1e-6 <= values.min() < 1e-3 and 0.999 < values.max() <= 1 + 1e-6, name
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3, name
    for name, probability in {"flip": 0.5, "grayscale": 0.4, "solarize": 0.4}.items():
        assert set(params[name].tolist()) == {0.0, 1.0}
        assert stats.binomtest(int(params[name].sum()), len(MANY), probability).pvalue > 1e-3, name


def test_strength_scales_the_ranges() -> None:
    full, half = draw_all(FULL | {"crop": 0.0}), draw_all(dict.fromkeys(AUGMENTATIONS, 0.5) | {"crop": 0.0})
    for name in ("dx", "dy", "angle_deg", "brightness", "contrast", "saturation", "hue", "blur"):
        torch.testing.assert_close(half[name], full[name] / 2)
    for name, probability in {"flip": 0.25, "grayscale": 0.2, "solarize": 0.2}.items():
        assert stats.binomtest(int(half[name].sum()), len(MANY), probability).pvalue > 1e-3, name
    assert torch.exp(-2 * draw_all(NONE | {"crop": 0.5})["log_scale"]).min().item() == pytest.approx(0.54, abs=1e-3)


def test_crops_lie_inside_the_image() -> None:
    params = draw_all(NONE | {"crop": 1.0})
    window = torch.exp(-params["log_scale"])
    for name in ("dx", "dy"):
        centre = -params[name] * window
        room = (1 - window) / 2
        assert (centre.abs() <= room + 1e-6).all()
        assert stats.kstest(((centre / room + 1) / 2).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("family", AUGMENTATIONS)
def test_a_strength_changes_its_own_parameters_alone(family: str) -> None:
    own = {"crop": {"dx", "dy", "log_scale"}, "translation": {"dx", "dy"}, "rotation": {"angle_deg"}}
    full, without = draw_all(), draw_all(FULL | {family: 0.0})
    assert {name for name in PARAMETERS if not torch.equal(full[name], without[name])} == own.get(family, {family})


def test_draws_belong_to_seed_epoch_view_and_image() -> None:
    first = draw_all()
    for change in ({"view": 1}, {"epoch": 1}, {"seed": 1}, {"ids": MANY + len(MANY)}):
        other = draw_all(**change)
        for name in PARAMETERS:
            assert abs(stats.pearsonr(first[name], other[name]).statistic) < 4.5 / len(MANY) ** 0.5, (change, name)
    order = torch.tensor([17, 3, 19_999])
    for ids in (order, order[:1]):
        assert all(torch.equal(value, first[name][ids]) for name, value in draw_all(ids=ids).items())


def test_the_relative_transform_is_the_second_after_the_inverse_of_the_first() -> None:
    first, second = (draw_all(ids=MANY[:500], view=view) for view in (0, 1))
    between = relative(first, second)
    assert set(between["flip"].tolist()) == {0.0, 1.0}
    expected = matrices(second) @ np.linalg.inv(matrices(first))
    np.testing.assert_allclose(matrices(between), expected, rtol=0, atol=2e-6)
    for name in ("brightness", "contrast", "saturation", "hue", "blur"):
        assert torch.equal(between[name], second[name] - first[name])
    for name in MAX_PROBABILITY:
        assert torch.equal(between[name] == 1, second[name] != first[name])
    assert all(values.abs().max() < 1e-6 for values in relative(first, first).values())


def test_the_relative_transform_takes_the_first_view_to_the_second() -> None:
    """Where the first view shows what the second does; the others see reflections of different borders."""
    geometric = NONE | {"crop": 0.3, "translation": 0.5, "rotation": 0.5, "flip": 1.0}
    first, second = (draw_all(geometric, MANY[:64], view=view) for view in (0, 1))
    axis = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
    blob = torch.exp(-(((axis - 0.05) / 0.1) ** 2 + ((axis[:, None] + 0.1) / 0.06) ** 2)).expand(64, 1, -1, -1)
    between = relative(first, second)
    found, wanted = apply(apply(blob, first), between), apply(blob, second)
    grid = torch.stack([axis.expand(SIDE, SIDE), axis[:, None].expand(SIDE, SIDE), torch.ones(SIDE, SIDE)]).double()
    read = np.einsum("bij,jhw->bihw", np.linalg.inv(matrices(between)), grid.numpy())[:, :2]
    inside = torch.from_numpy((np.abs(read) < 0.48).all(axis=1))[:, None]
    assert inside.float().mean() > 0.5 and ((wanted - apply(blob, first))[inside].abs()).max() > 0.5
    torch.testing.assert_close(found[inside], wanted[inside], rtol=0, atol=0.06)  # two resamplings against one


def test_no_draw_exceeds_the_largest_and_a_strength_of_zero_has_none() -> None:
    params = draw_all()
    for name, limit in max_params(FULL, SIDE).items():
        assert 0.9 * limit < params[name].abs().max() <= limit * (1 + 1e-5), name
    assert set(max_params(NONE, SIDE)) == set(PARAMETERS) and set(max_params(NONE, SIDE).values()) == {0.0}


def test_part_way_is_a_share_of_every_parameter_and_binary_ones_happen_half_way() -> None:
    params = draw_all(ids=MANY[:64])
    before, after = interpolate_params(params, 1 / 3), interpolate_params(params, 2 / 3)
    for name in params:
        if name in MAX_PROBABILITY:
            assert not before[name].any() and torch.equal(after[name], params[name])
        else:
            torch.testing.assert_close(after[name], params[name] * 2 / 3)
    assert all(torch.equal(interpolate_params(params, 1.0)[name], params[name]) for name in params)


def test_parameters_are_independent_of_one_another() -> None:
    params = draw_all(FULL | {"crop": 0.0})
    columns = torch.stack([params[name] for name in PARAMETERS if name != "log_scale"])
    correlation = torch.corrcoef(columns).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / len(MANY) ** 0.5


def test_default_strengths() -> None:
    def default(**source) -> dict[str, float]:
        return strengths(AugmentConfig(), **{"paired": False, "channels": 3, "altered_by": {}, **source})

    assert default() == dict.fromkeys(AUGMENTATIONS, 0.5) | {"grayscale": 0.0, "solarize": 0.0}
    assert default(channels=1) == default() | {"saturation": 0.0, "hue": 0.0}
    assert default(paired=True) == NONE


def test_given_strengths_hold_and_impossible_ones_are_refused() -> None:
    altered_by = {"rotation": "quaternion"}
    given = AugmentConfig(rotation=0.3, hue=0.0)
    single = strengths(given, paired=False, channels=1, altered_by=altered_by)
    assert single["rotation"] == 0.3 and single["hue"] == 0
    with pytest.raises(ValueError, match=r"--augment.rotation is 0.3.*quaternion"):
        strengths(given, paired=True, channels=3, altered_by=altered_by)
    assert (
        strengths(AugmentConfig(rotation=0.0, blur=0.2), paired=True, channels=3, altered_by=altered_by)["blur"] == 0.2
    )
    for family in COLOUR:
        with pytest.raises(ValueError, match=rf"--augment.{family} is 0.1.*grey"):
            strengths(AugmentConfig(**{family: 0.1}), paired=False, channels=1, altered_by={})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_makes_the_same_views(photos: Tensor) -> None:
    ids = torch.arange(60)
    params = draw_all(ids=ids.cuda())
    for name, value in draw_all(ids=ids).items():
        torch.testing.assert_close(params[name].cpu(), value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(apply(photos.cuda(), params).cpu(), apply(photos, draw_all(ids=ids)), rtol=0, atol=1e-3)


def test_a_batch_in_one_part_that_nothing_alters_is_not_copied():
    images = torch.rand(4, 3, 8, 8)
    assert apply(images, make(4)).data_ptr() == images.data_ptr()


def windows(params: Params) -> np.ndarray:
    """Centre x, y, width, height (4, B) of crops, in sides of the central square."""
    ratio = params["log_ratio"].double() / 2
    width, height = torch.exp(ratio - params["log_scale"]), torch.exp(-ratio - params["log_scale"])
    return torch.stack([-params["dx"] * width, -params["dy"] * height, width, height]).numpy()


def test_crops_of_oblong_images_have_the_area_and_the_ratio_of_torchvision_and_lie_inside() -> None:
    aspects = torch.tensor([0.5, 0.75, 1.0, 4 / 3, 1.9]).double().repeat(4000)
    crop = NONE | {"crop": 1.0}
    params = draw(crop, MANY, epoch=0, seed=0, view=0, image_size=SIDE, crop_ratio=4 / 3, aspects=aspects)
    x, y, width, height = windows(params)
    across, down = np.maximum(aspects, 1).numpy(), np.maximum(1 / aspects, 1).numpy()
    assert (np.abs(x) + width / 2 <= across / 2 + 1e-6).all() and (np.abs(y) + height / 2 <= down / 2 + 1e-6).all()
    for room, centre in ((across - width, x), (down - height, y)):
        wide = room > 0.01
        assert stats.kstest(centre[wide] / room[wide] + 0.5, "uniform").pvalue > 1e-3
    log_ratio = np.log(width / height)
    assert stats.kstest((log_ratio / math.log(4 / 3) + 1) / 2, "uniform").pvalue > 1e-3
    share = width * height / (across * down)
    fits = share < 0.35  # where no window is too large for its ratio, down to an aspect of .5
    assert share.min() >= 0.08 - 1e-6 and stats.kstest((share[fits] - 0.08) / 0.27, "uniform").pvalue > 1e-3
    limits = max_params(crop, SIDE, 4 / 3, aspects)
    assert all(params[name].abs().max() <= limits[name] * (1 + 1e-5) for name in params)


def test_without_crop_oblong_images_give_their_central_square_and_squares_change_nothing() -> None:
    oblong = draw(NONE, MANY, epoch=0, seed=0, view=0, image_size=SIDE, aspects=torch.full((len(MANY),), 1.7).double())
    assert all((value == 0).all() for value in oblong.values())
    square = draw(FULL, MANY, epoch=0, seed=0, view=0, image_size=SIDE, aspects=torch.ones(len(MANY)).double())
    assert square.keys() == draw_all().keys() and all(torch.equal(square[name], draw_all()[name]) for name in square)
    assert max_params(FULL, SIDE, aspects=torch.ones(3).double()) == max_params(FULL, SIDE)


@pytest.mark.parametrize("stored, tolerance", [(256, 0.02), (128, 0.025), (64, 0.035)])
def test_crops_are_cut_from_the_stored_image_as_by_torchvision(stored: int, tolerance: float) -> None:
    photo = torch.tensor(load_sample_images().images[0]).permute(2, 0, 1)[None].float() / 255
    height, width = photo.shape[2:]
    count, aspect = 40, torch.full((40,), width / height).double()
    squeezed = reference.resize(photo, [stored, stored], antialias=True).expand(count, -1, -1, -1)
    params = draw(NONE | {"crop": 1.0}, torch.arange(count), epoch=0, seed=0, view=0, image_size=SIDE, crop_ratio=4 / 3,
                  aspects=aspect)  # fmt: skip
    views, errors, beside = apply(squeezed, params, SIDE, aspect), [], 0
    for view, (x, y, across, down) in zip(views, windows(params).T * height, strict=True):
        top, left = round(height / 2 + y - down / 2), round(width / 2 + x - across / 2)
        beside += left < (width - height) / 2
        expected = reference.resized_crop(photo[0], top, left, round(down), round(across), [SIDE, SIDE], antialias=True)
        errors.append((view - expected).abs().mean().item())
    assert np.mean(errors) < tolerance and beside > 10  # many show what is beside the central square


def test_a_smaller_view_is_the_mean_of_all_pixels(photos: Tensor) -> None:
    torch.testing.assert_close(apply(photos[:4], make(4), 32), torch.nn.functional.avg_pool2d(photos[:4], 2))
    params = draw_all(FULL, torch.arange(60))
    aspects = torch.linspace(0.5, 2, 60).double()
    whole = apply(photos, params, 24, aspects)
    assert whole.shape == (60, 3, 24, 24)
    for part in (slice(0, 1), slice(7, 30)):
        assert torch.equal(apply(photos[part], take(params, part), 24, aspects[part]), whole[part])


def test_the_relative_transform_of_crops_that_are_no_squares() -> None:
    crop = NONE | {"crop": 1.0, "flip": 1.0, "translation": 1.0}
    first, second = (draw(crop, MANY[:500], epoch=0, seed=0, view=view, image_size=SIDE, crop_ratio=4 / 3)
                     for view in (0, 1))  # fmt: skip

    def stretched(params: Params) -> np.ndarray:
        stretch = np.exp(params["log_ratio"].double().numpy() / 2)
        square = matrices(params | {"dx": torch.zeros(500), "dy": torch.zeros(500)})
        square[:, 0] /= stretch[:, None]
        square[:, 1] *= stretch[:, None]
        square[:, 0, 2], square[:, 1, 2] = params["dx"], params["dy"]
        return square

    expected = stretched(second) @ np.linalg.inv(stretched(first))
    np.testing.assert_allclose(stretched(relative(first, second)), expected, rtol=0, atol=2e-6)


def test_local_crops_have_the_published_areas_lie_anywhere_and_change_no_other_draw() -> None:
    aspects = torch.tensor([0.6, 1.0, 1.7, 1.0]).double().repeat(5000)
    params = draw(NONE, MANY, epoch=0, seed=0, view=2, image_size=24, aspects=aspects, local_area=0.4)
    width = np.exp(-params["log_scale"].double().numpy())
    across, down = np.maximum(aspects, 1).numpy(), np.maximum(1 / aspects, 1).numpy()
    share = width**2 / (across * down)
    assert stats.kstest((share - 0.05) / 0.35, "uniform").pvalue > 1e-3 and share.min() >= 0.05 - 1e-6
    for name, side in (("dx", across), ("dy", down)):
        centre = -params[name].double().numpy() * width
        assert stats.kstest(centre / (side - width) + 0.5, "uniform").pvalue > 1e-3
    plain, local = draw_all(view=2), draw_all(view=2, local_area=0.25)
    assert {name for name in PARAMETERS if not torch.equal(plain[name], local[name])} == {"dx", "dy", "log_scale"}
