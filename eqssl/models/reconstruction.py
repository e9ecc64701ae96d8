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
POSITION_WEIGHT = 2.0  # of positions relative to layer-normalised features, see `queries_keys_values`
PERIODS = (0.5, 2.5)  # lowest and highest frequency of the positions, in periods per side of the map
WITH_MAPS = ("pooled-query", "target-queries", "other-queries")  # the decoder sees nothing but what the attention reads
MAPPED = (0.3, 0.7)  # rows and columns of the positions that `attention_maps` shows, in sides of the map


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


def queries_keys_values(
    own: Tensor, other: Tensor, attention: str, place: Tensor | None = None, query_gradient: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K and V of the attention softmax(Q K^T / sqrt(D)) V, without learned parameters.

    Arguments of scaled dot-product attention (arXiv 1706.03762, Eq. 1). Using no projections is one reading of
    "without additional parameters" (arXiv 2412.03314, abstract); its formula is unknown.

    `pooled-query`: from every position of the target, with one vector of the target, to the other view: Q = w P +
    ln(mean of own), K = w P + ln(other), V = other, where P are the positions, w = `POSITION_WEIGHT` and ln normalises
    each token. The decoder sees only tokens of the other view, and the target gives one vector instead of T x T
    weights, which can encode an image by themselves. It was chosen among parameter-free formulas by measurements, see
    docs/method.md.

    Args:
        own: equivariant tokens of the target view, (B, T, D).
        other: those of the other view, (B, T, D).
        attention: `pooled-query`; `target-queries`, `residual`: Q = own, K = V = other; `other-queries`: the reverse.
        place: P of `pooled-query`, (T, D), see `positions`.
        query_gradient: share of the gradient that passes through the pooled vector of `pooled-query`.
    """
    if attention == "other-queries":
        return other, own, own
    if attention != "pooled-query":
        return own, other, other
    assert place is not None
    pooled = F.layer_norm(own.mean(1, keepdim=True), own.shape[-1:])
    if query_gradient < 1:
        pooled = query_gradient * pooled + (1 - query_gradient) * pooled.detach()
    weighted = POSITION_WEIGHT * place
    return weighted + pooled, weighted + F.layer_norm(other, own.shape[-1:]), other


def blend(
    own: Tensor, other: Tensor, attention: str, place: Tensor | None = None, query_gradient: float = 1.0
) -> Tensor:
    """Return the input tokens of the decoder; the attention of arXiv 2412.03314 is unknown.

    Args:
        own, other, place, query_gradient: see `queries_keys_values`.
        attention: see there; `residual` adds the query to its answer; `concat`: no attention (arXiv 2503.18753);
            `autoencode`: only own tokens.

    Returns:
        (B, T, D), for `concat` (B, T, 2 D).
    """
    if attention == "autoencode":
        return own
    if attention == "concat":
        return torch.cat([own, other], dim=-1)
    answer = F.scaled_dot_product_attention(*queries_keys_values(own, other, attention, place, query_gradient))
    return own + answer if attention == "residual" else answer


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
        has_maps: whether `attention_maps` can be drawn.

    Raises:
        ValueError: with fewer than 4 tokens, on which attention degenerates to copying.
    """

    place: Tensor | None

    def __init__(self, config: ReconConfig, dim: int, grid: tuple[int, int], channels: int, image_size: int):
        super().__init__()
        self.config, self.grid, vector = config, grid, config.tokens == "vector"
        self.has_maps = config.attention in WITH_MAPS and not vector  # parts of a vector have no place in the image
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

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return reconstructions (B, C, S, S), for `intermediate` (N_INTERMEDIATE x B, C, S, S).

        Args:
            own, other: equivariant tokens of the target's own view and of the other one, (B, T, D).
        """
        if self.config.tokens == "vector":
            own, other = (tokens.mean(1).unflatten(1, (VECTOR_PARTS, -1)) for tokens in (own, other))
        tokens = blend(own, other, self.config.attention, self.place, self.config.query_gradient)
        return torch.cat([decoder(tokens) for decoder in self.decoders])

    def attention_weights(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the weights of the attention, (B, T, T): a row for every position of the reconstruction.

        Args:
            own, other: as in `forward`; only if `has_maps`.
        """
        config = self.config
        query, key, _ = queries_keys_values(own, other, config.attention, self.place, config.query_gradient)
        return F.softmax(query @ key.mT / math.sqrt(key.shape[-1]), dim=-1)


def own_and_other(view: str, first: Tensor, second: Tensor, pick_second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of the target's own view and those of the other one.

    `clean` belongs to the first view, as its unaugmented image; `intermediate` to the second, as the end of the way
    (arXiv 2503.18753).

    Args:
        view: see `ReconConfig`.
        first, second: tokens or pixels of both views, (B, ...).
        pick_second: bool (B,), whether the second view is the target if `view` is `random`.

    Returns:
        (B, ...) each; for `both` (2 B, ...).
    """
    if view in ("first", "clean"):
        return first, second
    if view in ("second", "intermediate"):
        return second, first
    if view == "both":
        return torch.cat([first, second]), torch.cat([second, first])
    pick = pick_second.view(-1, *[1] * (first.ndim - 1))
    return torch.where(pick, second, first), torch.where(pick, first, second)


@torch.no_grad()
def view_ablation(branch: Reconstruction, own: Tensor, other: Tensor, target: Tensor) -> dict[str, float]:
    """Return how much the reconstruction relies on each view's features.

    The features of one view are permuted across the batch (rolled by one); the use of that view is the rise of the
    error, divided by the variance of the target. It is 0 for a view that the branch ignores.

    Args:
        branch: the trained branch.
        own, other: see `Reconstruction.forward`; neighbours in the batch show different objects.
        target: standardised pixels, of the shape of the reconstruction.

    Returns:
        `recon/error`: mean squared error / variance of the target, 1 for the mean image at best;
        `recon/use_target`: use of the target's own features; `recon/use_other`: use of the other view's. Empty for
        images that are all alike.
    """
    variance = (target - target.mean(0)).square().mean()
    if not variance:
        return {}

    def error(own: Tensor, other: Tensor) -> float:
        return float(F.mse_loss(branch(own, other), target) / variance)

    base = error(own, other)
    return {
        "recon/error": base,
        "recon/use_target": error(own.roll(1, 0), other) - base,
        "recon/use_other": error(own, other.roll(1, 0)) - base,
    }


@torch.no_grad()
def attention_maps(
    branch: Reconstruction, own: Tensor, other: Tensor, target: Tensor, own_view: Tensor, other_view: Tensor
) -> dict[str, Tensor]:
    """Return attention maps of four positions, and reconstructions with one view's tokens of another object.

    For `intermediate`, those of the last B targets.

    Args:
        branch: the trained branch, which `has_maps`.
        own, other, target: see `view_ablation`.
        own_view, other_view: standardised pixels of the target's own view and of the other one, (B, C, S, S).

    Returns:
        `positions`: int64 (4, 2), row and column of a token; `weights`: (B, 4, rows, columns), each map sums to 1;
        images (B, C, S, S): `target`; `other`: the other view; `read`: the view that the weights belong to, which is
        the target's own one under `other-queries`, else the other one; `reconstruction`; `swapped_target`,
        `swapped_other`: with the target's tokens, the other view's tokens of the previous object, for the first those
        of the last.
    """
    count = len(own)
    row, column = (torch.tensor([round(share * (n - 1)) for share in MAPPED]) for n in branch.grid)
    places = torch.cartesian_prod(row, column)
    weights = branch.attention_weights(own, other).unflatten(2, branch.grid)
    return {
        "positions": places,
        "weights": weights[:, places[:, 0] * branch.grid[1] + places[:, 1]],
        "target": target[-count:],
        "other": other_view,
        "read": own_view if branch.config.attention == "other-queries" else other_view,
        "reconstruction": branch(own, other)[-count:],
        "swapped_target": branch(own.roll(1, 0), other)[-count:],
        "swapped_other": branch(own, other.roll(1, 0))[-count:],
    }
