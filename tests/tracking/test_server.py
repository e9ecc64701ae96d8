"""Tracking by a real server of MLflow: many trials at once, outages, and what its pages show of a study."""

import io
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from scipy import ndimage

from eqssl.config import AUGMENTATIONS, RunConfig, replace
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import TrialRecord
from eqssl.tracking.study import StudyTracker
from tests.mlflow_server import mlflow_server
from tests.storage import Proxy

pytestmark = pytest.mark.slow
PATIENCE_S = 120.0  # other work may hold this machine
TRIALS, EPOCHS = 32, 5
VARIED = ["augment.brightness", "augment.rotation", "encoder.equi_fraction", "recon.view", "recon.weight"]
BASE = replace(RunConfig(), {f"augment.{family}": 0.5 for family in AUGMENTATIONS})
SEARCHED = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as port:
        yield port


@pytest.fixture(scope="module")
def client(server) -> MlflowClient:
    return MlflowClient(f"http://127.0.0.1:{server}")


@pytest.fixture
def proxy(server):
    proxy = Proxy(server)
    yield proxy
    proxy.away()


def start(port: int, name: str, folder: Path, varied: list[str]) -> StudyTracker:
    tracker = StudyTracker(f"http://127.0.0.1:{port}", name, varied, ["knn", "r2_mean"], folder)
    tracker.ready()
    tracker.begin(name, BASE, [])
    return tracker


def suggested(number: int, **more) -> Trial:
    return Trial(Configuration.suggested({"recon.weight": 0.5 + number, **more}, number), 1)


