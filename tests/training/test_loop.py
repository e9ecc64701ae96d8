"""The training loop: the plain method's steps, exact resume, workers that equal one, clear refusals."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eqssl.augment import apply, draw, strengths
from eqssl.config import RunConfig, replace
from eqssl.data.dataset import Dataset, MemoryImages, Split, to_float
from eqssl.methods import find_method
from eqssl.methods.base import Pair, Sizes
from eqssl.models.teacher import Teacher
from eqssl.random import counter_uniform, permutation
from eqssl.training import checkpoint
from eqssl.training.context import LocalContext
from eqssl.training.loop import Run, one_image_per_object, train
from eqssl.training.optim import learning_rate, make_optimizer
from eqssl.views import MASK_STREAM, Views
from tests.workers import run_workers

SMALL = {
    "train.epochs": 2, "train.batch_size": 16, "evaluate.train_images": 48, "evaluate.images": 24,
    "method.options.width": 32.0,
}  # fmt: skip


def toy(labels: bool = True) -> Dataset:
    """48 training images of four textures at 32 px."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int, first: int) -> Split:
        kind = torch.arange(count) % 4
        ramp = torch.linspace(0, 6.28, 32)
        waves = torch.sin(ramp[None, :, None] * (1 + kind)[:, None, None] + ramp[None, None, :] * kind[:, None, None])
        noise = 0.2 * torch.randn(count, 32, 32, generator=generator)
        pixels = ((waves + noise + 1.5) / 3).clamp(0, 1)[:, None].mul(255).to(torch.uint8)
        return Split(MemoryImages(pixels), torch.arange(first, first + count), kind if labels else None)

    parts = split(48, 0), split(24, 100), split(24, 200)
    return Dataset("toy", *parts, False, 1, 32, 4 if labels else 0, (0.5,), (0.25,), "toy")


def configuration(**values) -> RunConfig:
    return replace(RunConfig(), {**SMALL, **values})


