"""The reconstruction branch: attention against NumPy, what each attention reads, views, use of each view."""

from typing import get_args

import numpy as np
import pytest
import torch

from eqssl.config import (
    DataConfig,
    EvaluateConfig,
    ReconAttention,
    ReconConfig,
    ReconView,
    RunConfig,
    TrainConfig,
)
from eqssl.models.reconstruction import (
    N_INTERMEDIATE,
    WITH_MAPS,
    Reconstruction,
    attention_maps,
    blend,
    own_and_other,
    positions,
    view_ablation,
)
from eqssl.training.loop import train
from tests.toy import make_batch, make_model

TWO_VIEWS = [attention for attention in get_args(ReconAttention) if attention != "autoencode"]


def kinds(attention):
    """Return the kinds of tokens that an attention takes."""
    return ["map"] if attention == "pooled-query" else ["map", "vector"]


def tokens(seed, batch=3, count=16, dim=8):
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(seed))


def inputs(batch=6, dim=8):
    equi = (tokens(0, batch, dim=dim), tokens(1, batch, dim=dim))
    counts = {"first": batch, "second": batch, "clean": batch, "intermediate": 2 * batch}
    pixels = {
        name: torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        for seed, (name, count) in enumerate(counts.items(), start=2)
    }
    return equi, pixels, torch.arange(batch) % 2 == 0


def assign(view, equi, pixels, pick):
    """Return own and other tokens and the target of a view, as the model chooses them."""
    target = pixels[view] if view in pixels else own_and_other(view, pixels["first"], pixels["second"], pick)[0]
    return *own_and_other(view, *equi, pick), target


def reconstruct(made, equi, pixels, pick):
    """Return the branch's reconstruction and its target."""
    own, other, target = assign(made.config.view, equi, pixels, pick)
    return made(own, other), target


def branch(dim=8, **options):
    torch.manual_seed(0)
    return Reconstruction(ReconConfig(**options), dim, (4, 4), 1, 16)


