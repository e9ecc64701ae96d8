"""The reconstruction branch: attention against NumPy, roles, views, use of each view."""

from typing import get_args

import numpy as np
import pytest
import torch

from eqssl.config import ReconConfig, ReconRoles, ReconView
from eqssl.reconstruction import STOPS, Reconstruction, assign, blend, cross_attention, use_of_views
from tests.toy import make_batch, make_model


def tokens(seed, batch=3, count=16, dim=8):
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(seed))


def inputs(batch=6, dim=8):
    equi = (tokens(0, batch, dim=dim), tokens(1, batch, dim=dim))
    counts = {"first": batch, "second": batch, "clean": batch, "partway": 2 * batch}
    pixels = {
        name: torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        for seed, (name, count) in enumerate(counts.items(), start=2)
    }
    return equi, pixels, torch.arange(batch) % 2 == 0


def branch(dim=8, **options):
    torch.manual_seed(0)
    return Reconstruction(ReconConfig(**options), dim, (4, 4), 1, 16)


def test_attention_is_the_softmax_of_scaled_products_and_has_no_parameters():
    query, source = tokens(0).double(), tokens(1).double()
    q, k = query.numpy(), source.numpy()
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(8))
    expected = scores / scores.sum(-1, keepdims=True) @ k
    np.testing.assert_allclose(cross_attention(query, source).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("roles", get_args(ReconRoles))
def test_both_views_reach_the_decoder(roles):
    own, other = tokens(0), tokens(1)
    blended = blend(own, other, roles)
    assert not torch.allclose(blended, blend(tokens(5), other, roles))
    assert not torch.allclose(blended, blend(own, tokens(5), roles))


def test_target_queries_take_content_from_the_other_view_alone():
    own, other = tokens(0), tokens(1)
    constant = torch.ones_like(other)
    torch.testing.assert_close(blend(own, constant, "target-queries"), constant)
    assert not torch.allclose(blend(own, constant, "other-queries"), constant)
    assert not torch.allclose(blend(own, other, "residual"), blend(own, other, "target-queries"))


def test_every_view_has_its_target_and_its_roles():
    equi, pixels, pick = inputs()
    views = pixels["first"], pixels["second"]
    expected = {**pixels, "both": torch.cat(views), "intermediate": pixels["partway"]}
    for view in get_args(ReconView):
        if view != "random":
            assert torch.equal(assign(view, equi, pixels, pick)[2], expected[view])
    own, other, target = assign("random", equi, pixels, pick)
    for i, second in enumerate(pick):
        assert torch.equal(target[i], views[int(second)][i])
        assert torch.equal(own[i], equi[int(second)][i]) and torch.equal(other[i], equi[1 - int(second)][i])


@pytest.mark.parametrize("view", get_args(ReconView))
def test_a_model_standardises_the_images_that_the_target_is_made_of_and_no_other(view):
    model, batch = make_model("none"), make_batch("none")
    batch = batch._replace(partway=torch.cat([batch.second] * STOPS) / 2)
    model.reconstruction = branch(view=view)
    tokens = torch.zeros(16, 16, model.encoder.dim)
    _, pixels, pick = model.reconstruction_inputs(tokens, batch)
    own = {"both": ("first", "second"), "random": ("first", "second"), "intermediate": ("partway",)}.get(view, (view,))
    assert tuple(pixels) == own
    for name, standardised in pixels.items():
        assert torch.equal(standardised, (getattr(batch, name) - 0.5) / 0.3)
    assert pick is batch.pick_second


@pytest.mark.parametrize("kind", ["map", "vector"])
@pytest.mark.parametrize("view", get_args(ReconView))
@pytest.mark.parametrize("roles", get_args(ReconRoles))
def test_the_branch_learns_from_every_pairing(view, roles, kind):
    equi, *rest = inputs(dim=32)
    equi = tuple(e.requires_grad_() for e in equi)
    image, target = branch(dim=32, view=view, roles=roles, tokens=kind)(equi, *rest)
    assert image.shape == target.shape
    (image - target).square().mean().backward()
    assert all(e.grad.abs().sum() > 0 for e in equi)


@pytest.mark.parametrize(("grid", "size"), [((8, 8), 64), ((4, 4), 28), ((14, 14), 224), ((4, 4), 32)])
def test_decoder_meets_the_image_size(grid, size):
    made = Reconstruction(ReconConfig(), 8, grid, 3, size)
    assert made.decoders[0](torch.randn(2, grid[0] * grid[1], 8)).shape == (2, 3, size, size)


def test_few_tokens_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"4 tokens at 64 px.*--encoder.stem small.*--data.image-size"):
        Reconstruction(ReconConfig(), 8, (2, 2), 3, 64)


