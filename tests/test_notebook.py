"""A notebook: training, evaluation, a study's tables, encoder and figures, and mistakes, as a reader sees them."""

from pathlib import Path

import pytest

from eqssl.config import EncoderConfig
from eqssl.files import write_json
from eqssl.study.results import summarise
from tests.report import made_up

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def execute(*cells: str) -> list[list]:
    """Return the outputs of each cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True).execute()
    return [[*cell.outputs] for cell in notebook.cells]


@pytest.fixture
def study(tmp_path) -> Path:
    """Return the folder of a study that has ended, with its encoder."""
    from eqssl.models.encoder import Encoder
    from eqssl.models.export import export_encoder

    folder = tmp_path / "study"
    write_json(folder / "summary.json", summarise(made_up.STUDY, made_up.records(60), made_up.ABOUT))
    export_encoder(Encoder(EncoderConfig(), 3, 32, (0.5,) * 3, (0.25,) * 3), folder / "best_encoder")
    return folder


@pytest.mark.slow
def test_a_notebook_trains_evaluates_and_shows_a_study(tmp_path, study):
    """Some 40 s: a kernel imports torch."""
    outputs = execute(
        "import eqssl",
        f"config = eqssl.RunConfig(data=eqssl.DataConfig(objects=8, image_size=32, cache={str(tmp_path)!r}),\n"
        "    train=eqssl.TrainConfig(epochs=2, batch_size=16),\n"
        "    evaluate=eqssl.EvaluateConfig(train_images=16, images=8))\n"
        "result = eqssl.train(config, progress=True)",
        "result",
        "eqssl.evaluate(result.encoder, eqssl.load_data(config.data), config=config.evaluate)['linear']",
        f"study = eqssl.load_study({str(study)!r})\nstudy",
        "study.trials.head()",
        "study.configs.head()",
        "study.best['r2_mean'], study.chosen.configuration",
        "study.encoder().dim",
        "study.figure('tradeoff')",
        "study.figure()",
        "_ = study.figure('tradeoff')",
        "study.figure('tradeof')",
        "eqssl.train(eqssl.RunConfig(method=eqssl.MethodConfig(name='vicregg')))",
    )
    _, trained, shown, evaluated, loaded, trials, configs, best, encoder, figure, again, assigned, typo, name = outputs
    first, last = printed(trained, "stdout")  # no line twice, nothing else
    warnings = printed(trained, "stderr")
    assert len(warnings) == len(set(warnings)) and all(of.startswith("--data.source solids: ") for of in warnings)
    assert first.startswith("epoch 1/2: loss ") and last.startswith("epoch 2/2: loss ")
    assert text(shown).startswith("Result(metrics={") and text(shown).endswith("epochs=2)")
    assert 0 <= float(text(evaluated[-1:])) <= 1
    assert text(loaded).startswith("<study ") and len(text(loaded)) < 200
    assert all("text/html" in of[-1].data and len(of) == 1 for of in (trials, configs))
    assert len(best) == 1 and int(text(encoder)) > 0
    for of in (figure, again):
        assert len(of) == 1 and "image/png" in of[0].data
    assert not assigned
    for of, end in ((typo, "did you mean tradeoff?"), (name, "did you mean vicreg?")):
        (error,) = of
        assert error.ename == "ValueError" and error.evalue.endswith(end) and "\n" not in error.evalue


def printed(outputs: list, stream: str) -> list[str]:
    """Return the lines that a cell has printed, to stdout or stderr."""
    lines = "".join(of.text for of in outputs if of.output_type == "stream" and of.name == stream).splitlines()
    return [line for line in lines if line]


def text(outputs: list) -> str:
    """Return the text of a cell's only output."""
    (output,) = outputs
    return output.data["text/plain"]
