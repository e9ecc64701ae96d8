from dataclasses import replace

import pytest

from eqssl.study import Study, log_uniform
from eqssl.study.results import summarise
from eqssl.study.store.records import TrialRecord
from tests.report import made_up

STUDY = Study(name="toy", question="Is a < b & c?", space={"recon.weight": log_uniform(0.1, 10.0)})
WEIGHTS = (10.0, 0.1, 1.0)


def weight_records(seeds: int = 2) -> list[TrialRecord]:
    """Return the trials of a study of one range."""
    rows = {"base": None, "no-recon": None, **{f"weight {w:g}": w for w in WEIGHTS}}
    found = []
    for number, (name, weight) in enumerate(rows.items()):
        overrides = {"recon.weight": weight or 0.0}
        for seed in range(seeds):
            found.append(made_up.record(name, overrides, seed, None if weight is None else number))
    return found


TWINS = {f"weight {w:g}": f"weight {w:g}, autoencode" for w in WEIGHTS}
WITH_TWINS = replace(STUDY, controls={name: ("base", "no-recon", twin) for name, twin in TWINS.items()})


def twin_records(seeds: int = 3) -> list[TrialRecord]:
    """Return the trials of a study of one range, of which every configuration has an auto-encoding control."""
    found = [made_up.record("pixels", {}, 0, None, metrics={"knn": 0.5, "linear": 0.5})]
    for name, twin in TWINS.items():
        overrides = {"recon.weight": float(name.split()[1]), "recon.view": "second"}
        twin_of = overrides | {"recon.attention": "autoencode"}
        found += [made_up.record(twin, twin_of, seed, None) for seed in range(seeds)]
        number = WEIGHTS.index(overrides["recon.weight"])
        found += [made_up.record(name, overrides, seed, number) for seed in range(seeds)]
    return [*weight_records(seeds)[: 2 * seeds], *found]


@pytest.fixture(scope="session")
def twin_summary():
    """Return the summary of a study of one range with auto-encoding controls, three seeds each."""
    return summarise(WITH_TWINS, twin_records(), made_up.ABOUT)


@pytest.fixture(scope="session")
def summary():
    """Return the summary of a study of one range, two seeds each."""
    return summarise(STUDY, weight_records(), made_up.ABOUT)


@pytest.fixture(scope="session")
def joint_summary():
    """Return the summary of a study of four options, 31 configurations beside the reference rows."""
    return summarise(made_up.STUDY, made_up.records(110), made_up.ABOUT)