def log_epochs(tracker: StudyTracker, trial: Trial, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        tracker.epoch_ended(trial, {"epoch": float(epoch), "loss": 1 / epoch})


def end(tracker: StudyTracker, trial: Trial, **metrics: float) -> None:
    configuration = trial.configuration
    record = TrialRecord(
        trial_id=trial.id, configuration=configuration.name, number=configuration.number,
        params=configuration.overrides or {}, seed=trial.seed, status="COMPLETE", epochs=EPOCHS, metrics=metrics,
    )  # fmt: skip
    tracker.trial_ended(trial, record)


def tracked(client: MlflowClient, name: str) -> tuple[list, list]:
    """Return the parents and the children that an experiment has."""
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return tuple([run for run in runs if run.data.tags["kind"] == kind] for kind in ("study", "trial"))


def steps(client: MlflowClient, run, metric: str = "loss") -> list[int]:
    return [entry.step for entry in client.get_metric_history(run.info.run_id, metric)]


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_trials_that_log_at_once_lose_nothing(server, client, tmp_path, capsys):
    tracker = start(server, "crowd", tmp_path, ["recon.weight"])
    trials = [suggested(number) for number in range(TRIALS)]
    together = threading.Barrier(TRIALS)

    def run(trial: Trial) -> None:
        together.wait()
        tracker.trial_started(trial)
        log_epochs(tracker, trial, 1, EPOCHS)
        end(tracker, trial, knn=trial.configuration.number / TRIALS)

    with ThreadPoolExecutor(TRIALS) as pool:
        list(pool.map(run, trials))
    tracker.close("FINISHED", [], PATIENCE_S)
    assert tracker.dropped == 0
    assert capsys.readouterr().out == ""  # MLflow would write two lines a run into the study's progress
    (parent,), children = tracked(client, "crowd")
    by_trial = {child.data.tags["trial_id"]: child for child in children}
    assert len(children) == TRIALS and by_trial.keys() == {trial.id for trial in trials}
    for number, trial in enumerate(trials):
        child = by_trial[trial.id]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params == {"recon.weight": str(0.5 + number)} and child.data.tags["seed"] == "1"
        assert child.data.metrics["Objective/knn"] == number / TRIALS
        history = client.get_metric_history(child.info.run_id, "loss")
        assert [(entry.step, entry.value) for entry in history] == [(n, 1 / n) for n in range(1, EPOCHS + 1)]


def test_a_server_that_is_away_for_a_while_costs_no_time_and_no_epoch(proxy, client, tmp_path):
    tracker, trial = start(proxy.port, "outage", tmp_path, ["recon.weight"]), suggested(0)
    tracker.trial_started(trial)
    log_epochs(tracker, trial, 1, 2)
    wait_until(lambda: [steps(client, child) for child in tracked(client, "outage")[1]] == [[1, 2]])
    proxy.away()
    calls = []
    for epoch in range(3, EPOCHS):
        begun = time.monotonic()
        log_epochs(tracker, trial, epoch, epoch)
        calls.append(time.monotonic() - begun)
        time.sleep(1)
    assert max(calls) < 0.5
    assert steps(client, tracked(client, "outage")[1][0]) == [1, 2]
    proxy.back()
    log_epochs(tracker, trial, EPOCHS, EPOCHS)
    end(tracker, trial, knn=0.5)
    tracker.close("FINISHED", [], PATIENCE_S)
    assert tracker.dropped == 0
    (parent,), (child,) = tracked(client, "outage")
    assert steps(client, child) == list(range(1, EPOCHS + 1))
    assert child.data.metrics["Objective/knn"] == 0.5
    assert parent.info.status == child.info.status == "FINISHED"


def test_what_the_server_took_is_not_logged_again_where_its_answer_was_lost(proxy, client, tmp_path):
    proxy.lose_answers(b"runs/create", b"runs/create", b'"loss"', b'"Objective/knn"')
    tracker, trial = start(proxy.port, "unanswered", tmp_path, ["recon.weight"]), suggested(0)
    tracker.trial_started(trial)
    log_epochs(tracker, trial, 1, EPOCHS)
    end(tracker, trial, knn=0.5)
    tracker.close("FINISHED", [], PATIENCE_S)
    assert proxy.unanswered == [] and tracker.dropped == 0
    _, (child,) = tracked(client, "unanswered")
    assert len(tracked(client, "unanswered")[0]) == 1
    assert steps(client, child) == list(range(1, EPOCHS + 1))
    assert steps(client, child, "Objective/knn") == [EPOCHS]


def test_a_server_that_stays_away_is_asked_now_and_then_and_what_is_lost_is_counted(proxy, client, tmp_path):
    tracker, trial = start(proxy.port, "gone", tmp_path, ["recon.weight"]), suggested(0)
    log_epochs(tracker, trial, 1, 1)
    wait_until(lambda: [steps(client, child) for child in tracked(client, "gone")[1]] == [[1]])
    proxy.away()
    log_epochs(tracker, trial, 2, EPOCHS)
    begun, used = time.monotonic(), time.process_time()
    tracker.close("FINISHED", [], patience_s=3)
    assert 3 < time.monotonic() - begun < 10
    assert time.process_time() - used < 1
    assert tracker.dropped == EPOCHS  # all but the first, and the end of the study


@pytest.fixture(scope="module")
def study(server, tmp_path_factory) -> list[Trial]:
    """Log a study and return its trials: 12 configurations, a row with an encoder and one without."""
    trials = []
    for n in range(SEARCHED):
        strengths = {"augment.rotation": n / 11, "augment.brightness": n * 5 % 12 / 11}
        trials.append(suggested(n, **strengths, **{"recon.view": ("both", "clean")[n % 2]}))
    trials.append(Trial(Configuration("base", {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}), 0))
    trials.append(Trial(Configuration("pixels", None), 0))
    tracker = start(server, "shown", tmp_path_factory.mktemp("shown"), VARIED)
    for place, trial in enumerate(trials):
        tracker.trial_started(trial)
        metrics = {"loss": 1.0, "auroc/flip": 0.5} if trial.configuration.overrides else {"auroc/flip": 0.5}
        end(tracker, trial, **metrics, knn=0.3 + place / 20, r2_mean=0.9 - place / 20)
    chosen = {"name": trials[0].configuration.name, "metrics": {"knn": {"estimate": 0.3}, "r2_mean": {"estimate": 0.9}}}
    summary = {"chosen": {"configuration": chosen["name"]}, "configurations": [chosen]}
    tracker.close("FINISHED", [], PATIENCE_S, summary)
    return trials


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test]" brings playwright')
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed: apt-get install chromium")
    alone = ["--no-sandbox", "--disable-gpu"]
    alone += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=alone, timeout=60_000)
        yield browser
        browser.close()


def listed(browser, server: int, study: list[Trial]):
    """Open the study's page and its run, as a new visitor, and return the page and the rows below the run."""
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    page.set_default_timeout(60_000)
    page.goto(f"http://127.0.0.1:{server}")
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("link", name="shown").first.click()
    run = page.get_by_role("row").filter(has=page.get_by_role("link", name="shown"))
    run.get_by_role("button").click()
    rows = page.get_by_role("row").filter(has=page.get_by_role("link", name="seed"))
    rows.nth(len(study) - 1).wait_for()
    return page, rows


