"""The reconstruction branch of arXiv 2412.03314: blend the equivariant tokens of two views, reconstruct one of them.

Known from its abstract and short reviews: a shared encoder, features split into two halves, a cross-attention that
blends those of two augmented views, one of which is reconstructed, "without additional parameters". Unknown are the
attention's formula and projections, the decoder, the target view, and the weight of the loss. Attention, target and
weight are therefore options; decoder and intermediate targets are those of the same group's arXiv 2503.18753.
One difference is deliberate: the way to the second view starts from the image and is its whole augmentation; in theirs
it starts from an augmented image, u = A2(I), and is the transformation that follows.

B batch, T tokens, D width of the equivariant part, C channels, S side of the image in pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import ReconConfig
from eqssl.views import N_INTERMEDIATE

MIN_TOKENS = 4  # of a map: with fewer, attention can only copy
VECTOR_PARTS = 16  # parts of the pooled vector
POSITION_WEIGHT = 2.0  # of positions relative to layer-normalised features, see `pooled_query`
PERIODS = (0.5, 2.5)  # lowest and highest frequency of the positions, in periods per side of the map
WITH_MAPS = ("pooled-query", "target-queries", "other-queries")  # the decoder sees nothing but what the attention reads
MAPPED = (0.3, 0.7)  # rows and columns of the positions that `attention_maps` shows, in sides of the map

# Equivariant tokens of both views, (B, T, D) each; name -> standardised pixels, those of `first`, `second` and `clean`
# (the unaugmented image of the first view) (B, C, S, S), and `intermediate` (N_INTERMEDIATE x B, C, S, S), one step of
# the way after another; bool (B,), whether the second view is the target if `view` is `random`.
Inputs = tuple[tuple[Tensor, Tensor], dict[str, Tensor], Tensor]


def cross_attention(query: Tensor, source: Tensor, values: Tensor | None = None) -> Tensor:
    """Return the cross-attention of every query token to the source tokens, without learned parameters.

    softmax(Q K^T / sqrt(D)) V with Q = query and K = V = source (arXiv 1706.03762, Eq. 1). Using no
    projections is one reading of "without additional parameters" (arXiv 2412.03314, abstract); its formula is unknown.

    Args:
        query, source: float (B, T, D).
        values: V where it is not the source, (B, T, any).

    Returns:
        float (B, T, D), or as wide as the values.
    """
    return F.scaled_dot_product_attention(query, source, source if values is None else values)


def positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Return sinusoidal positions of a map's tokens: sines and cosines of the row, then of the column.

    Args:
        grid: rows and columns.
        dim: D.

    Returns:
        float32 (T, D) in [-1, 1], row by row; the frequencies rise linearly over `PERIODS`.
    """
    frequencies = torch.linspace(*PERIODS, math.ceil(dim / 4))
    rows, columns = (2 * math.pi * (torch.arange(n)[:, None] + 0.5) / n * frequencies for n in grid)
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (rows, columns))
    return torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], dim=1)[:, :dim]


def pooled_query(
    own: Tensor, other: Tensor, place: Tensor, query_gradient: float = 1.0, values: Tensor | None = None
) -> Tensor:
    """Return the attention from every position of the target, with one vector of the target, to the other view.

    softmax(Q K^T / sqrt(D)) V with Q = w P + ln(mean of own), K = w P + ln(other), V = other, where P are the
    positions, w = `POSITION_WEIGHT` and ln normalises each token. The decoder sees only tokens of the other view, and
    the target gives one vector instead of T x T weights, which can encode an image by themselves. The formula of
    arXiv 2412.03314 is unknown; this one was chosen among parameter-free ones by measurements, see docs/method.md.

    Args:
        own: equivariant tokens of the target view, (B, T, D).
        other: those of the other view, (B, T, D).
        place: P, (T, D), see `positions`.
        query_gradient: share of the gradient that passes through the pooled vector.
        values: V where it is not `other`, (B, T, any).

    Returns:
        float (B, T, D), or as wide as the values.
    """
    dim = own.shape[-1:]
    pooled = F.layer_norm(own.mean(1, keepdim=True), dim)
    if query_gradient < 1:
        pooled = query_gradient * pooled + (1 - query_gradient) * pooled.detach()
    weighted = POSITION_WEIGHT * place
    keys = weighted + F.layer_norm(other, dim)
    return F.scaled_dot_product_attention(weighted + pooled, keys, other if values is None else values)