class WithNorms(Run):
    """A run that keeps the norms of both terms' gradients of the encoder, each by a backward pass of its own."""

    def _gradient_norms(self, losses) -> torch.Tensor:
        self.norms = [self._norm(term) for term in losses[1:3]]
        return super()._gradient_norms(losses)

    def _norm(self, term: torch.Tensor) -> float:
        if not term.requires_grad:
            return 0.0
        self.optimizer.zero_grad()
        term.backward(retain_graph=True)
        squares = [p.grad.square().sum() for p in self.model.encoder.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        return float(sum(squares) ** 0.5)


@pytest.mark.parametrize("method", ["vicreg", "none"])
def test_share_of_reconstruction_in_loss_and_gradient(method):
    shares = []
    for weight in (0.1, 10.0):
        values = {"method.name": method, "recon.weight": weight, "train.batch_size": 16, "train.precision": "fp32"}
        run = WithNorms(replace(RunConfig(), values), LocalContext(), toy())
        metrics = run.next_epoch()
        ssl, recon = run.norms
        assert metrics["recon_share/gradient"] == pytest.approx(weight * recon / (ssl + weight * recon), rel=1e-4)
        terms = abs(metrics["ssl"]), weight * metrics["recon"]
        assert metrics["recon_share/loss"] == pytest.approx(terms[1] / sum(terms))
        shares.append(metrics["recon_share/gradient"])
    assert shares == [1, 1] if method == "none" else 0 < shares[0] < shares[1] < 1
    assert "recon_share/gradient" not in train(configuration(**{"recon.weight": 0.0}), dataset=toy()).metrics


class Stop(Exception):
    pass


class StopAfter(LocalContext):
    """A context that is cut off once an epoch has been saved."""

    def __init__(self, folder: Path, epoch: int):
        super().__init__(folder)
        self.last = epoch

    def report(self, metrics, state):
        super().report(metrics, state)
        if metrics["epoch"] == self.last:
            raise Stop


class StopWithin(LocalContext):
    """A context whose node leaves at some step."""

    def __init__(self, folder: Path, step: int):
        super().__init__(folder)
        self.steps_left = step

    def should_checkpoint(self):
        self.steps_left -= 1
        return self.steps_left == 0

    def save(self, state):
        super().save(state)
        raise Stop


@pytest.mark.parametrize("share", [None, 0.2])
@pytest.mark.parametrize("step", [1, 3])  # of two an epoch that may be left after, so within the first and the second
def test_a_run_that_leaves_within_an_epoch_loses_no_step(tmp_path, step, share):
    config = configuration(**{"recon.gradient_share": share})
    whole = train(config, LocalContext(tmp_path / "whole"), toy())
    with pytest.raises(Stop):
        train(config, StopWithin(tmp_path / "cut", step), toy())
    assert checkpoint.load(tmp_path / "cut")["step"] == 1
    checkpoint.save({**checkpoint.load(tmp_path / "cut"), "train_s": 1000.0}, tmp_path / "cut")
    context = LocalContext(tmp_path / "cut")
    epoch_s: list[float] = []
    context.report = lambda metrics, state: epoch_s.append(metrics["train_s"])
    cut = train(config, context, toy())
    assert epoch_s[0] > 1000 and all(seconds < 1000 for seconds in epoch_s[1:])
    assert all(torch.equal(a, b) for a, b in zip(whole.encoder.parameters(), cut.encoder.parameters(), strict=True))
    assert (whole.metrics["recon/weight"] == 1.0) == (share is None)
    timeless = {name for name in whole.metrics if not name.endswith("_s")}
    assert {name: cut.metrics[name] for name in timeless} == {name: whole.metrics[name] for name in timeless}


def test_a_run_that_dies_in_its_last_evaluation_is_evaluated_and_not_trained_again(tmp_path, monkeypatch):
    def dies(*arguments, **named):
        raise RuntimeError("out of memory")

    whole = train(configuration(), LocalContext(tmp_path / "whole"), toy())
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr("eqssl.training.loop.evaluate", dies)
        train(configuration(), LocalContext(tmp_path / "cut"), toy())
    monkeypatch.setattr(Run, "_train_epoch", dies)
    cut = train(configuration(), LocalContext(tmp_path / "cut"), toy())
    assert cut.metrics.keys() == whole.metrics.keys() and cut.metrics["train_s"] > 0
    timeless = {name for name in whole.metrics if not name.endswith("_s")}
    assert {name: cut.metrics[name] for name in timeless} == {name: whole.metrics[name] for name in timeless}


def test_a_run_reports_losses_and_evaluation_and_returns_the_encoder():
    result = train(configuration(), dataset=toy())
    assert result.epochs == 2 and not result.encoder.training
    for name in ("loss", "ssl", "recon", "lr", "knn", "r2_mean", "recon/error", "recon/use_other", "train_std/equi"):
        assert name in result.metrics
    assert result.metrics["loss"] == pytest.approx(result.metrics["ssl"] + result.metrics["recon"], rel=1e-5)
    assert result.reconstructions.shape == (3, 8, 1, 32, 32) and result.reconstructions.dtype == torch.uint8


@pytest.mark.parametrize("side", [16, 96])
def test_attention_maps_are_of_the_first_pairs_of_the_reconstructions_and_small(side, monkeypatch):
    monkeypatch.setattr("eqssl.training.loop.SHOWN_SIDE", side)
    run = Run(configuration(), LocalContext(), toy())
    images, maps = run.pictures(run.model)
    assert maps["attention"] == "pooled-query" and maps["weights"].dtype == np.float16
    np.testing.assert_allclose(maps["weights"].astype(float).sum((2, 3)), np.ones((4, 4)), atol=5e-3)
    shown = images[:, :4].double().flatten(1, 2)
    small = torch.nn.functional.adaptive_avg_pool2d(shown, min(side, 32)).numpy()[:, :, None]
    for name, expected in zip(("other", "target", "reconstruction"), small, strict=True):
        assert maps[name].dtype == np.uint8
        np.testing.assert_allclose(maps[name].astype(float), expected, atol=1.01)
    assert maps["read"].tolist() == maps["other"].tolist() and maps["swapped_target"].shape == maps["target"].shape


@pytest.mark.parametrize("values", [{"recon.weight": 0.0}, {"recon.attention": "autoencode"}])
def test_without_an_attention_between_the_views_there_are_no_maps(values):
    run = Run(configuration(**values), LocalContext(), toy())
    assert run.pictures(run.model)[1] is None


def test_zero_epochs_evaluate_the_untrained_encoder():
    result = train(configuration(**{"train.epochs": 0}), dataset=toy())
    torch.manual_seed(0)
    from eqssl.models.model import Model

    fresh = Model(configuration(), toy()).encoder
    assert result.epochs == 0 and "knn" in result.metrics
    assert all(torch.equal(a, b) for a, b in zip(result.encoder.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("name", ["simclr", "vicreg", "barlow_twins", "byol", "simsiam", "moco_v3", "dino", "ibot"])
def test_without_a_split_the_step_is_bit_for_bit_the_plain_methods(name):
    """The control `base` against a loop that knows neither split nor reconstruction."""
    values = {"encoder.equi_fraction": 0.0, "recon.weight": 0.0, "train.epochs": 1, "train.precision": "fp32"}
    vit = {"encoder.name": "test_vit", "encoder.output_stride": 8} if name == "ibot" else {}
    config = configuration(**values, **vit, **{"method.name": name})
    dataset = toy()
    trained = train(config, dataset=dataset).encoder

    torch.manual_seed(0)
    from eqssl.models.encoder import Encoder

    encoder = Encoder(config.encoder, 1, 32, dataset.mean, dataset.std)
    tokens = encoder.grid[0] * encoder.grid[1]
    method = find_method(name)(Sizes(inv=encoder.dim, width=encoder.backbone.width, tokens=tokens), width=32)
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    both = torch.nn.ModuleList([encoder, method, teacher]).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(both, config.train)
    chosen = strengths(config.augment, paired=False, channels=1, altered_by={})
    for step, indices in enumerate(permutation(0, 0, 48).split(16)):
        images = to_float(dataset.train.images.take(indices))
        views = [
            apply(images, draw(chosen, indices, epoch=0, seed=0, view=view, image_size=32)) for view in (0, 1)
        ]  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.train, step, 3)
        optimizer.zero_grad()
        method.progress = step / 3
        mask, seen = None, {}
        if name == "ibot":
            draws = [counter_uniform(0, 0, indices, MASK_STREAM + view, tokens + 1) for view in (0, 1)]
            mask = method.draw_masks(torch.cat(draws))
            seen = {"mask": mask, "mask_token": method.mask_token}
        student = encoder.tokens(torch.cat(views), **seen)
        with torch.no_grad():
            target = teacher.tokens(torch.cat(views))
        method(Pair(student.mean(1), tokens=student, teacher=target, mask=mask)).backward()
        optimizer.step()
        if method.momentum is not None:
            for average, parameter in zip(teacher.parameters(), encoder.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1 - method.momentum_now())
            for head in (module for module in method.modules() if isinstance(module, Teacher)):
                head.update(method.momentum_now())
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), encoder.parameters(), strict=True))


