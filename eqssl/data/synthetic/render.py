"""A ray caster for unions of convex polytopes over a floor, batched over images on any device.

From one point of view o, the ray o + t d meets the plane n x = c at 1 / t = n d / (c - n o): the *inverse* depth is
linear in the direction. A convex part seen from outside is hit if the smallest inverse depth of the planes that face
the viewer is above the largest of the others. So one matrix product and a minimum find a ray's first hit; the same
two from the lamp's point of view find the shadows. B images, P parts, H half-spaces, R rays.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

CAMERA_DISTANCE = 2.5
CAMERA_POLAR_ANGLE = math.pi / 4
HALF_WIDTH = 0.64  # of the view at the origin
FLOOR_Z = -0.62
LAMP_DISTANCE = 4.0
LAMP_CONE = math.pi / 8  # full angle
AMBIENT, SUN, LAMP = 0.35, 0.65, 1.2
EXPOSURE = 1.3
SOFT_EDGE = 0.35  # share of the cone over which the lamp fades
SUN_DIRECTION = (0.35, -0.5, 0.79)
SUPERSAMPLING = 2
FAR = 1e4


@dataclass(frozen=True)
class Scene:
    """The contents of B images.

    Args:
        planes: float32 (B, P, H, 4), half-spaces n x <= c of each part as (n, c), in the object's frame.
        albedo: float32 (B, P, 3) in [0, 1].
        rotation: float32 (B, 3, 3), the object's pose.
        floor: float32 (B, 3), RGB in [0, 1].
        lamp_direction: float32 (B, 3), unit vectors from the origin.
        lamp: float32 (B, 3), RGB in [0, 1].
    """

    planes: Tensor
    albedo: Tensor
    rotation: Tensor
    floor: Tensor
    lamp_direction: Tensor
    lamp: Tensor

    def to(self, device: str) -> "Scene":
        return Scene(*(getattr(self, f.name).to(device) for f in fields(self)))

    def split(self, size: int) -> list["Scene"]:
        """Return parts of at most `size` images."""
        return [Scene(*part) for part in zip(*(getattr(self, f.name).split(size) for f in fields(self)), strict=True)]


def hsv_to_rgb(hue: Tensor, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """Return RGB (..., 3) in [0, 1] for hue in turns and saturation and value in [0, 1]."""
    k = (hue[..., None] * 6 + torch.tensor([5.0, 3.0, 1.0], device=hue.device)) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    saturation, value = (torch.as_tensor(v, device=hue.device)[..., None] for v in (saturation, value))
    return value * (1 - saturation * ramp)


def render(scene: Scene, size: int) -> tuple[Tensor, Tensor]:
    """Render a batch of scenes.

    Returns:
        Images, uint8 (B, 3, size, size), and masks of the object, bool (B, size, size): the pixels of which at least
        half of the rays hit it. Both on the scene's device.
    """
    planes = _turn(scene.planes, scene.rotation)
    camera, rays = _camera(size * SUPERSAMPLING, planes.device)
    inverse_depth, face = _first_hit(planes, camera.expand(len(planes), 3), rays)
    of_floor = rays[2] / (FLOOR_Z - camera[2])
    on_object = inverse_depth > of_floor
    points = camera[:, None] + rays / torch.maximum(inverse_depth, of_floor)[:, None]

    floor = torch.tensor([0.0, 0.0, 1.0, FLOOR_Z], device=planes.device).expand(len(planes), 1, 4)
    faces = torch.cat((planes.flatten(1, 2), floor), 1)
    albedo = torch.cat((scene.albedo.repeat_interleave(planes.shape[2], dim=1), scene.floor[:, None]), 1)
    face = torch.where(on_object, face, faces.shape[1] - 1)
    pixels = _shade(scene, planes, points, face, faces, albedo)
    both = torch.cat((pixels, on_object[:, None].float()), 1)
    both = both.unflatten(-1, (size, SUPERSAMPLING, size, SUPERSAMPLING)).mean((-3, -1))
    return both[:, :3].mul(255).round().to(torch.uint8), both[:, 3] >= 0.5


def _turn(planes: Tensor, rotation: Tensor) -> Tensor:
    """Return the half-spaces in the world frame."""
    normals = planes[..., :3].flatten(1, 2) @ rotation.transpose(1, 2)
    return torch.cat((normals.unflatten(1, planes.shape[1:3]), planes[..., 3:]), -1)


def _camera(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the camera's position (3,) and the directions (3, R) of its rays, row by row from the top left."""
    back = torch.tensor([math.sin(CAMERA_POLAR_ANGLE), 0.0, math.cos(CAMERA_POLAR_ANGLE)], device=device)
    right = torch.tensor([0.0, 1.0, 0.0], device=device)
    up = torch.linalg.cross(back, right)
    steps = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1) * (HALF_WIDTH / CAMERA_DISTANCE)
    y, x = torch.meshgrid(-steps, steps, indexing="ij")
    directions = x.flatten() * right[:, None] + y.flatten() * up[:, None] - back[:, None]
    return back * CAMERA_DISTANCE, directions