def test_parts_of_the_vector_know_nothing_of_places_and_both_views_reach_them():
    (own, other), *rest = inputs(dim=32)
    made = branch(dim=32, view="first", tokens="vector")
    image = made((own, other), *rest)[0]
    shuffled = own[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(made((shuffled, other), *rest)[0], image)
    assert not torch.allclose(made((own.roll(1, 0), other), *rest)[0], image)
    assert not torch.allclose(made((own, other.roll(1, 0)), *rest)[0], image)


def test_a_vector_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"--recon.tokens vector cuts the equivariant part into 16.*24 channels"):
        branch(dim=24, tokens="vector")


def level(tokens):
    """Return images (B, 1, 16, 16) of one grey each, the mean of an image's tokens."""
    return tokens.mean((1, 2)).view(-1, 1, 1, 1).expand(-1, 1, 16, 16) * 4


def learn(made, equi, pixels, pick, steps):
    """Train the branch on one batch."""
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        image, wanted = made(equi, pixels, pick)
        (image - wanted).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("kind", "dim", "steps"), [("map", 8, 60), ("vector", 32, 150)])
@pytest.mark.parametrize("view", get_args(ReconView))
@pytest.mark.parametrize("roles", get_args(ReconRoles))
def test_what_takes_both_views_is_lost_when_the_features_of_either_are_shuffled(roles, view, kind, dim, steps):
    equi, _, pick = inputs(32, dim)
    wanted = level(equi[0]) + level(equi[1])
    pixels = {**dict.fromkeys(("first", "second", "clean"), wanted), "partway": wanted.repeat(STOPS, 1, 1, 1)}
    made = branch(dim, view=view, roles=roles, tokens=kind)
    learn(made, equi, pixels, pick, steps)
    use = use_of_views(made, equi, pixels, pick)
    assert use["recon/error"] < 0.3
    assert use["recon/use_target"] > 0.2 and use["recon/use_other"] > 0.2


def leaked(view, roles, kind, dim, steps=60, batch=16):
    """Return error and use of the target's own view where the other one knows nothing, on images never seen."""

    def images(seed, count):
        equi = torch.randn(2, count, 16, dim, generator=torch.Generator().manual_seed(seed)).unbind()
        return equi, {"first": level(equi[0]), "second": level(equi[1])}, torch.arange(count) % 2 == 0

    made = branch(dim, view=view, roles=roles, tokens=kind)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for seed in range(1, steps + 1):
        optimizer.zero_grad()
        image, wanted = made(*images(seed, batch))
        (image - wanted).square().mean().backward()
        optimizer.step()
    use = use_of_views(made, *images(0, 256))
    return use["recon/error"], use["recon/use_target"]


@pytest.mark.parametrize(("kind", "dim"), [("map", 8), ("vector", 32)])
@pytest.mark.parametrize("view", ["first", "second", "random", "both"])
def test_what_the_target_alone_knows_leaks_least_where_it_only_queries(view, kind, dim):
    """The error is 1 where nothing of the target's own content reaches the decoder, 0 where all of it does."""
    error, use = (dict(zip(get_args(ReconRoles), values, strict=True)) for values in zip(
        *(leaked(view, roles, kind, dim) for roles in get_args(ReconRoles)), strict=True
    ))  # fmt: skip
    assert error["target-queries"] > 0.9 and use["target-queries"] < 0.1
    assert 0.4 < error["residual"] < 0.75 and use["residual"] > 0.4  # its query also adds what the other view has
    assert max(error["other-queries"], error["concat"]) < 0.4 and min(use["other-queries"], use["concat"]) > 0.9


@pytest.mark.parametrize("same", [0, 1])
def test_use_of_a_view_is_zero_where_its_features_are_the_same_for_all_images(same):
    (e1, e2), _, pick = inputs(32)
    equi = [e1, e2]
    equi[same] = equi[same][:1].expand(32, -1, -1)
    pixels = dict.fromkeys(("first", "second"), level(equi[1 - same]))
    made = branch(view="second", roles="concat")
    learn(made, tuple(equi), pixels, pick, steps=100)
    use = use_of_views(made, tuple(equi), pixels, pick)
    names = ["recon/use_other", "recon/use_target"]  # the first view is the other one where the second is the target
    assert use["recon/error"] < 0.5
    assert use[names[same]] == pytest.approx(0, abs=1e-6)
    assert use[names[1 - same]] > 0.5