@pytest.mark.parametrize(("method", "precision"), [("simclr", "fp32"), ("vicreg", "bf16")])
def test_an_interrupted_run_ends_bit_for_bit_like_one_that_was_not(tmp_path, method, precision):
    values = {"method.name": method, "train.precision": precision, "train.epochs": 3, "recon.view": "random"}
    config = configuration(**values)
    dataset = toy()
    whole = LocalContext(tmp_path / "whole")
    expected = train(config, whole, dataset)
    for epoch in (1, 2):
        with pytest.raises(Stop):
            train(config, StopAfter(tmp_path / "cut", epoch), dataset)
    resumed = train(config, LocalContext(tmp_path / "cut"), dataset)
    states = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "cut")
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    seconds = {"train_s", "evaluate_s"}
    assert {n: v for n, v in expected.metrics.items() if n not in seconds} == {
        n: v for n, v in resumed.metrics.items() if n not in seconds
    }


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(configuration(), LocalContext(tmp_path), toy())
    again = train(configuration(), LocalContext(tmp_path), toy())
    assert again.metrics == first.metrics and again.epochs == 2


def test_accumulated_gradients_and_losses_are_the_means_of_the_parts():
    values = {"train.grad_accum_steps": 3, "train.batch_size": 48, "train.epochs": 1, "train.precision": "fp32"}
    run = Run(configuration(**values), LocalContext(), toy())
    model, batches, seen = copy.deepcopy(run.model).train(), next(run.batches(0)), []
    run.optimizer.step = lambda: seen.extend(parameter.grad.clone() for parameter in run.model.parameters())
    metrics = run.next_epoch()
    totals = [model(batch, autocast=False).total for batch in batches]
    expected = torch.autograd.grad(sum(totals) / 3, list(model.parameters()))
    assert len(totals) == 3 and metrics["loss"] == pytest.approx(sum(totals).item() / 3, rel=1e-5)
    for gradient, mean in zip(seen, expected, strict=True):
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)


def test_the_share_of_the_gradient_is_the_mean_of_the_micro_batches():
    norms = iter(torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 1.0]]))

    class WithNorms(Run):
        def _gradient_norms(self, losses) -> torch.Tensor:
            return next(norms)

    values = {"train.grad_accum_steps": 3, "train.batch_size": 48, "train.epochs": 1}
    metrics = WithNorms(configuration(**values), LocalContext(), toy()).next_epoch()
    assert metrics["recon_share/gradient"] == pytest.approx(0.4)


