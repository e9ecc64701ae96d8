import pytest

from eqssl.study import Study, log_uniform
from eqssl.study.record import TrialRecord
from eqssl.study.results import summarise
from tests.report import made_up

STUDY = Study(name="toy", question="Is a < b & c?", space={"recon.weight": log_uniform(0.1, 10.0)})
WEIGHTS = (10.0, 0.1, 1.0)


def weight_records(seeds: int = 2) -> list[TrialRecord]:
    """Return the trials of a study of one range."""
    rows = {"base": None, "split-0": None, **{f"weight {w:g}": w for w in WEIGHTS}}
    found = []
    for number, (name, weight) in enumerate(rows.items()):
        overrides = {"recon.weight": weight or 0.0}
        for seed in range(seeds):
            found.append(made_up.record(name, overrides, seed, None if weight is None else number))
    return found


@pytest.fixture(scope="session")
def summary():
    """Return the summary of a study of one range, two seeds each."""
    return summarise(STUDY, weight_records(), made_up.ABOUT)


@pytest.fixture(scope="session")
def joint_summary():
    """Return the summary of a study of four options, 31 configurations beside the reference rows."""
    return summarise(made_up.STUDY, made_up.records(110), made_up.ABOUT)
