import base64
import io
import re
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eqssl.config import RunConfig, flatten
from eqssl.images import image_grid, save_reconstructions
from eqssl.report.attention import attention_picture
from eqssl.report.report import page, study_pictures, write_report
from eqssl.report.selection import main_rows
from eqssl.study.results import summarise
from tests.report import made_up
from tests.report.conftest import STUDY

RANGE = ["front", "forest", "response_recon_weight", "factors_recon_weight", "heatmap", "progress", "reconstructions"]
JOINT = ["front", "forest", "responses", "heatmap", "importances", "reconstructions"]  # its hypervolume never rises


@pytest.mark.parametrize(("which", "figures"), [("summary", RANGE), ("joint_summary", JOINT)])
def test_report_stands_alone_and_shows_every_figure(which, figures, request, tmp_path):
    summary = request.getfixturevalue(which)
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 1, 8, 8), dtype=np.uint8)
    for trial in summary["trials"]:
        (tmp_path / "trials" / trial["trial_id"]).mkdir(parents=True)
        np.save(tmp_path / "trials" / trial["trial_id"] / "reconstructions.npy", images)
    files = write_report(summary, tmp_path)
    for suffix in (".png", ".svg", ".pdf"):
        assert [path.stem for path in files if path.suffix == suffix] == figures
    assert all(path.stat().st_size for path in files)
    csv, tex = ({path.stem for path in files if path.suffix == suffix} for suffix in (".csv", ".tex"))
    assert csv == tex >= {"results", "gains", "separation", "gains_r2", "winners", "cost"}
    assert ("importances" in csv) is (which == "joint_summary")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "0123456789abcdef" in page
    assert set(re.findall(r'href="#(\w+)"', page)) == set(re.findall(r'<h2 id="(\w+)"', page))
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == len(figures)
    for data in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
        assert pixels.std() > 5


def test_the_sentence_heads_the_page_then_the_trade_off_then_the_gains(twin_summary, tmp_path):
    write_report(twin_summary, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.index(f'<p class="answer">{twin_summary["sentence"]}</p>') < page.index("<h2")
    names = re.findall(r'<h2 id="(\w+)"', page)
    assert names[:5] == ["figure_front", "figure_forest", "results", "gains", "figure_response_recon_weight"]
    assert names[5:8] == ["figure_factors_recon_weight", "separation", "figure_heatmap"]


def maps(attention="pooled-query"):
    """Return the arrays of an `attention.npz`."""
    rng = np.random.default_rng(0)
    names = ("target", "other", "read", "reconstruction", "swapped_target", "swapped_other")
    images = {name: rng.integers(0, 255, (4, 3, 8, 8), dtype=np.uint8) for name in names}
    weights = rng.dirichlet(np.ones(16), (4, 4)).reshape(4, 4, 4, 4).astype(np.float16)
    places = np.array([[1, 1], [1, 2], [2, 1], [2, 2]])
    return {"attention": np.array(attention), "positions": places, "weights": weights, **images}


def test_the_attention_is_that_of_the_main_row_if_its_file_is_there(twin_summary, tmp_path):
    main, *others = main_rows(twin_summary)
    paths = {}
    for trial in reversed(twin_summary["trials"]):
        folder = tmp_path / "trials" / trial["trial_id"]
        folder.mkdir(parents=True)
        paths[trial["configuration"]] = folder / "attention.npz"
    for name in others:
        np.savez_compressed(paths[name], **maps())
    assert "attention" not in [picture.name for picture in study_pictures(twin_summary, tmp_path, pd.DataFrame())]
    np.savez_compressed(paths[main], **maps())
    (picture,) = (p for p in study_pictures(twin_summary, tmp_path, pd.DataFrame()) if p.name == "attention")
    assert picture.title == f"Attention of {main}"


def test_retrieved_views_of_the_main_rows_with_misses_framed(twin_summary, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 5, 3, 8, 8), dtype=np.uint8)
    images[2, [0, 3]] = images[1, [0, 3]]
    for trial in twin_summary["trials"]:
        folder = tmp_path / "trials" / trial["trial_id"]
        folder.mkdir(parents=True)
        np.save(folder / "retrieved.npy", images)
    (picture,) = (p for p in study_pictures(twin_summary, tmp_path, pd.DataFrame()) if p.name == "retrieved")
    assert [axes.get_title() for axes in picture.figure.axes] == main_rows(twin_summary)
    for axes in picture.figure.axes:
        assert [frame.get_xy() for frame in axes.patches] == [(8 * column - 0.5, 15.5) for column in (1, 2, 4)]