@pytest.mark.parametrize("method", ["vicreg", "simclr", "barlow_twins"])
def test_a_share_of_the_gradient_is_held_by_methods_of_any_scale(method):
    values = {"method.name": method, "train.epochs": 12, "recon.gradient_share": 0.2, "train.precision": "fp32"}
    run, weights, shares = Run(configuration(**values), LocalContext(), toy()), [], []
    run._evaluate = lambda model: {}
    for _ in range(12):
        metrics = run.next_epoch()
        weights.append(metrics["recon/weight"])
        shares.append(metrics["recon_share/gradient"])
    assert sum(shares[4:]) / 8 == pytest.approx(0.2, abs=0.06), shares
    assert len(set(weights)) > 2 and all(0.05 < share < 0.45 for share in shares), shares


def test_without_a_share_the_weight_stays_and_a_method_without_loss_keeps_it():
    assert train(configuration(), dataset=toy()).metrics["recon/weight"] == 1.0
    values = {"method.name": "none", "method.options": {}, "recon.gradient_share": 0.2, "recon.weight": 3.0}
    assert train(configuration(**values), dataset=toy()).metrics["recon/weight"] == 3.0


def test_gradients_are_clipped_to_the_norm():
    run, norms = Run(configuration(**{"train.clip_norm": 0.01, "train.epochs": 1}), LocalContext(), toy()), []
    gradients = lambda: [p.grad for p in run.model.parameters() if p.grad is not None]  # noqa: E731
    run.optimizer.step = lambda: norms.append(float(torch.nn.utils.get_total_norm(gradients())))
    run.next_epoch()
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3) and norms


def test_use_of_views_is_measured_on_images_from_the_whole_split(monkeypatch):
    monkeypatch.setattr("eqssl.training.loop.ABLATION_IMAGES", 8)
    monkeypatch.setattr("eqssl.training.loop.SHOWN_IMAGES", 8)
    data = toy()
    order = data.val.labels.argsort(stable=True)  # class by class, as a folder of images is stored
    val = Split(MemoryImages(data.val.images.take(order)), data.val.ids, data.val.labels[order])
    run, seen = Run(configuration(), LocalContext(), dataclasses.replace(data, val=val)), []
    batch_of = Views.batch

    def record(views, split, indices, epoch):
        seen.append(indices)
        return batch_of(views, split, indices, epoch)

    monkeypatch.setattr(Views, "batch", record)
    while not run.is_last:
        run.next_epoch()
    run.pictures(run.model)
    assert len(seen) == 2 and seen[0].tolist() == seen[1].tolist()
    assert len(seen[0].unique()) == 8 and val.labels[seen[0]].bincount(minlength=4).max() <= 4 < len(seen[0])
    assert len(val.labels[seen[0]].unique()) >= 3