def test_attention_is_the_softmax_of_scaled_products_and_has_no_parameters():
    query, source = tokens(0).double(), tokens(1).double()
    q, k = query.numpy(), source.numpy()
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(8))
    expected = scores / scores.sum(-1, keepdims=True) @ k
    np.testing.assert_allclose(blend(query, source, "target-queries").numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("attention", TWO_VIEWS)
def test_both_views_reach_the_decoder(attention):
    own, other, places = tokens(0), tokens(1), positions((4, 4), 8)
    blended = blend(own, other, attention, places)
    assert not torch.allclose(blended, blend(tokens(5), other, attention, places))
    assert not torch.allclose(blended, blend(own, tokens(5), attention, places))


def test_auto_encoding_never_sees_the_other_view():
    own, other = tokens(0), tokens(1).requires_grad_()
    blended = blend(own, other, "autoencode")
    assert torch.equal(blended, blend(own, tokens(5), "autoencode")) and not blended.requires_grad
    (first, second), *rest = inputs()
    equi = first.requires_grad_(), second.requires_grad_()
    made = branch(view="second", attention="autoencode")
    image, target = reconstruct(made, equi, *rest)
    (image - target).square().mean().backward()
    assert first.grad is None or not first.grad.any()
    assert second.grad.any()
    assert view_ablation(made, *assign("second", equi, *rest))["recon/use_other"] == 0


def test_pooled_query_is_its_formula():
    own, other, places = tokens(0).double(), tokens(1).double(), positions((4, 4), 8).double()

    def normalised(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    q = 2 * places.numpy() + normalised(own.numpy().mean(1, keepdims=True))
    k = 2 * places.numpy() + normalised(other.numpy())
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(8))
    expected = scores / scores.sum(-1, keepdims=True) @ other.numpy()
    np.testing.assert_allclose(blend(own, other, "pooled-query", places).numpy(), expected, rtol=1e-10)


def test_positions_are_sines_and_cosines_of_row_and_column():
    places = positions((2, 3), 8)
    assert places.shape == (6, 8)
    row, column = 1, 2
    for turns, start in ((0.5, 0), (2.5, 1)):
        for place, half in (((row + 0.5) / 2, 0), ((column + 0.5) / 3, 4)):
            angle = 2 * np.pi * place * turns
            assert places[5, half + start] == pytest.approx(np.sin(angle), abs=1e-5)
            assert places[5, half + start + 2] == pytest.approx(np.cos(angle), abs=1e-5)
    assert positions((4, 4), 6).shape == (16, 6)  # a width that is no multiple of 4


def test_pooled_query_takes_one_vector_of_the_target_and_the_content_of_the_other_view():
    own, other, places = tokens(0), tokens(1), positions((4, 4), 8)
    shuffled = own[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(
        blend(shuffled, other, "pooled-query", places), blend(own, other, "pooled-query", places)
    )
    constant = torch.ones_like(other)
    torch.testing.assert_close(blend(own, constant, "pooled-query", places), constant)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_query_passes_its_share_of_the_gradient(share):
    own, other, places = tokens(0).requires_grad_(), tokens(1).requires_grad_(), positions((4, 4), 8)
    whole = torch.autograd.grad(blend(own, other, "pooled-query", places).square().sum(), (own, other))
    part = torch.autograd.grad(blend(own, other, "pooled-query", places, share).square().sum(), (own, other))
    torch.testing.assert_close(part[0], share * whole[0])
    torch.testing.assert_close(part[1], whole[1])


def test_target_queries_take_content_from_the_other_view_alone():
    own, other = tokens(0), tokens(1)
    constant = torch.ones_like(other)
    torch.testing.assert_close(blend(own, constant, "target-queries"), constant)
    assert not torch.allclose(blend(own, constant, "other-queries"), constant)
    assert not torch.allclose(blend(own, other, "residual"), blend(own, other, "target-queries"))


@pytest.mark.parametrize("view", get_args(ReconView))
def test_every_view_has_its_standardised_target_and_its_tokens(view):
    model, batch = make_model("none"), make_batch("none")
    batch = batch._replace(intermediate=torch.cat([batch.second] * N_INTERMEDIATE) / 2)
    model.reconstruction = branch(view=view)
    both = torch.rand(16, 16, model.encoder.dim)
    own, other, target = model.reconstruction_inputs(both, batch)
    equi, views = both[..., model.encoder.dim_inv :].chunk(2), (batch.first, batch.second)
    expected = {"both": torch.cat(views), "random": target * 0.3 + 0.5}
    torch.testing.assert_close(target, (expected.get(view, getattr(batch, view, None)) - 0.5) / 0.3)
    for i in range(8):
        second = int({"random": batch.pick_second[i], "first": False, "clean": False}.get(view, True))
        assert torch.equal(own[-8:][i], equi[second][i]) and torch.equal(other[-8:][i], equi[1 - second][i])
        if view == "random":
            assert torch.equal(target[i], (views[second][i] - 0.5) / 0.3)
    if view == "both":
        assert torch.equal(own[:8], equi[0]) and torch.equal(other[:8], equi[1])


@pytest.mark.parametrize("view", get_args(ReconView))
@pytest.mark.parametrize(("attention", "kind"), [(a, kind) for a in TWO_VIEWS for kind in kinds(a)])
def test_the_branch_learns_from_every_pairing(view, attention, kind):
    equi, *rest = inputs(dim=32)
    equi = tuple(e.requires_grad_() for e in equi)
    image, target = reconstruct(branch(dim=32, view=view, attention=attention, tokens=kind), equi, *rest)
    assert image.shape == target.shape
    (image - target).square().mean().backward()
    assert all(e.grad.abs().sum() > 0 for e in equi)


@pytest.mark.parametrize(("grid", "size"), [((8, 8), 64), ((4, 4), 28), ((14, 14), 224), ((4, 4), 32)])
def test_decoder_meets_the_image_size(grid, size):
    made = Reconstruction(ReconConfig(), 8, grid, 3, size)
    assert made.decoders[0](torch.randn(2, grid[0] * grid[1], 8)).shape == (2, 3, size, size)


def test_few_tokens_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"1 tokens at 32 px, and attention needs 4.*--encoder.stem small.*--data"):
        Reconstruction(ReconConfig(), 8, (1, 1), 3, 32)
    Reconstruction(ReconConfig(), 8, (2, 2), 3, 64)


def test_parts_of_the_vector_know_nothing_of_places_and_both_views_reach_them():
    own, other = inputs(dim=32)[0]
    made = branch(dim=32, view="first", tokens="vector", attention="target-queries")
    image = made(own, other)
    shuffled = own[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(made(shuffled, other), image)
    assert not torch.allclose(made(own.roll(1, 0), other), image)
    assert not torch.allclose(made(own, other.roll(1, 0)), image)


def test_a_vector_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"--recon.tokens vector cuts the equivariant part into 16.*24 channels"):
        branch(dim=24, tokens="vector", attention="concat")


def level(tokens):
    """Return images (B, 1, 16, 16) of one grey each, the mean of an image's tokens."""
    return tokens.mean((1, 2)).view(-1, 1, 1, 1).expand(-1, 1, 16, 16) * 4


def learn(made, equi, pixels, pick, steps):
    """Train the branch on one batch."""
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        image, wanted = reconstruct(made, equi, pixels, pick)
        (image - wanted).square().mean().backward()
        optimizer.step()


STEPS = {"map": (8, 60), "vector": (32, 150)}


@pytest.mark.parametrize("view", get_args(ReconView))
@pytest.mark.parametrize(
    ("attention", "kind"), [(a, kind) for a in TWO_VIEWS if a != "pooled-query" for kind in kinds(a)]
)
def test_what_takes_both_views_is_lost_when_the_features_of_either_are_shuffled(attention, view, kind):
    dim, steps = STEPS[kind]
    equi, _, pick = inputs(32, dim)
    wanted = level(equi[0]) + level(equi[1])
    pixels = {
        **dict.fromkeys(("first", "second", "clean"), wanted),
        "intermediate": wanted.repeat(N_INTERMEDIATE, 1, 1, 1),
    }
    made = branch(dim, view=view, attention=attention, tokens=kind)
    learn(made, equi, pixels, pick, steps)
    use = view_ablation(made, *assign(view, equi, pixels, pick))
    assert use["recon/error"] < 0.3
    assert use["recon/use_target"] > 0.2 and use["recon/use_other"] > 0.2


def leaked(view, attention, kind, dim, steps=60, batch=16):
    """Return error and use of the target's own view where the other one knows nothing, on images never seen."""

    def images(seed, count):
        equi = torch.randn(2, count, 16, dim, generator=torch.Generator().manual_seed(seed)).unbind()
        return equi, {"first": level(equi[0]), "second": level(equi[1])}, torch.arange(count) % 2 == 0

    made = branch(dim, view=view, attention=attention, tokens=kind)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for seed in range(1, steps + 1):
        optimizer.zero_grad()
        image, wanted = reconstruct(made, *images(seed, batch))
        (image - wanted).square().mean().backward()
        optimizer.step()
    use = view_ablation(made, *assign(view, *images(0, 256)))
    return use["recon/error"], use["recon/use_target"]


@pytest.mark.parametrize(("kind", "dim"), [("map", 8), ("vector", 32)])
@pytest.mark.parametrize("view", ["first", "second", "random", "both"])
def test_what_the_target_alone_knows_leaks_least_where_it_only_queries(view, kind, dim):
    """The error is 1 where nothing of the target's own content reaches the decoder, 0 where all of it does."""
    attentions = [attention for attention in get_args(ReconAttention) if kind in kinds(attention)]
    error, use = (dict(zip(attentions, values, strict=True)) for values in zip(
        *(leaked(view, attention, kind, dim) for attention in attentions), strict=True
    ))  # fmt: skip
    for query in {"target-queries", "pooled-query"} & set(attentions):
        assert error[query] > 0.9 and use[query] < 0.1
    assert error["autoencode"] < 0.6 and use["autoencode"] > 0.7
    assert 0.4 < error["residual"] < 0.75 and use["residual"] > 0.4  # its query also adds what the other view has
    assert max(error["other-queries"], error["concat"]) < 0.4 and min(use["other-queries"], use["concat"]) > 0.9


@pytest.mark.parametrize("same", [0, 1])
def test_use_of_a_view_is_zero_where_its_features_are_the_same_for_all_images(same):
    (e1, e2), _, pick = inputs(32)
    equi = [e1, e2]
    equi[same] = equi[same][:1].expand(32, -1, -1)
    pixels = dict.fromkeys(("first", "second"), level(equi[1 - same]))
    made = branch(view="second", attention="concat")
    learn(made, equi, pixels, pick, steps=100)
    use = view_ablation(made, *assign("second", equi, pixels, pick))
    names = ["recon/use_other", "recon/use_target"]  # the first view is the other one where the second is the target
    assert use["recon/error"] < 0.5
    assert use[names[same]] == pytest.approx(0, abs=1e-6)
    assert use[names[1 - same]] > 0.5


def test_a_short_training_comes_to_use_the_target_and_the_other_view(tmp_path):
    config = RunConfig(
        data=DataConfig(objects=96, cache=str(tmp_path)),
        recon=ReconConfig(weight=25.0),
        train=TrainConfig(epochs=24, batch_size=32, lr=8e-3),
        evaluate=EvaluateConfig(train_images=256, images=128),
    )
    metrics = train(config).metrics
    assert metrics["recon/error"] < 0.95
    assert metrics["recon/use_target"] > 0.05 and metrics["recon/use_other"] > 0.05


@pytest.mark.parametrize("count", [1, 2])
def test_use_of_views_is_not_measured_on_a_single_image_or_images_all_alike(count):
    equi, _, pick = inputs(count)
    pixels = dict.fromkeys(("first", "second"), torch.full((count, *level(equi[0]).shape[1:]), 0.5))
    assert view_ablation(branch(view="second"), *assign("second", equi, pixels, pick)) == {}


@pytest.mark.parametrize("attention", WITH_MAPS)
def test_attention_weights_average_the_tokens_to_the_input_of_the_decoder(attention):
    own, other = tokens(0), tokens(1)
    made = branch(attention=attention)
    weights = made.attention_weights(own, other)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 16))
    read = own if attention == "other-queries" else other
    torch.testing.assert_close(weights @ read, blend(own, other, attention, made.place))
    assert weights.std() > 0.01


