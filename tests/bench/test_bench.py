"""The bench at tiny sizes: its numbers mean what they say, and every part runs."""

import json
import time
from functools import partial

import numpy as np
import pytest
import torch

from eqssl.bench.command import main
from eqssl.bench.options import Options
from eqssl.bench.step import PRODUCT, share_of_peak
from eqssl.bench.timing import MIN_ROUNDS, Row, exponent, interleave, row, timed
from eqssl.bench.training import TimedSteps, fixed_batch, make_run, step

TINY = {"encoders": ("resnet_tiny",), "image_size": 32, "batch_size": 16, "steps": 2,
        "workers": 0, "precision": "fp32", "seconds": 0.0,
        "study_trials": (16, 32)}  # fmt: skip


def options(**values) -> Options:
    return Options(**{**TINY, **values})


class Clock:
    """A clock that stands still but while it sleeps, so that no other process's load is in a time."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in ("timing", "training"):
        monkeypatch.setattr(f"eqssl.bench.{module}.time", clock)
    return clock


def test_a_thing_against_itself_is_one_and_against_its_half_two(clock):
    one, two = partial(clock.sleep, 0.02), partial(clock.sleep, 0.04)
    seconds = interleave({"one": one, "again": one, "two": two}, 0.8)
    assert {len(s) for s in seconds.values()} == {len(seconds["one"])} and len(seconds["one"]) >= MIN_ROUNDS
    same = row("test", "one", seconds["one"], "again", seconds["again"])
    slower = row("test", "two", seconds["two"], "one", seconds["one"])
    faster = row("test", "one", seconds["one"], "two", seconds["two"], count=20, unit="things/s")
    assert same.ratio == pytest.approx(1)
    assert slower.ratio == pytest.approx(2)
    assert faster.ratio == pytest.approx(2)
    assert same.low <= same.ratio <= same.high and same.rounds == len(seconds["one"])


def test_time_and_rate_of_known_seconds():
    seconds = np.array([0.1, 0.2, 0.3])
    assert row("test", "it", seconds).value == pytest.approx(200)
    assert row("test", "it", seconds, count=4, unit="images/s").value == pytest.approx(20)
    assert timed(lambda: time.sleep(0.02)) == pytest.approx(0.02, abs=0.02)
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_an_aim_is_met_or_missed():
    seconds = np.array([1.0, 1.0, 1.0])
    made = partial(row, "test", "it", 1.2 * seconds, "that", seconds)
    assert "≤ 1.1: missed" in made(at_most=1.1).cells() and "≤ 1.3: met" in made(at_most=1.3).cells()
    assert "≥ 1.1: met" in made(at_least=1.1).cells() and "≥ 1.3: missed" in made(at_least=1.3).cells()
    assert made().cells()[7] == Row(part="test", name="skipped").cells()[7] == ""


@pytest.mark.parametrize("recon", [False, True])
def test_the_parts_of_a_step_are_the_step(recon):
    timed_steps = TimedSteps(options(), "resnet_tiny", recon)
    timed_steps.step()
    expected = {"data", "augmentation", "encoder", "method", "optimizer"} | ({"reconstruction"} if recon else set())
    for _ in range(10):  # a busy machine may take time between two parts
        whole = timed(timed_steps.step)
        parts = timed_steps.rounds[-1]
        assert set(parts) == expected and all(seconds > 0 for seconds in parts.values())
        assert sum(parts.values()) <= whole
        if sum(parts.values()) >= 0.9 * whole:
            break
    else:
        pytest.fail(f"the parts leave out more than a tenth of the step: {parts}, {whole}")
    assert "recon_share/gradient" not in timed_steps.run.metrics  # further backward passes


def test_a_slower_part_is_seen_in_its_own_row_forward_and_backward(clock):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            clock.sleep(1.0)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            clock.sleep(2.0)
            return gradient

    timed_steps = TimedSteps(options(), "resnet_tiny", recon=True)
    model = timed_steps.run.model
    decode, loss = model.reconstruction.forward, model.method.forward
    model.reconstruction.forward = lambda first, *others: decode((Slow.apply(first[0]), first[1]), *others)
    model.method.forward = lambda first, *others: Slow.apply(loss(first, *others))
    timed_steps.step()
    model.reconstruction.forward = decode
    timed_steps.step()
    both, method = timed_steps.rounds[-2:]
    zero = dict.fromkeys(both, 0.0)
    assert both == zero | {"reconstruction": 3.0, "method": 3.0} and method == zero | {"method": 3.0}


def test_a_step_on_a_fixed_batch_is_the_trainings_own():
    run, alone = (make_run(options().run("resnet_tiny", method="byol", recon=True)) for _ in range(2))
    batch, student = fixed_batch(alone), alone.model.encoder
    alone.model.train()
    # The epoch meets the images of its one batch in another order.
    assert alone.model(batch).total.item() == pytest.approx(run.next_epoch()["loss"], rel=1e-5)
    before = [[p.clone() for p in m.parameters()] for m in (student, alone.model.teacher)]
    step(alone, batch)
    for module, old in zip((student, alone.model.teacher), before, strict=True):
        assert not all(torch.equal(p, q) for p, q in zip(module.parameters(), old, strict=True))


def test_the_encoders_arithmetic_is_counted_as_by_hand():
    """Of resnet_tiny at 32 px: 23 million multiply-adds at 64 px, forward, and backward to weights and inputs."""
    timed_steps = TimedSteps(options(), "resnet_tiny", recon=False)
    images = torch.rand(4, 3, 32, 32)
    made = share_of_peak("it", np.array([1.0]), np.array([1e-3]), timed_steps.run, images)
    forward = 2 * 4 * (23e6 / 4)
    to_images = 2 * 4 * 32 * 8 * 8 * 3 * 16  # no gradient of the first layer's inputs is needed
    assert made.value * 1e9 == pytest.approx(3 * forward - to_images, rel=0.03)
    flops_of_product = 2 * PRODUCT["cpu"] ** 3
    assert made.ratio == pytest.approx(made.value * 1e9 / (flops_of_product / 1e-3))


@pytest.mark.slow
def test_what_is_compiled_has_the_same_parts_and_losses():
    plain, compiled = (TimedSteps(options(compile=on), "resnet_tiny", recon=True) for on in (False, True))
    for timed_steps in (plain, compiled):
        timed_steps.step()
    assert compiled.run.metrics["loss"] == pytest.approx(plain.run.metrics["loss"], rel=1e-4)
    compiled.step()
    assert compiled.rounds[-1].keys() == plain.rounds[-1].keys()


@pytest.mark.parametrize("part", ["step", "evaluation", pytest.param("scaling", marks=pytest.mark.slow)])
def test_parts_that_need_no_other_package(part, tmp_path):
    sizes = (
        "--encoders resnet_tiny --image-size 32 --batch-size 16 --steps 2 --seconds 0 "
        "--evaluate.train-images 64 --evaluate.images 32"
    )
    arguments = ["--parts", part, *sizes.split(), "--output", str(tmp_path)]
    assert main(arguments) == 0
    made = json.loads((tmp_path / "bench.json").read_text())
    assert made["machine"]["cores"] >= 1 and made["options"]["image_size"] == "32"
    assert {r["part"] for r in made["rows"]} == {part}
    assert all(r["ratio"] is None or r["ratio"] > 0 for r in made["rows"])
    assert (tmp_path / "bench.md").read_text().count("\n| ") == len(made["rows"]) + 2


@pytest.mark.slow
def test_the_second_trial_of_a_process_adds_less_to_its_training_than_the_first():
    from eqssl.bench.study import trials

    first, second = sorted(trials(options(), 2), key=lambda one: one["warm"])
    assert (first["warm"], second["warm"]) == (False, True)
    assert 0 <= second["overhead_s"] < first["overhead_s"]


@pytest.mark.slow
def test_methods_and_pipelines_against_lightly(monkeypatch):
    pytest.importorskip("lightly")
    from eqssl.bench import methods, pipelines

    monkeypatch.setattr(pipelines, "EPOCH_S", 0.0)
    rows = methods.measure(options(vit="test_vit", methods=Options().methods))
    assert [r.name.split(",")[0] for r in rows] == list(Options().methods)
    rows += pipelines.measure(options())
    assert all(r.ratio > 0.05 for r in rows if r.against)
    assert {r.against for r in rows} >= {"lightly", "plain loop"}


@pytest.mark.parametrize("name", Options().methods)
def test_peers_have_our_heads(name):
    pytest.importorskip("lightly")
    from eqssl.bench.peers import PEERS, build_peer

    if name not in PEERS:
        pytest.skip("it has no peer")
    run = make_run(options().run("test_vit" if name == "ibot" else "resnet_tiny", method=name, equi_fraction=0.0))
    peer = build_peer(name, run.model.encoder, autocast=False)
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (run.model, peer))
    assert theirs == pytest.approx(ours, rel=0.01)  # but for biases


def test_without_lightly_the_table_says_so(monkeypatch):
    from eqssl.bench import methods

    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    assert [r.note for r in methods.measure(options())] == [methods.NO_LIGHTLY]


def test_without_a_peer_the_table_says_so():
    pytest.importorskip("lightly")
    from eqssl.bench import methods
    from eqssl.bench.peers import PEERS

    assert set(PEERS) == {"simclr", "vicreg", "barlow_twins", "byol", "simsiam", "moco_v3", "dino", "ibot"}
    assert [(r.name, r.note) for r in methods.measure(options(methods=("sie",)))] == [("sie", methods.NO_PEER)]


def test_reading():
    from eqssl.bench import data

    rows = data.measure(options(data_images=8, data_pixels=16 * 32**2, data_sizes=(32,)))
    assert len(rows) == 12 and all(r.value > 1 for r in rows)


@pytest.mark.parametrize("subject", ["resumed", "summary", "report"])
def test_growth_of_a_study_is_an_exponent(subject, tmp_path):
    from eqssl.bench import scale

    studies = {trials: scale.ended_study(tmp_path / str(trials), trials) for trials in (20, 60)}
    made = scale.growth(options(), getattr(scale, subject), studies)
    assert made.rounds >= MIN_ROUNDS and made.low <= made.ratio <= made.high
    assert made.note.startswith("20: ") and made.aim.startswith("≤ 1.1: ")


@pytest.mark.slow  # 40 s
def test_a_simulated_study_leaves_little_in_memory_and_nothing_untracked(monkeypatch):
    from eqssl.bench import scale

    monkeypatch.setattr(scale, "growth", lambda *arguments: None)
    *_, memory, dropped = scale.measure(options(simulated=(60, 10)))
    assert 0 < memory.value < 1 and dropped.value == 0
