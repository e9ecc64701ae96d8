import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import HalfspaceIntersection
from scipy.spatial.transform import Rotation

from eqssl.data.synthetic.families import DRAWS, FAMILIES, build
from eqssl.data.synthetic.polytopes import RADIUS, frustum
from eqssl.data.synthetic.render import Scene, hsv_to_rgb, render

PALETTE = torch.tensor([[0.9, 0.8, 0.7], [0.4, 0.5, 0.6], [0.9, 0.2, 0.2]])


def scene(family: str, rotation: torch.Tensor, seed: int = 0) -> Scene:
    """Return one object under one light in several poses (B, 3, 3)."""
    n = len(rotation)
    planes, tones = build(family, torch.rand(1, DRAWS, generator=torch.Generator().manual_seed(seed)))
    return Scene(
        planes=planes.expand(n, -1, -1, -1),
        albedo=PALETTE[tones].expand(n, -1, -1),
        rotation=rotation,
        floor=torch.tensor([[0.6, 0.4, 0.24]]).expand(n, -1),
        lamp_direction=torch.tensor([[0.3, -0.4, 0.866]]).expand(n, -1),
        lamp=torch.tensor([[0.2, 0.4, 1.0]]).expand(n, -1),
    )


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the share of pixels that differ clearly, over any leading dimensions."""
    return ((a.int() - b.int()).abs().amax(-3) > 24).float().mean((-1, -2))


def test_there_are_at_least_eight_families():
    assert len(FAMILIES) >= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rotation_of_the_cube_maps_a_solid_to_itself(family: str):
    turns = torch.tensor(Rotation.create_group("O").as_matrix(), dtype=torch.float32)  # 24, all of 90, 120, 180 degrees
    start = torch.tensor(Rotation.from_euler("xyz", [0.4, -0.5, 0.6]).as_matrix(), dtype=torch.float32)
    for seed in range(3):
        images, _ = render(scene(family, start @ turns, seed), 48)
        apart = difference(images[:, None], images[None])
        apart.fill_diagonal_(1)
        assert apart.min() > 0.01, f"the least difference of two poses of {family} is {apart.min():.4f} of the pixels"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_turn_about_any_axis_shows(family: str):
    turns = Rotation.from_euler("xyz", [[0, 0, 0], [15, 0, 0], [0, 15, 0], [0, 0, 15]], degrees=True).as_matrix()
    start = Rotation.from_euler("xyz", [-0.3, 0.5, 0.2]).as_matrix()
    images, _ = render(scene(family, torch.tensor(turns @ start, dtype=torch.float32)), 48)
    assert difference(images[1:], images[:1]).min() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_fill_the_sphere_and_are_centred(family: str):
    for planes in build(family, torch.rand(20, DRAWS))[0]:
        low, high, radius = [], [], 0.0
        for part in planes:
            part = part[part[:, :3].any(-1)]
            inside = vertices_of(part)
            low.append(inside.amin(0)), high.append(inside.amax(0))
            radius = max(radius, float(inside.norm(dim=1).max()))
        centre = torch.stack(low).amin(0) + torch.stack(high).amax(0)
        assert centre.abs().max() < 1e-3
        assert radius == pytest.approx(RADIUS, abs=1e-3)


def vertices_of(planes: torch.Tensor) -> torch.Tensor:
    """Return the corners that three planes make and no other plane cuts off."""
    triples = torch.combinations(torch.arange(len(planes)), 3)
    chosen = planes[triples].double()
    regular = torch.linalg.det(chosen[..., :3]).abs() > 1e-5
    corners = torch.linalg.solve(chosen[regular][..., :3], chosen[regular][..., 3:])[..., 0]
    inside = (corners @ planes[:, :3].T.double() <= planes[:, 3].double() + 1e-5).all(1)
    return corners[inside].float()


def test_frustum_has_the_corners_of_its_half_spaces():
    part = frustum((-1, -2, 0), (1, 2, 3), top=(0.5, 0.25), shift=(0.3, -0.2), axis=2)
    planes = part.planes[0]
    halfspaces = torch.cat((planes[:, :3], -planes[:, 3:]), 1).double().numpy()
    corners = torch.tensor(HalfspaceIntersection(halfspaces, np.array([0.1, -0.1, 1.0])).intersections)
    apart = torch.cdist(corners, part.vertices[0].double())
    assert apart.amin(0).max() < 1e-5 and apart.amin(1).max() < 1e-5
    expected = torch.tensor([[-1, -2, 0], [1, 2, 0], [0.8, 0.3, 3], [-0.2, -0.7, 3]], dtype=torch.float64)
    assert torch.cdist(expected, corners).amin(1).max() < 1e-5


def test_a_box_casts_its_shadow_away_from_the_lamp():
    """Compare with geometry by hand: the shadow's centre of mass lies opposite the lamp."""
    cube = frustum((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2)).planes[:, None].expand(4, -1, -1, -1)
    azimuth = torch.tensor([0.0, math.pi / 2, math.pi, -math.pi / 2])
    tilt = torch.tensor(0.6)
    lamp = torch.stack((tilt.sin() * azimuth.cos(), tilt.sin() * azimuth.sin(), tilt.cos().expand(4)), 1)
    lit = Scene(cube, torch.ones(4, 1, 3), torch.eye(3).expand(4, 3, 3), torch.ones(4, 3), lamp, torch.ones(4, 3))
    bare = replace(lit, planes=cube * torch.tensor([1, 1, 1, 1e-3]))  # the cube shrunk to nothing
    darker = (render(bare, 64)[0].int() - render(lit, 64)[0].int()).sum(1).clamp(min=0).float()
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    row, column = ((darker * axis).sum((1, 2)) / darker.sum((1, 2)) for axis in (rows, columns))
    # The camera stands at +x and sees +y to its right: a lamp at +x throws the shadow up the image, and so on.
    assert row[0] < row[1] < row[2] and row[0] < row[3] < row[2]
    assert column[1] < column[0] < column[3] and column[1] < column[2] < column[3]