@pytest.mark.parametrize("view", get_args(ReconView))
@pytest.mark.parametrize("attention", WITH_MAPS)
def test_maps_are_of_the_shown_positions_views_and_objects(view, attention):
    equi, pixels, pick = inputs()
    made, views = branch(view=view, attention=attention), (pixels["first"], pixels["second"])
    own, other, target = assign(view, equi, pixels, pick)
    shown = (x[-6:] for x in own_and_other(view, *views, pick))
    maps = attention_maps(made, own[-6:], other[-6:], target, *shown)
    assert maps["positions"].tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    image = made(own, other)[-6:]
    torch.testing.assert_close(maps["reconstruction"], image)
    assert torch.equal(maps["target"], target[-6:])
    second = {"random": pick, "first": ~pick & pick, "clean": ~pick & pick}.get(view, pick | ~pick)
    for i, of_second in enumerate(second.int().tolist()):
        own, other = equi[of_second][i : i + 1], equi[1 - of_second][i : i + 1]
        shown = made.attention_weights(own, other)[0, [5, 6, 9, 10]].unflatten(1, (4, 4))
        torch.testing.assert_close(maps["weights"][i], shown)
        assert torch.equal(maps["other"][i], views[1 - of_second][i])
        read = of_second if attention == "other-queries" else 1 - of_second
        assert torch.equal(maps["read"][i], views[read][i])
        before = int(second[i - 1])
        for name, swapped in {
            "target": (equi[before][[i - 1]], other),
            "other": (own, equi[1 - before][[i - 1]]),
        }.items():
            torch.testing.assert_close(maps[f"swapped_{name}"][[i]], made(*swapped)[-1:])
            assert (maps[f"swapped_{name}"][i] - image[i]).abs().max() > 1e-4


def test_an_object_swapped_with_itself_is_reconstructed_as_before():
    (first, second), pixels, _ = inputs()
    alike = second[:1].expand_as(second)  # of the targets; the other views differ
    maps = attention_maps(branch(), alike, first, pixels["second"], pixels["second"], pixels["first"])
    assert torch.equal(maps["swapped_target"], maps["reconstruction"])
    assert not torch.allclose(maps["swapped_other"], maps["reconstruction"])


def test_only_an_attention_from_position_to_position_has_maps():
    for attention in get_args(ReconAttention):
        assert branch(attention=attention).has_maps is (attention in WITH_MAPS)
    assert not branch(dim=32, attention="target-queries", tokens="vector").has_maps