@pytest.fixture(scope="module")
def comparison(browser, server, study):
    """Select all trials of the study, compare them, and return the page."""
    page, rows = listed(browser, server, study)
    for row in rows.all():
        row.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(f"Comparing {len(study)} Runs").wait_for()
    return page


def choose(page, **options: str) -> None:
    """Choose what the axes X, Y, Z of the plot show."""
    for axis, option in options.items():
        page.get_by_label(f"{axis}-axis:").click()
        page.get_by_role("option", name=option, exact=True).click()


def drawn(page, path: Path, *titles: str) -> np.ndarray:
    """Return the pixels of the plot, once it has all these axis titles and no longer changes; keep the page's."""
    plot = page.get_by_role("tabpanel").locator(".js-plotly-plot svg").first
    for title in titles:
        page.get_by_role("tabpanel").locator("svg").get_by_text(title, exact=True).first.wait_for()
    last = b""
    while (now := plot.screenshot()) != last:
        last = now
        page.wait_for_timeout(1000)
    page.screenshot(path=path)
    return np.asarray(Image.open(io.BytesIO(now)).convert("RGB")).astype(int)


def pieces(mask: np.ndarray) -> int:
    return ndimage.label(mask)[1]


def coloured(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels, axis=-1) > 25  # axes and text are grey


def test_the_trials_are_listed_below_their_study(browser, server, study, tmp_path):
    page, rows = listed(browser, server, study)
    page.screenshot(path=tmp_path / "study.png")
    assert sorted(rows.get_by_role("link").all_inner_texts()) == sorted(trial.name for trial in study)


def test_a_comparison_of_all_runs_begins_with_varied_options_and_objectives(browser, server, study, tmp_path):
    page, rows = listed(browser, server, study)
    parent = page.get_by_role("row").filter(has=page.get_by_role("link", name="shown"))
    for row in (parent, *rows.all()):
        row.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(f"Comparing {len(study) + 1} Runs").wait_for()
    panel = page.get_by_role("tabpanel")
    page.get_by_role("tab", name="Parallel Coordinates Plot").click()
    panel.locator("[class*=selection-item-content]").first.wait_for()
    page.screenshot(path=tmp_path / "all.png", full_page=True)
    chosen = panel.locator("[class*=selection-item-content]").all_inner_texts()
    assert chosen[-1] in ("Objective/knn", "Objective/r2_mean") and set(chosen[:-1]) <= {*VARIED, "seed"}
    page.get_by_role("tab", name="Scatter Plot").click()
    drawn(page, tmp_path / "scatter.png", "augment.brightness", "Objective/knn")


def test_parallel_coordinates_have_a_line_for_every_trial(comparison, study, tmp_path):
    axes = ["augment.brightness", "augment.rotation", "recon.view", "recon.weight"], ["Objective/knn"]
    comparison.get_by_role("tab", name="Parallel Coordinates Plot").click()
    comparison.get_by_role("button", name="Clear All").click()
    for place, options in enumerate(axes):
        comparison.get_by_role("tabpanel").get_by_role("combobox").nth(place).click(force=True)
        for option in options:
            comparison.keyboard.type(option)
            comparison.keyboard.press("Enter")
        comparison.keyboard.press("Escape")
    pixels = drawn(comparison, tmp_path / "parallel.png", *axes[0], *axes[1])
    # Where lines meet or pass below text fewer are seen, never more.
    assert max(pieces(column) for column in coloured(pixels).T) == len(study)


def test_a_scatter_plot_has_a_point_for_every_trial_with_an_encoder(comparison, study, tmp_path):
    comparison.get_by_role("tab", name="Scatter Plot").click()
    choose(comparison, X="recon.weight", Y="Objective/knn")
    pixels = drawn(comparison, tmp_path / "scatter.png", "recon.weight", "Objective/knn")
    assert pieces(coloured(pixels)) == len(study) - 1


def test_a_contour_plot_has_a_point_for_every_trial_with_an_encoder(comparison, study, tmp_path):
    comparison.get_by_role("tab", name="Contour Plot").click()
    choose(comparison, X="augment.brightness", Y="augment.rotation", Z="Objective/knn")
    pixels = drawn(comparison, tmp_path / "contour.png", "augment.brightness", "augment.rotation")
    red, _, blue = np.moveaxis(pixels, -1, 0)
    assert len(np.unique(pixels[blue > red], axis=0)) > 100  # the area's colour follows the figure
    assert pieces(red > blue + 20) == len(study) - 1
