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


def test_a_thing_against_itself_is_one_and_against_its_half_two():
    one, two = partial(time.sleep, 0.02), partial(time.sleep, 0.04)
    seconds = interleave({"one": one, "again": one, "two": two}, 0.8)
    assert {len(s) for s in seconds.values()} == {len(seconds["one"])} and len(seconds["one"]) >= MIN_ROUNDS
    same = row("test", "one", seconds["one"], "again", seconds["again"])
    slower = row("test", "two", seconds["two"], "one", seconds["one"])
    faster = row("test", "one", seconds["one"], "two", seconds["two"], count=20, unit="things/s")
    assert same.ratio == pytest.approx(1, rel=0.25)
    assert slower.ratio == pytest.approx(2, rel=0.25)
    assert faster.ratio == pytest.approx(2, rel=0.25)
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
    whole = timed(timed_steps.step)
    parts = timed_steps.rounds[-1]
    expected = {"data", "augmentation", "encoder", "method", "optimizer"} | ({"reconstruction"} if recon else set())
    assert set(parts) == expected and all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(whole, rel=0.1)
    assert "recon_share/gradient" not in timed_steps.run.metrics  # further backward passes


def quickest(timed_steps: TimedSteps) -> dict[str, float]:
    """Return the seconds of each part in the best of three steps, which other load seldom disturbs."""
    for _ in range(3):
        timed_steps.step()
    return {part: min(a_round[part] for a_round in timed_steps.rounds[-3:]) for part in timed_steps.rounds[-1]}


def test_a_slower_part_is_seen_in_its_own_row_forward_and_backward():
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            time.sleep(0.05)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.1)
            return gradient

    timed_steps = TimedSteps(options(), "resnet_tiny", recon=True)
    timed_steps.step()
    before = quickest(timed_steps)
    for module, part in (
        (timed_steps.run.model.reconstruction, "reconstruction"),
        (timed_steps.run.model.method, "method"),
    ):
        forward = module.forward

        def slowed(first, *others, forward=forward, part=part):
            if part == "reconstruction":
                return forward(tuple(map(Slow.apply, first)), *others)
            loss = forward(first, *others)
            return Slow.apply(loss)

        module.forward = slowed
        after = quickest(timed_steps)
        added = {name: after[name] - before[name] for name in after}
        assert added.pop(part) > 0.12, part
        assert all(seconds < 0.1 for seconds in added.values()), added
        module.forward = forward


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


def test_growth_of_the_summary_is_an_exponent():
    from eqssl.bench.study import summary_growth

    made = summary_growth(options(study_trials=(16, 64)))
    assert made.rounds >= MIN_ROUNDS and made.low <= made.ratio <= made.high
    assert made.note.startswith("16: ") and made.aim.startswith("≤ 1.1: ")
