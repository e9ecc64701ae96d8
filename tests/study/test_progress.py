import io

import pytest
from rich.console import Console

from eqssl.config import RunConfig
from eqssl.study.progress import StudyProgress
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import TrialRecord

TRIAL = Trial(Configuration.suggested({"recon.weight": 0.5}, 0), 1)


def run(console, status="COMPLETE", **values) -> str:
    configuration = TRIAL.configuration
    with StudyProgress(console, RunConfig(), total=3, ended=1, work=22, figures=["knn"]) as progress:
        progress.trial_started(TRIAL)
        for epoch in range(1, 11):
            progress.epoch_ended(TRIAL, {"epoch": float(epoch), "loss": 0.5})
        record = TrialRecord(
            trial_id=TRIAL.id,
            configuration=configuration.name,
            number=0,
            params={},
            seed=1,
            status=status,
            metrics={"knn": 0.75},
            **values,
        )
        progress.trial_ended(TRIAL, record)
    return console.file.getvalue()


def test_plain_lines_without_terminal_codes():
    text = run(Console(file=io.StringIO(), width=140))
    assert text == "[2/3] weight 0.5 / seed 1: knn 0.750 (0.0 s); about 0 s left\n"


def test_a_failure_says_why():
    text = run(Console(file=io.StringIO(), width=140), "FAILED", error="FloatingPointError: [bold]nan[/bold]")
    assert "FAILED: FloatingPointError: [bold]nan[/bold]" in text


@pytest.mark.parametrize("width", [60, 140])
def test_a_bar_on_a_terminal(width):
    text = run(Console(file=io.StringIO(), force_terminal=True, width=width))
    assert "\x1b[" in text
    assert "2/3" in text
