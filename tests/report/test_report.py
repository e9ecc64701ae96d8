import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from eqssl.report.figures import image_grid, save_reconstructions
from eqssl.report.report import write_report
from eqssl.report.tables import in_order, interval_text, table_rows
from eqssl.study import Study, log_uniform
from eqssl.study.record import TrialRecord
from eqssl.study.results import summarise

STUDY = Study(name="toy", question="Is a < b & c?", space={"recon.weight": log_uniform(0.1, 10.0)})
WEIGHTS = (10.0, 0.1, 1.0)


@pytest.fixture
def summary():
    rng = np.random.default_rng(0)
    rows = {"base": None, "split-0": None, **{f"weight {w:g}": w for w in WEIGHTS}}
    records = []
    for number, (name, weight) in enumerate(rows.items()):
        for seed in range(2):
            r2 = {f"r2/{f}": 0.4 + 0.1 * (weight or 0) / 10 + rng.normal(0, 0.01) for f in ("hue", "angle", "dx")}
            records.append(
                TrialRecord(
                    trial_id=f"{number}{seed}",
                    configuration=name,
                    number=None if weight is None else number,
                    params={"recon.weight": weight or 0.0},
                    seed=seed,
                    status="COMPLETE",
                    metrics={"knn": 0.7 + rng.normal(0, 0.01), "r2_mean": sum(r2.values()) / 3, **r2},
                )
            )
    about = {"data": {"name": "toy"}, "concurrency": "1", "wall_s": 1.0, "options": {}, "status": "complete"}
    return summarise(STUDY, records, about)


def test_report_stands_alone_and_shows_every_figure(summary, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 1, 8, 8), dtype=np.uint8)
    for trial in summary["trials"]:
        (tmp_path / "trials" / trial["trial_id"]).mkdir(parents=True)
        np.save(tmp_path / "trials" / trial["trial_id"] / "reconstructions.npy", images)
    files = {path.name for path in write_report(summary, tmp_path)}
    assert files == {
        "response_recon_weight.png",
        "factors_recon_weight.png",
        "reconstructions.png",
        "report.html",
    }
    page = (tmp_path / "report.html").read_text()
    assert "Is a &lt; b &amp; c?" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3
    for data in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
        assert pixels.std() > 5


def test_table_orders_searched_configurations_by_their_values(summary):
    names = [c["name"] for c in in_order(summary["configurations"])]
    assert names == ["base", "split-0", "weight 0.1", "weight 1", "weight 10"]
    head, rows = table_rows(summary)
    assert head[:4] == ["configuration", "seeds", "kNN", "R² mean"]
    assert [row[0] for row in rows] == names
    assert all(len(row) == len(head) for row in rows)


def test_study_without_results_still_gives_a_report(tmp_path):
    failed = TrialRecord(
        trial_id="0", configuration="weight 1", number=0, params={}, seed=0, status="FAILED", error="loss <nan>"
    )
    about = {"data": {}, "concurrency": "", "wall_s": 1.0, "options": {}, "status": "complete"}
    assert [path.name for path in write_report(summarise(STUDY, [failed], about), tmp_path)] == ["report.html"]
    assert "loss &lt;nan&gt;" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("bounds", "signed", "text"),
    [
        ({"estimate": 0.5, "low": 0.4, "high": 0.6}, False, "0.500 ± 0.100"),
        ({"estimate": 0.5, "low": None, "high": None}, True, "+0.500"),
        (None, False, ""),
    ],
)
def test_intervals_as_text(bounds, signed, text):
    assert interval_text(bounds, signed=signed) == text


def test_grid_puts_every_image_where_it_belongs(tmp_path):
    images = np.arange(3 * 2 * 3 * 4 * 5, dtype=np.uint8).reshape(3, 2, 3, 4, 5)
    grid = image_grid(images)
    assert grid.shape == (12, 10, 3)
    assert (grid[4:8, 5:10] == images[1, 1].transpose(1, 2, 0)).all()
    save_reconstructions(images, tmp_path / "deep" / "grid.png")
    assert (np.asarray(Image.open(tmp_path / "deep" / "grid.png")) == grid).all()