def _bounds(planes: Tensor, origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bounds, plane by plane, of the inverse depths at which a ray is inside a part.

    Args:
        planes: (B, P, H, 4), in the world frame.
        origin: (B, 3), where the rays start.
        directions: (3, R) or (B, 3, R).

    Returns:
        upper: (B, P, U, R), from the planes that face the origin; a ray is outside above any of them.
        lower: (B, P, L, R), from the others; a ray is outside below any of them.
        order: int64 (B, P, H), the indices of these planes, those that face the origin first.
    """
    slack = planes[..., 3] - (planes[..., :3] * origin[:, None, None]).sum(-1)
    slack, order = slack.sort(-1)
    faces_origin = slack < 0
    slope = planes[..., :3].gather(2, order[..., None].expand(-1, -1, -1, 3))
    slope = slope / torch.where(slack.abs() < 1e-6, 1e-6, slack)[..., None]
    # A plane of the other kind gets an unreachable bound through the homogeneous coordinate.
    facing = torch.cat((slope, torch.where(faces_origin, 0.0, FAR)[..., None]), -1)
    others = torch.cat((slope, torch.where(faces_origin, -FAR, 0.0)[..., None]), -1)
    most, least = int(faces_origin.sum(-1).max()), int(faces_origin.sum(-1).min())
    directions = torch.cat((directions, torch.ones_like(directions[..., :1, :])), -2)
    upper, lower = (
        (bound.flatten(1, 2) @ directions).unflatten(1, bound.shape[1:3])
        for bound in (facing[:, :, :most], others[:, :, least:])
    )
    return upper, lower, order


def _first_hit(planes: Tensor, origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse depth (B, R) of each ray's first hit, 0 for none, and its plane's index in P x H."""
    upper, lower, order = _bounds(planes, origin, directions)
    upper, plane = upper.min(2)
    upper = torch.where(upper >= lower.amax(2), upper, 0.0)
    inverse_depth, part = upper.max(1)
    rank = part * planes.shape[2] + plane.gather(1, part[:, None])[:, 0]
    number = order + torch.arange(0, order[0].numel(), planes.shape[2], device=order.device)[:, None]
    return inverse_depth, number.flatten(1).gather(1, rank)


def _shade(scene: Scene, planes: Tensor, points: Tensor, face: Tensor, faces: Tensor, albedo: Tensor) -> Tensor:
    """Return RGB (B, 3, R) in [0, 1): Lambert's law under an ambient light, a white sun and a coloured lamp.

    Args:
        scene: the scenes.
        planes: (B, P, H, 4), in the world frame.
        points: (B, 3, R), where the rays hit.
        face: int64 (B, R), the indices of the faces that they hit, of F.
        faces: (B, F, 4), their planes (n, c).
        albedo: (B, F, 3).
    """

    def of_face(values: Tensor) -> Tensor:
        return values.transpose(1, 2).gather(2, face[:, None].expand(-1, values.shape[2], -1))

    lamp = scene.lamp_direction * LAMP_DISTANCE
    beams = points - lamp[..., None]
    distance = beams.square().sum(1).sqrt()
    normals = faces[..., :3]
    # A point of the plane n x = c is n lamp - c below the lamp.
    height = of_face(normals @ lamp[..., None] - faces[..., 3:])[:, 0]
    cosine = -(scene.lamp_direction[:, None] @ beams)[:, 0] / distance
    edge = math.cos(LAMP_CONE / 2)
    cone = ((cosine - edge) / (SOFT_EDGE * (1 - edge))).clamp(0, 1)
    direct = (height / distance).clamp(min=0) * cone * ~_shadowed(planes, lamp, beams)
    sun = normals @ torch.tensor(SUN_DIRECTION, device=normals.device)[:, None]
    light = of_face(AMBIENT + SUN * sun.clamp(min=0)) + LAMP * scene.lamp[..., None] * direct[:, None]
    return 1 - torch.exp(-EXPOSURE * of_face(albedo) * light)


def _shadowed(planes: Tensor, lamp: Tensor, beams: Tensor) -> Tensor:
    """Return bool (B, R): whether a part lies between the lamp and the point that the beam ends at."""
    upper, lower, _ = _bounds(planes, lamp, beams)
    upper, lower = upper.amin(2), lower.amax(2)
    return ((upper >= lower) & (upper > 1.002)).any(1)
