"""The simulated cluster against what can be worked out by hand."""

import dataclasses

import numpy as np
import pytest

from eqssl.bench.simulation import Plan, main, simulate

PLAN = Plan(
    trials=10, epochs=5, images=1000, images_per_s=10.0, evaluate_s=20.0, start_s=30.0,
    gpus=8, gpus_per_node=4, gpus_per_trial=2,
)  # fmt: skip
TRIAL_S = 30 + 5 * 1000 / 20 + 20


def test_without_losses_trials_take_turns():
    outcome = simulate(PLAN, seed=0)
    assert outcome["hours"] == pytest.approx(3 * TRIAL_S / 3600)  # ten trials on four places
    assert outcome["gpu_hours"] == pytest.approx(10 * 2 * TRIAL_S / 3600)
    assert (outcome["losses"], outcome["wasted_gpu_hours"]) == (0, 0)


def test_a_trial_over_several_nodes_meets_the_losses_of_all():
    over_two = dataclasses.replace(PLAN, gpus_per_trial=8, lost_per_node_hour=3.6)
    assert over_two.losses_per_s == pytest.approx(0.002)
    assert dataclasses.replace(over_two, gpus_per_trial=1).losses_per_s == pytest.approx(0.001)


@pytest.mark.parametrize("save_s", [40.0, 1e9])  # within an epoch of 100 s, or only at its end
def test_a_loss_costs_the_recovery_and_what_was_not_saved(save_s):
    plan = dataclasses.replace(
        PLAN, trials=1, gpus=2, images=2000, epochs=500, lost_per_node_hour=3.6, recover_s=50.0, save_s=save_s
    )
    outcomes = [simulate(plan, seed) for seed in range(40)]
    losses = np.mean([o["losses"] for o in outcomes])
    training_s = np.mean([o["hours"] for o in outcomes]) * 3600 - 30 - losses * 50
    assert losses == pytest.approx(training_s * 0.001, rel=0.05)
    # Losses are rare within the pieces that are saved, whose length is then what matters: 40, 40 and 20 s, or 100.
    again_s = (2 * 40**2 / 2 + 20**2 / 2) / 100 if save_s < 100 else 50
    assert np.mean([o["wasted_gpu_hours"] for o in outcomes]) * 3600 / 2 == pytest.approx(
        losses * (50 + again_s), rel=0.06
    )
    assert training_s == pytest.approx(500 * 100 + 20 + losses * again_s, rel=0.02)


def test_an_evaluation_that_is_cut_off_begins_again():
    plan = dataclasses.replace(
        PLAN, trials=1, gpus=2, epochs=1, images=20, evaluate_s=1000.0, lost_per_node_hour=3.6, recover_s=0.0
    )
    outcomes = [simulate(plan, seed) for seed in range(2000)]
    evaluated_s = np.mean([o["hours"] for o in outcomes]) * 3600 - 30 - 1
    assert evaluated_s == pytest.approx(1000 * (np.e - 1), rel=0.05)  # that no loss comes for 1000 s is waited for
    assert max(o["wasted_gpu_hours"] for o in outcomes) > 2 * 1000 / 3600


def test_the_command_prints_the_table(capsys):
    main(["--images-per-s", "1000", "--lost-per-node-hour", "0.05", "--repetitions", "5"])
    assert "| wasted gpu hours |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images-per-s", "0"], "--images-per-s is 0.0; allowed: above 0"),
        (["--images-per-s", "1", "--gpus", "4"], "--gpus-per-trial is 8; allowed: up to the --gpus 4"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