def test_hsv_is_that_of_the_standard_library():
    hues = torch.rand(50)
    expected = torch.tensor([colorsys.hsv_to_rgb(float(h), 0.6, 0.7) for h in hues])
    torch.testing.assert_close(hsv_to_rgb(hues, 0.6, 0.7), expected)


def test_hues_colour_floor_and_light():
    still = scene("mug", torch.eye(3)[None])
    plain = render(still, 32)[0].float().mean((2, 3))[0]
    bluer, _ = render(replace(still, floor=torch.tensor([[0.24, 0.24, 0.6]])), 32)
    assert bluer.float().mean((2, 3))[0, 2] > plain[2] + 20


def test_images_do_not_depend_on_their_batch():
    rotation = torch.tensor(Rotation.random(5, rng=0).as_matrix(), dtype=torch.float32)
    whole = scene("crane", rotation)
    parts = torch.cat([render(part, 32)[0] for part in whole.split(2)])
    assert (render(whole, 32)[0].int() - parts.int()).abs().max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_is_where_the_floor_s_colour_does_not_show(family: str):
    rotation = torch.tensor(Rotation.random(3, rng=0).as_matrix(), dtype=torch.float32)
    still = scene(family, rotation)
    other = replace(still, floor=torch.tensor([[0.1, 0.9, 0.9]]).expand(3, -1))
    images, masks = render(still, 32)
    changed = (images.int() - render(other, 32)[0].int()).abs().sum(1) > 0
    assert masks.shape == changed.shape and masks.dtype == torch.bool
    assert masks[~changed].all()  # all of the pixel is object
    assert changed[~masks].all()  # most of it is floor
    assert (masks & changed).sum() < 0.5 * masks.sum()  # edges
    assert 0.05 < masks.float().mean() < 0.6