def blend(
    own: Tensor,
    other: Tensor,
    attention: str,
    place: Tensor | None = None,
    query_gradient: float = 1.0,
    values: Tensor | None = None,
) -> Tensor:
    """Return the input tokens of the decoder; the attention of arXiv 2412.03314 is unknown.

    Args:
        own: equivariant tokens of the target view, (B, T, D).
        other: those of the other view, (B, T, D).
        attention: `pooled-query`: see that function; `target-queries`: the content comes from the other view, the
            target gives T x T attention weights; `other-queries`: the reverse; `residual`: the query is added to its
            answer; `concat`: no attention (arXiv 2503.18753); `autoencode`: only own tokens.
        place, query_gradient: of `pooled_query`.
        values: of the attention, in place of the tokens that it reads, (B, T, any); for `WITH_MAPS`.

    Returns:
        (B, T, D), for `concat` (B, T, 2 D), or as wide as the values.
    """
    if attention == "pooled-query":
        assert place is not None
        return pooled_query(own, other, place, query_gradient, values)
    if attention == "target-queries":
        return cross_attention(own, other, values)
    if attention == "other-queries":
        return cross_attention(other, own, values)
    if attention == "residual":
        return own + cross_attention(own, other)
    if attention == "autoencode":
        return own
    return torch.cat([own, other], dim=-1)


class Decoder(nn.Module):
    """One linear and four convolutional layers, deliberately weak so that the encoder does the work (2503.18753).

    Args:
        dim: width of a token, or of the whole vector.
        grid: rows and columns of the map that the convolutions start from.
        channels: channels of the image.
        image_size: S.
        width: channels of the hidden layers.
        vector: whether the tokens are the parts of one vector, which codes every position of the map.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], channels: int, image_size: int, width: int, vector: bool = False
    ):
        super().__init__()
        self.grid, self.size, self.vector = grid, (image_size, image_size), vector
        self.linear = nn.Linear(dim, width * grid[0] * grid[1] if vector else width)
        # Upsampled by 2, the rest by a pixel shuffle: convolutions at full resolution would cost more than the encoder.
        shuffle = max(1, math.ceil(image_size / (2 * min(grid))))
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, channels * shuffle**2, 3, padding=1), nn.PixelShuffle(shuffle),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the image, standardised pixels (B, C, S, S), from tokens (B, T, D)."""
        if self.vector:
            maps = self.linear(tokens.flatten(1)).unflatten(1, (-1, *self.grid))
        else:
            maps = self.linear(tokens).transpose(1, 2).unflatten(2, self.grid)
        image = self.convs(maps)
        return image if image.shape[-2:] == self.size else F.interpolate(image, size=self.size, mode="bilinear")