def test_maps_have_one_scale_and_squares_of_one_colour_a_position():
    picture = attention_picture("weight 1", maps())
    *panels, bar = picture.figure.axes
    assert len(panels) == 4 * 9 and bar.get_ylabel() == "attention weight"
    heats = [axes.images[1] for axes in panels if len(axes.images) == 2]
    assert [heat.get_array().tolist() for heat in heats] == maps()["weights"].reshape(16, 4, 4).astype(float).tolist()
    assert {heat.get_clim() for heat in heats} == {(0, float(maps()["weights"].max()))}
    squares = [[(p.get_xy(), p.get_edgecolor()) for p in axes.patches[1::2]] for axes in panels[:6]]
    assert (
        squares[0] == [square for of_map in squares[2:] for square in of_map]
        and len(dict(squares[0])) == len({c for _, c in squares[0]}) == 4
    )
    assert squares[0][1][0] == (1.5, 0.5)  # column 2, row 1
    assert "tokens of the other view" in picture.caption and "the pooled vector of the target" in picture.caption
    assert "tokens of the target's own view" in attention_picture("weight 1", maps("other-queries")).caption


def test_only_options_that_differ_from_the_defaults_are_in_sight(summary, tmp_path):
    options = flatten(RunConfig()) | {"train.epochs": 3}
    write_report(summary | {"options": options}, tmp_path)
    shown, _, folded = (tmp_path / "report.html").read_text().partition('id="options"')[2].partition("<details>")
    assert re.findall("<dt>(.*?)</dt>", shown) == ["train.epochs"]
    assert re.findall("<dt>(.*?)</dt>", folded.partition("</details>")[0]) == list(options)


def test_a_smoke_run_is_marked(twin_summary):
    for study, marked in (("weight", False), ("weight_smoke", True)):
        assert ("A smoke run" in page(twin_summary | {"study": study}, [], {})) is marked


@pytest.mark.slow
def test_the_same_summary_gives_the_same_bytes(twin_summary, tmp_path):
    first, again = (write_report(twin_summary, tmp_path / name) for name in "ab")
    assert len(first) == len(again) and all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again, strict=True))


def test_study_without_results_still_gives_a_report(tmp_path):
    failed = made_up.record("weight 1", {}, 0, 0, status="FAILED", metrics={}, error="loss <nan>")
    files = write_report(summarise(STUDY, [failed], made_up.ABOUT), tmp_path)
    assert not [path for path in files if path.suffix == ".png"]
    page = (tmp_path / "report.html").read_text()
    assert "loss &lt;nan&gt;" in page and "Is a &lt; b &amp; c?" in page


@pytest.mark.slow
def test_500_trials_take_less_than_a_minute_and_20_mb(tmp_path):
    records, start = made_up.records(500), time.process_time()
    files = write_report(summarise(made_up.STUDY, records, made_up.ABOUT), tmp_path)
    assert time.process_time() - start < 60
    assert sum(path.stat().st_size for path in files) < 20e6


def test_grid_puts_every_image_where_it_belongs(tmp_path):
    images = np.arange(3 * 2 * 3 * 4 * 5, dtype=np.uint8).reshape(3, 2, 3, 4, 5)
    grid = image_grid(images)
    assert grid.shape == (12, 10, 3)
    assert (grid[4:8, 5:10] == images[1, 1].transpose(1, 2, 0)).all()
    save_reconstructions(images, tmp_path / "deep" / "grid.png")
    assert (np.asarray(Image.open(tmp_path / "deep" / "grid.png")) == grid).all()
