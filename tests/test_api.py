"""The public names of the package, and imports that wait for no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import eqssl


def imported(code: str) -> str:
    """Return the output of code in a new process that ends with whether it had imported torch."""
    code += "\nimport sys; print('torch' in sys.modules)"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip().rpartition("\n")[2]


def test_every_public_name_resolves_and_is_listed():
    assert set(eqssl.__all__) <= set(dir(eqssl))
    assert all(getattr(eqssl, name) is not None for name in eqssl.__all__)
    with pytest.raises(AttributeError, match="module 'eqssl' has no attribute 'trane'"):
        _ = eqssl.trane


def test_importing_a_part_does_not_change_the_functions():
    import eqssl.evaluation
    import eqssl.training

    assert callable(eqssl.train) and callable(eqssl.evaluate)


@pytest.mark.parametrize(
    "code",
    [
        "import eqssl; dir(eqssl); eqssl.RunConfig()",
        "from eqssl.cli import main; main(['--help'])",
        "from eqssl.cli import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass",
        "from eqssl.cli import main; main(['train', '--recon.weight', '-1'])",
    ],
)
def test_configurations_help_and_refused_options_need_no_torch(code):
    assert imported(code) == "False"


@pytest.mark.slow
def test_an_encoding_without_a_letter_and_a_place_that_cannot_be_written_are_no_tracebacks(tmp_path):
    (tmp_path / "study").mkdir()
    stored = Path(__file__).parents[1] / "studies" / "measured" / "loss_weight" / "summary.json"
    (tmp_path / "study" / "summary.json").write_bytes(stored.read_bytes())
    command = [sys.executable, "-m", "eqssl", "report", str(tmp_path / "study")]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert done.returncode == 0 and "R? mean" in done.stdout, done.stderr
    (tmp_path / "study" / "tables.md").unlink()
    (tmp_path / "study" / "tables.md").mkdir()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "tables.md" in done.stderr, done.stderr
