"""iBOT against NumPy and lightly: masks, patch loss, centre; real runs on a small vision transformer."""

import numpy as np
import pytest
import torch

from eqssl.config import MethodConfig
from eqssl.methods import build_method
from eqssl.methods.base import Sizes
from eqssl.methods.dino import Centre
from eqssl.methods.ibot import IBOT, ibot_loss
from eqssl.models.model import Model
from eqssl.training import checkpoint
from eqssl.training.context import LocalContext
from eqssl.training.loop import train
from tests.toy import make_batch, make_model
from tests.training.test_loop import Stop, StopAfter, configuration, toy

N, T, K = 6, 10, 7
rng = np.random.default_rng(0)
STUDENT, TEACHER = (torch.tensor(x) for x in rng.normal(size=(2, N, T, K)))
MASK = torch.tensor(rng.random((N, T)) < 0.3)
MASK[2] = False


def test_loss_is_the_papers_averaged_in_every_view_and_over_all_views():
    total = 0.0
    for view in range(N):
        losses = []
        for patch in range(T):
            if MASK[view, patch]:
                target, predicted = np.exp(TEACHER[view, patch] / 0.05), np.exp(STUDENT[view, patch] / 0.1)
                losses.append(-float(target / target.sum() @ np.log(predicted / predicted.sum())))
        total += np.mean(losses) if losses else 0.0
    targets = torch.softmax(TEACHER[MASK] / 0.05, -1)
    assert ibot_loss(STUDENT[MASK], targets, MASK).item() == pytest.approx(total / N, rel=1e-10)


def test_loss_is_lightlys():
    """Their centre follows the masked patches alone; ours, as the authors', all patches, so it is compared at 0."""
    from lightly.loss.ibot_loss import IBOTPatchLoss

    theirs = IBOTPatchLoss(K, student_temp=0.1).double()
    expected = theirs(TEACHER[MASK], STUDENT[MASK], MASK.view(N, 2, 5), teacher_temp=0.06)
    loss = ibot_loss(STUDENT[MASK], Centre(K).double()(TEACHER[MASK], 0.06), MASK)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # they weight in float32


def test_half_of_the_views_are_whole_and_others_lose_a_tenth_to_a_half():
    masks = IBOT.draw_masks(torch.rand(4000, 101, generator=torch.Generator().manual_seed(0)))
    share = masks.double().mean(1)
    masked = share[share > 0]
    assert len(masked) / 4000 == pytest.approx(0.5, abs=0.03)
    assert masked.min() == 0.1 and 0.48 <= masked.max() < 0.5
    assert masked.mean() == pytest.approx(0.295, abs=0.01)  # .3 less half a patch, rounded down
    assert masks.double().mean(0).sub(share.mean()).abs().max() < 0.03  # no patch is preferred


def test_a_mask_depends_on_the_draws_of_its_own_view_alone():
    draws = torch.rand(12, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(IBOT.draw_masks(draws)[5:7], IBOT.draw_masks(draws[5:7]))


def test_views_without_a_masked_patch_leave_the_loss_finite_and_all_parameters_in_use():
    model, batch = make_model("ibot"), make_batch("ibot")
    losses = model(batch._replace(mask=torch.zeros_like(batch.mask)))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_gradient_reaches_student_and_mask_token_and_not_the_teachers():
    model = make_model("ibot")
    model(make_batch("ibot")).total.backward()
    assert model.method.mask_token.grad.any() and all(p.grad.any() for p in model.method.head.parameters())
    assert all(p.grad is None for p in [*model.teacher.parameters(), *model.method.teacher_head.parameters()])


def test_without_reconstruction_the_student_sees_masked_views_alone_as_published():
    model, batch = make_model("ibot"), make_batch("ibot")
    seen = []
    model.encoder.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    reconstructed, model.reconstruction = model.reconstruction, None
    alone = model(batch)
    images = torch.cat([batch.first, batch.second])
    assert [len(tokens) for tokens in seen] == [len(images)]  # one pass, no more than lightly's iBOT
    masked = model.encoder.tokens(images, mask=batch.mask, mask_token=model.method.mask_token)
    torch.testing.assert_close(alone.representation, masked.mean(1))
    model.reconstruction = reconstructed
    torch.testing.assert_close(make_model("ibot")(batch).ssl, alone.ssl)  # reconstruction leaves the method's loss


def test_what_is_reconstructed_does_not_depend_on_the_masks():
    batch = make_batch("ibot")
    masked = batch.mask.any(1)
    assert masked.any() and not masked.all()
    unmasked = batch._replace(mask=torch.zeros_like(batch.mask))
    losses, whole = (make_model("ibot")(seen) for seen in (batch, unmasked))
    torch.testing.assert_close(losses.recon, whole.recon)
    differs = (losses.representation - whole.representation).abs().amax(1)
    assert (differs[masked] > 1e-3).all() and (differs[~masked] < 1e-9).all()


def test_centres_follow_the_teachers_patches_and_representations():
    model, batch = make_model("ibot"), make_batch("ibot")
    seen = []
    model.method.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(batch)
    head, teacher = model.method.teacher_head, seen[0].teacher
    torch.testing.assert_close(model.method.patch_centre.mean, 0.1 * head(teacher).mean((0, 1)))
    torch.testing.assert_close(model.method.centre.mean, 0.1 * head(teacher.mean(1)).mean(0))


@pytest.mark.parametrize("encoder", ["resnet_tiny", "resnet18"])
def test_backbones_without_patches_are_refused(encoder):
    with pytest.raises(ValueError, match=r"ibot masks patches.*--encoder.name.*allowed: .*vit_tiny_patch16_224"):
        Model(configuration(**{"method.name": "ibot", "encoder.name": encoder}), toy())


def test_published_scales():
    heads = [
        build_method(MethodConfig(name="ibot", scale=s), Sizes(inv=8, width=4)).head for s in ("small", "imagenet")
    ]
    assert [head.prototypes.weight.shape for head in heads] == [(4096, 256), (8192, 256)]


LOCAL_CROPS = {"augment.local_crops": 3, "train.grad_accum_steps": 2, "train.precision": "bf16"}


@pytest.mark.parametrize("values", [{}, LOCAL_CROPS], ids=["views", "local crops"])
def test_an_interrupted_run_with_reconstruction_ends_bit_for_bit_like_one_that_was_not(tmp_path, values):
    config = configuration(
        **{"method.name": "ibot", "method.options.prototypes": 64.0, "encoder.name": "test_vit"},
        **{"encoder.output_stride": 4, "recon.weight": 1.0, "train.epochs": 3},
        **values,
    )
    whole = train(config, LocalContext(tmp_path / "whole"), toy())
    assert all(np.isfinite(whole.metrics[name]) for name in ("loss", "ssl", "recon", "knn"))
    with pytest.raises(Stop):
        train(config, StopAfter(tmp_path / "cut", 1), toy())
    train(config, LocalContext(tmp_path / "cut"), toy())
    expected, resumed = (checkpoint.load(tmp_path / name)["model"] for name in ("whole", "cut"))
    assert {"method.centre.mean", "method.patch_centre.mean", "method.mask_token"} < expected.keys()
    assert any(name.startswith("teacher.average") for name in expected)
    assert any(name.startswith("method.teacher_head.average") for name in expected)
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