def test_only_the_last_evaluation_is_of_test():
    values = {"train.epochs": 3, "train.eval_every": 1, "evaluate.split": "test"}
    data = toy()
    one_class = dataclasses.replace(data.test, labels=torch.zeros_like(data.test.labels) + 7)
    run = Run(configuration(**values), LocalContext(), dataclasses.replace(data, test=one_class))
    on_the_way = [run.next_epoch()["knn"] for _ in range(2)]
    assert min(on_the_way) > 0 and run.next_epoch()["knn"] == 0


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ({"train.batch_size": 64}, True, r"--train.batch-size is 64; allowed: up to the 48 training images of toy"),
        ({"train.grad_accum_steps": 3}, True, r"--train.batch-size is 16; allowed with --train.grad-accum-steps 3"),
        ({"method.name": "supervised"}, False, r"--method.name supervised needs labels"),
        ({"method.name": "byo"}, True, r"--method.name is 'byo'; allowed: simclr"),
        ({"augment.hue": 0.5}, True, r"--augment.hue"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_first_step(values, labels, message):
    with pytest.raises(ValueError, match=message):
        train(configuration(**values), dataset=toy(labels))


def test_held_out_images_that_are_swapped_show_different_objects():
    split = toy().val
    objects = torch.arange(24) % 7
    chosen = one_image_per_object(dataclasses.replace(split, objects=objects))
    assert sorted(objects[chosen].tolist()) == list(range(7))
    assert one_image_per_object(split).tolist() == list(range(24))


def test_a_checkpoint_of_a_version_without_an_option_goes_on_where_that_has_its_default(tmp_path):
    train(configuration(), LocalContext(tmp_path), toy())
    state = checkpoint.load(tmp_path)
    for values in (state["options"], state["defaults"]):
        del values["recon.query_gradient"]
    checkpoint.save(state, tmp_path)
    train(configuration(), LocalContext(tmp_path), toy())
    with pytest.raises(ValueError, match=r"\(--recon.query-gradient is 0.5, was None\)"):
        train(configuration(**{"recon.query_gradient": 0.5}), LocalContext(tmp_path), toy())


def test_a_checkpoint_of_another_configuration_or_other_data_is_refused(tmp_path):
    train(configuration(), LocalContext(tmp_path), toy())
    with pytest.raises(ValueError, match="other data"):
        train(configuration(), LocalContext(tmp_path), dataclasses.replace(toy(), digest="others"))
    train(configuration(**{"data.cache": "elsewhere"}), LocalContext(tmp_path), toy())
    with pytest.raises(ValueError, match=r"belongs to another configuration .*\(--recon.weight is 2.0, was 1.0\)"):
        train(configuration(**{"recon.weight": 2.0}), LocalContext(tmp_path), toy())


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    config = configuration(**{"train.epochs": 3})
    with pytest.raises(Stop):
        train(config, StopAfter(tmp_path, 1), toy())
    dataset = toy()
    broken = Dataset(**{**dataset.__dict__, "std": (0.0,)})
    with pytest.raises(FloatingPointError, match="not finite in epoch 2"):
        train(config, LocalContext(tmp_path), broken)
    assert checkpoint.load(tmp_path)["epoch"] == 1


@pytest.mark.parametrize("broken", ["a loss", "a weight"])
def test_a_node_that_leaves_after_a_step_that_broke_the_run_leaves_the_last_good_state(tmp_path, broken):
    config = configuration(**{"train.epochs": 3})
    with pytest.raises(Stop):
        train(config, StopAfter(tmp_path, 1), toy())

    class BreakWithin(LocalContext):
        def should_checkpoint(self):  # after the first step of the second epoch
            with torch.no_grad():
                (run.totals if broken == "a loss" else next(run.model.parameters())).mul_(torch.nan)
            return True

    context = BreakWithin(tmp_path)
    run = Run(config, context, toy())
    run.load_state_dict(context.load())
    with pytest.raises(FloatingPointError, match="not finite in epoch 2"):
        run.next_epoch()
    state = checkpoint.load(tmp_path)
    assert (state["epoch"], state["step"]) == (1, 0)


def losses_of_workers(rank: int, world_size: int):
    context = LocalContext()
    context.rank, context.world_size = rank, world_size
    config = configuration(**{"train.epochs": 1, "train.precision": "fp32"})
    return train(config, context, toy()).metrics["loss"]


@pytest.mark.slow
def test_two_workers_train_to_the_loss_of_one():
    alone = losses_of_workers(0, 1)
    for loss in run_workers(2, losses_of_workers):
        assert loss == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_weights(tmp_path):
    """kill -9 of `eqssl train` in the middle, then --resume, against an uninterrupted one."""
    command = [
        sys.executable, "-m", "eqssl", "train", "--data.objects", "16", "--data.views-per-object", "8",
        "--data.cache", str(tmp_path / "cache"), "--train.epochs", "6", "--train.batch-size", "32",
        "--evaluate.train-images", "64", "--evaluate.images", "24",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    uninterrupted = subprocess.Popen([*command, "--output", str(tmp_path / "whole")], env=environment)
    process = subprocess.Popen([*command, "--output", str(tmp_path / "cut")], env=environment)
    saved = tmp_path / "cut" / "checkpoint" / checkpoint.FILE
    while not saved.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.load(saved.parent)["epoch"] < 6
    subprocess.run([*command, "--output", str(tmp_path / "cut"), "--resume"], check=True, env=environment)
    assert uninterrupted.wait() == 0
    whole, cut = (checkpoint.load(tmp_path / name / "checkpoint") for name in ("whole", "cut"))
    assert all(torch.equal(whole["model"][name], cut["model"][name]) for name in whole["model"])


class DecodedWhenTaken:
    """Images that do not lie in memory, as far as the training can tell."""

    def __init__(self, images: MemoryImages):
        self.images = images

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        return self.images.take(indices)


def test_images_that_are_read_ahead_give_the_same_training_bit_for_bit():
    dataset = toy()
    elsewhere = dataclasses.replace(dataset.train, images=DecodedWhenTaken(dataset.train.images))
    config = configuration(**{"train.grad_accum_steps": 2})
    runs = [train(config, dataset=data) for data in (dataset, dataclasses.replace(dataset, train=elsewhere))]
    assert runs[0].metrics["loss"] == runs[1].metrics["loss"]
    assert all(torch.equal(*pair) for pair in zip(*(run.encoder.parameters() for run in runs), strict=True))
