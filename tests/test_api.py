"""The public names of the package, and imports that wait for no torch."""

import subprocess
import sys

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
