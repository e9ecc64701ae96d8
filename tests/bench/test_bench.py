"""The bench at tiny sizes: its numbers mean what they say, and every part runs."""

import json
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from eqssl.bench import command, peers, reading, scale
from eqssl.bench.command import Options, main
from eqssl.bench.step import TimedSteps, encoder_flops, make_run
from eqssl.bench.timing import MIN_ROUNDS, Row, interleave, row, timed
from eqssl.config import EvaluateConfig

TINY = Options(
    encoders=("resnet_tiny",), image_sizes=(32,), precisions=("fp32",), batch_size=16, seconds=0.0, simulated=(60, 10)
)


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
    for module in ("timing", "step"):
        monkeypatch.setattr(f"eqssl.bench.{module}.time", clock)
    return clock


def test_a_subject_against_itself_is_one_and_against_its_half_two(clock):
    one, two = partial(clock.sleep, 0.02), partial(clock.sleep, 0.04)
    seconds = interleave({"one": one, "again": one, "two": two}, 0.8)
    assert {len(s) for s in seconds.values()} == {len(seconds["one"])} and len(seconds["one"]) >= MIN_ROUNDS
    same = row("one", seconds["one"], "again", seconds["again"])
    slower = row("two", seconds["two"], "one", seconds["one"])
    faster = row("one", seconds["one"], "two", seconds["two"], count=20, unit="things/s")
    assert same.ratio == pytest.approx(1)
    assert slower.ratio == pytest.approx(2)
    assert faster.ratio == pytest.approx(2)
    assert same.low <= same.ratio <= same.high and same.rounds == len(seconds["one"])


def test_time_and_rate_of_known_seconds():
    seconds = np.array([0.1, 0.2, 0.3])
    assert row("it", seconds).value == pytest.approx(200)
    assert row("it", seconds, count=4, unit="images/s").value == pytest.approx(20)
    assert timed(lambda: time.sleep(0.02)) == pytest.approx(0.02, abs=0.02)
    assert scale.exponent([1, 2, 4], np.array([3, 12, 48])) == pytest.approx(2)


def test_an_aim_is_met_or_missed():
    seconds = np.array([1.0, 1.0, 1.0])
    made = partial(row, "it", 1.2 * seconds, "that", seconds)
    assert "≤ 1.1: missed" in made(at_most=1.1).cells() and "≤ 1.3: met" in made(at_most=1.3).cells()
    assert "≥ 1.1: met" in made(at_least=1.1).cells() and "≥ 1.3: missed" in made(at_least=1.3).cells()
    assert made().cells()[7] == Row(name="skipped").cells()[7] == ""