class Reconstruction(nn.Module):
    """Attention and decoder for one target view, see the top of this file.

    Args:
        config: view, attention, query_gradient, tokens and width.
        dim: D.
        grid: rows and columns of the token map.
        channels, image_size: of the image.

    Attributes:
        images: names of the images of a batch that are targets.
        has_maps: whether `attention_maps` can be drawn.

    Raises:
        ValueError: with fewer than 4 tokens, on which attention degenerates to copying.
    """

    place: Tensor | None

    def __init__(self, config: ReconConfig, dim: int, grid: tuple[int, int], channels: int, image_size: int):
        super().__init__()
        self.config, self.grid, vector = config, grid, config.tokens == "vector"
        self.has_maps = config.attention in WITH_MAPS and not vector  # parts of a vector have no place in the image
        self.images = ("first", "second") if config.view in ("both", "random") else (config.view,)
        if math.prod(grid) < MIN_TOKENS and not vector:
            raise ValueError(
                f"the encoder gives {math.prod(grid)} tokens at {image_size} px, and attention needs {MIN_TOKENS} or "
                "more: take a ResNet's --encoder.stem small, a smaller --encoder.output-stride or a larger "
                "--data.image-size"
            )
        if vector and dim % VECTOR_PARTS:
            raise ValueError(
                f"--recon.tokens vector cuts the equivariant part into {VECTOR_PARTS}, and it has {dim} channels: take "
                f"--encoder.equi-fraction so that it has a multiple of {VECTOR_PARTS}"
            )
        place = positions(grid, dim) if config.attention == "pooled-query" else None
        self.register_buffer("place", place, persistent=False)
        dim = dim * (2 if config.attention == "concat" else 1)
        targets = N_INTERMEDIATE if config.view == "intermediate" else 1
        self.decoders = nn.ModuleList(
            Decoder(dim, grid, channels, image_size, config.width, vector) for _ in range(targets)
        )

    def forward(
        self, equi: tuple[Tensor, Tensor], pixels: dict[str, Tensor], pick_second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and its target, both (B', C, S, S).

        B' is 2 B for the views `both` and `intermediate`, else B.

        Args:
            equi, pixels, pick_second: see `Inputs`.
        """
        own, other, target = assign(self.config.view, equi, pixels, pick_second)
        return self.decode(own, other), target

    def decode(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the images (B', C, S, S) decoded from the tokens (B, T, D) of the target's own view and the other."""
        if self.config.tokens == "vector":
            own, other = (tokens.mean(1).unflatten(1, (VECTOR_PARTS, -1)) for tokens in (own, other))
        tokens = blend(own, other, self.config.attention, self.place, self.config.query_gradient)
        return torch.cat([decoder(tokens) for decoder in self.decoders])

    def attention_weights(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the weights of the attention in `decode`, (B, T, T): a row for every position of the reconstruction.

        They are the attention's answer where the values are the identity; only if `has_maps`.
        """
        identity = torch.eye(own.shape[1], dtype=own.dtype, device=own.device).expand(len(own), -1, -1)
        return blend(own, other, self.config.attention, self.place, self.config.query_gradient, identity)


def assign(
    view: str, equi: tuple[Tensor, Tensor], pixels: dict[str, Tensor], pick_second: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's own tokens, the other view's tokens and the target for a choice of view.

    `clean` belongs to the first view, as its unaugmented image; `intermediate` to the second, as the end of the way
    (arXiv 2503.18753).

    Args:
        view: see `ReconConfig`.
        equi, pixels, pick_second: see `Inputs`.

    Returns:
        Tokens (B, T, D) twice and the target (B, C, S, S); for `both` all three with 2 B, for `intermediate` the target
        with N_INTERMEDIATE x B.
    """
    e1, e2 = equi
    if view in ("first", "clean"):
        return e1, e2, pixels[view]
    if view in ("second", "intermediate"):
        return e2, e1, pixels[view]
    v1, v2 = pixels["first"], pixels["second"]
    if view == "both":
        return torch.cat([e1, e2]), torch.cat([e2, e1]), torch.cat([v1, v2])
    by_token, by_pixel = pick_second[:, None, None], pick_second[:, None, None, None]
    return torch.where(by_token, e2, e1), torch.where(by_token, e1, e2), torch.where(by_pixel, v2, v1)


@torch.no_grad()
def view_ablation(
    branch: Reconstruction, equi: tuple[Tensor, Tensor], pixels: dict[str, Tensor], pick_second: Tensor
) -> dict[str, float]:
    """Return how much the reconstruction relies on each view's features.

    The features of one view are permuted across the batch (rolled by one); the use of that view is the rise of the
    error, divided by the variance of the target. It is 0 for a view that the branch ignores.

    Args:
        branch: the trained branch.
        equi, pixels, pick_second: see `Inputs`; neighbours in the batch show different objects.

    Returns:
        `recon/error`: mean squared error / variance of the target, 1 for the mean image at best;
        `recon/use_target`: use of the target's own features; `recon/use_other`: use of the other view's. Empty for
        a single image, or images that are all alike.
    """
    own, other, target = assign(branch.config.view, equi, pixels, pick_second)
    variance = (target - target.mean(0)).square().mean()
    if len(pick_second) < 2 or not variance:
        return {}

    def error(own: Tensor, other: Tensor) -> float:
        return float(F.mse_loss(branch.decode(own, other), target) / variance)

    base = error(own, other)
    return {
        "recon/error": base,
        "recon/use_target": error(own.roll(1, 0), other) - base,
        "recon/use_other": error(own, other.roll(1, 0)) - base,
    }


@torch.no_grad()
def attention_maps(
    branch: Reconstruction,
    equi: tuple[Tensor, Tensor],
    pixels: dict[str, Tensor],
    pick_second: Tensor,
    views: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Return attention maps of four positions, and reconstructions with one view's tokens of another object.

    For `both` and `intermediate`, those of the last B targets.

    Args:
        branch: the trained branch, which `has_maps`.
        equi, pixels, pick_second: see `Inputs`; neighbours in the batch show different objects.
        views: standardised pixels of the first and the second view, (B, C, S, S).

    Returns:
        `positions`: int64 (4, 2), row and column of a token; `weights`: (B, 4, rows, columns), each map sums to 1;
        images (B, C, S, S): `target`; `other`: the other view; `read`: the view that the weights belong to, which is
        the target's own one under `other-queries`, else the other one; `reconstruction`; `swapped_target`,
        `swapped_other`: with the target's tokens, the other view's tokens of the previous object, for the first those
        of the last.
    """
    count, view = len(pick_second), branch.config.view
    own, other, target = (x[-count:] for x in assign(view, equi, pixels, pick_second))
    flat = views[0].flatten(2), views[1].flatten(2)
    shown = assign(view, flat, pixels, pick_second)[:2]
    own_view, other_view = (x[-count:].unflatten(2, target.shape[-2:]) for x in shown)
    row, column = (torch.tensor([round(share * (n - 1)) for share in MAPPED]) for n in branch.grid)
    places = torch.cartesian_prod(row, column)
    weights = branch.attention_weights(own, other).unflatten(2, branch.grid)
    return {
        "positions": places,
        "weights": weights[:, places[:, 0] * branch.grid[1] + places[:, 1]],
        "target": target,
        "other": other_view,
        "read": own_view if branch.config.attention == "other-queries" else other_view,
        "reconstruction": branch.decode(own, other)[-count:],
        "swapped_target": branch.decode(own.roll(1, 0), other)[-count:],
        "swapped_other": branch.decode(own, other.roll(1, 0))[-count:],
    }