def test_the_help_lists_every_part_with_its_time(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, (minutes, about) in command.PARTS.items():
        assert f"{name} ({minutes} min): {about}" in text


def test_an_unknown_part_is_refused_with_the_nearest(tmp_path, capsys):
    assert main(["--parts", "step,worker", "--output", str(tmp_path / "none")]) == 2
    assert "--parts is 'worker'; allowed: step, peers, workers" in (error := capsys.readouterr().err)
    assert "did you mean workers" in error and not (tmp_path / "none").exists()


@pytest.mark.parametrize("recon", [0.0, 1.0])
def test_the_parts_of_a_step_are_the_step(recon):
    timed_steps = TimedSteps(TINY.run("resnet_tiny", recon=recon))
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

    timed_steps = TimedSteps(TINY.run("resnet_tiny", recon=1.0))
    model = timed_steps.run.model
    decode, loss = model.reconstruction.forward, model.method.forward
    model.reconstruction.forward = lambda own, other: decode(Slow.apply(own), other)
    model.method.forward = lambda first, *others: Slow.apply(loss(first, *others))
    timed_steps.step()
    model.reconstruction.forward = decode
    timed_steps.step()
    both, method = timed_steps.rounds[-2:]
    zero = dict.fromkeys(both, 0.0)
    assert both == zero | {"reconstruction": 3.0, "method": 3.0} and method == zero | {"method": 3.0}


def test_the_encoders_arithmetic_is_counted_as_by_hand():
    """Of resnet_tiny at 32 px: 23 million multiply-adds at 64 px, forward, and backward to weights and inputs."""
    run = make_run(TINY.run("resnet_tiny"))
    forward = 2 * 4 * (23e6 / 4)
    to_images = 2 * 4 * 32 * 8 * 8 * 3 * 16  # no gradient of the first layer's inputs is needed
    flops = encoder_flops(run.model, torch.rand(4, 3, 32, 32))
    assert flops == pytest.approx(3 * forward - to_images, rel=0.03)


@pytest.mark.slow  # 20 s
def test_a_compiled_step_has_the_same_parts_and_losses():
    plain, compiled = (
        TimedSteps(Options(**{**vars(TINY), "compile": on}).run("resnet_tiny", recon=1.0)) for on in (False, True)
    )
    for timed_steps in (plain, compiled):
        timed_steps.step()
    assert compiled.run.metrics["loss"] == pytest.approx(plain.run.metrics["loss"], rel=1e-4)
    compiled.step()
    assert compiled.rounds[-1].keys() == plain.rounds[-1].keys()


SLOW = [pytest.param(part, marks=pytest.mark.slow) for part in ("step", "workers")]


@pytest.mark.parametrize("part", ["reading", *SLOW])
def test_parts_that_need_no_other_package(part, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eqssl.bench.step.EVALUATION", EvaluateConfig(train_images=64, images=32))
    for name, value in {"SIZE": 32, "RENDERED": 8, "READ": 16}.items():
        monkeypatch.setattr(reading, name, value)
    sizes = "--encoders resnet_tiny --image-sizes 32 --precisions fp32 --batch-size 16 --seconds 0"
    assert main(["--parts", part, *sizes.split(), "--output", str(tmp_path)]) == 0
    made = json.loads((tmp_path / "bench.json").read_text())
    assert made["machine"]["cores"] >= 1 and made["options"]["batch_size"] == "16"
    assert {r["part"] for r in made["rows"]} == {part}
    assert all(r["ratio"] is None or r["ratio"] > 0 for r in made["rows"])
    assert capsys.readouterr().out.count("\n| ") == len(made["rows"]) + 2
    assert len(made["rows"]) >= {"step": 16, "reading": 3, "workers": 3}[part]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_the_table_says_so(tmp_path, capsys):
    assert main(["--parts", "gpu", "--output", str(tmp_path)]) == 0
    assert "skipped: no CUDA device" in capsys.readouterr().out


@pytest.mark.slow  # 30 s
def test_the_second_trial_of_a_process_adds_less_to_its_training_than_the_first():
    from eqssl.bench.trials import overheads

    seconds = overheads(TINY, 2)
    ((new,), (reused,)) = seconds["new"], seconds["reused"]
    assert 0 <= reused < new


@pytest.mark.slow  # 30 s
def test_steps_and_trainings_against_lightly(monkeypatch):
    pytest.importorskip("lightly")
    monkeypatch.setattr(peers, "EPOCH_S", 0.0)
    monkeypatch.setattr(peers.os, "cpu_count", lambda: 1)
    rows = peers.measure(TINY)
    assert [r.name.split(",")[0] for r in rows[: len(TINY.methods)]] == list(TINY.methods)
    assert all(r.ratio > 0.05 for r in rows if r.against)
    workers = {f"{library}, {count} loader workers" for library in ("plain", "lightly") for count in (0, 1)}
    assert {r.against for r in rows} >= {"lightly", "plain"} | workers


@pytest.mark.parametrize("name", TINY.methods)
def test_lightlys_methods_have_our_heads(name):
    pytest.importorskip("lightly")
    run = make_run(TINY.run("resnet_tiny", method=name, equi_fraction=0.0))
    theirs = peers.lightly_method(name, run.model.encoder, autocast=False)
    ours, others = (sum(p.numel() for p in m.parameters()) for m in (run.model, theirs))
    assert others == pytest.approx(ours, rel=0.01)  # but for biases
    theirs(*torch.rand(2, 16, 3, 32, 32)).backward()
    assert all(p.grad is not None for p in theirs.parameters())


def test_two_views_at_once_have_the_loss_of_one_after_the_other():
    run = make_run(TINY.run("resnet_tiny", equi_fraction=0.0))
    plain = peers.plain_simclr(run.model.encoder, autocast=False).eval()
    views = torch.rand(2, 16, 3, 32, 32)
    at_once = plain(*views)
    plain.at_once = False
    torch.testing.assert_close(plain(*views), at_once)


def test_without_lightly_the_table_says_so(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers, "augmentations", lambda options: [])
    monkeypatch.setattr(peers, "trainings", lambda options, encoder: [])
    assert [r.note for r in peers.measure(TINY)] == [peers.NO_LIGHTLY]


def test_a_method_that_lightly_lacks_is_refused():
    pytest.importorskip("lightly")
    with pytest.raises(ValueError, match="--methods is 'dino'; allowed: simclr"):
        peers.method_step(TINY, "dino")


@pytest.mark.slow  # 10 s
def test_memory_is_measured_without_torch_which_a_study_s_process_does_not_import():
    code = "import sys, eqssl.bench.scale, eqssl.study.flow, eqssl.study.progress; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.slow  # 10 s
def test_peak_memory_is_not_that_of_the_process_that_started_the_measurement():
    large = bytearray(b"?") * (1500 * 2**20)
    del large
    assert 100 < scale._in_own_process(scale._peak_mb) < 1000


@pytest.mark.slow  # 30 s
def test_an_ended_study_is_resumed_summarised_and_reported():
    found = scale.ended(20, 40)
    assert found["seconds"].keys() == {"resume", "summary", "report"} and 100 < found["peak_mb"] < 10_000
    for of_sizes in found["seconds"].values():
        assert len(of_sizes) == 2 and all(0 < seconds < 600 for pair in of_sizes for seconds in pair)


def test_the_rows_of_scale_hold_exponents_and_an_extrapolated_memory(monkeypatch):
    ended = {"seconds": {"report": [(2.0, 1.0), (8.0, 4.0)]}, "peak_mb": 750.0}
    running = {"last_mb": 300.0, "mb_per_trial": 0.1, "dropped": 0}
    monkeypatch.setattr(scale, "_in_own_process", lambda function, *_: ended if function is scale.ended else running)
    seconds, k, peak, memory, dropped = scale.measure(Options(study_trials=(100, 400), simulated=(200, 10)))
    assert (seconds.value, seconds.ratio, k.value) == (8.0, pytest.approx(8 / 60), pytest.approx(1.0))
    assert peak.ratio == 0.5 and memory.value == pytest.approx(300 + 0.1 * 9800) and dropped.value == 0


@pytest.mark.slow  # 40 s
def test_a_simulated_study_leaves_little_in_memory_and_nothing_untracked():
    found = scale._in_own_process(scale.simulated, *TINY.simulated)
    assert 0 < found["mb_per_trial"] < 1 and found["dropped"] == 0
