"""Records of a study that never ran, whose effects are known."""

import math
from typing import Any

import numpy as np

from eqssl.study import REFERENCE_ROWS, Study, choice, log_uniform, uniform
from eqssl.study.definition import WITHOUT_ENCODER
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import TrialRecord

SPACE = {
    "recon.weight": log_uniform(0.1, 10.0),
    "recon.view": choice("second", "other", "intermediate"),
    "augment.rotation": uniform(0.0, 1.0),
    "augment.hue": uniform(0.0, 1.0),
}
STUDY = Study(name="made_up", question="Which weight, & which view?", space=SPACE, configs=40, seeds=3)
ABOUT = {
    "study_id": "0",
    "data": {"name": "made up", "digest": "0123456789abcdef"},
    "concurrency": "1 trial at a time",
    "options": {"train.epochs": 3, "method.name": "vicreg"},
    "wall_s": 3600.0,
    "status": "complete",
}
FACTORS = ("angle_deg", "brightness", "contrast", "dx", "dy", "log_scale")


def records(trials: int, seeds: int = 3) -> list[TrialRecord]:
    """Return that many trials, the reference rows among them.

    The accuracy falls with the logarithm of the weight and is best at a middle rotation; R2 rises with the weight,
    most where the view is the second, half as much by auto-encoding; the hue does nothing.
    """
    rng = np.random.default_rng(0)
    rows = [Configuration(name, overrides) for name, overrides in REFERENCE_ROWS.items()]
    made = [Trial(row, seed) for row in rows for seed in range(1 if row.name in WITHOUT_ENCODER else seeds)]
    number = 0
    while len(made) < trials:
        params = {
            "recon.weight": round(10 ** rng.uniform(-1, 1), 4),
            "recon.view": str(rng.choice(SPACE["recon.view"].values)),
            "augment.rotation": round(rng.uniform(), 4),
            "augment.hue": round(rng.uniform(), 4),
        }
        made += [Trial(Configuration.suggested(params, number), seed) for seed in range(seeds)]
        number += 1
    made = made[:trials]
    return [record(t.configuration.name, t.configuration.overrides or {}, t.seed, t.configuration.number) for t in made]


def record(name: str, params: dict, seed: int, number: int | None, **values: Any) -> TrialRecord:
    """Return a trial that ended well."""
    rng = np.random.default_rng([seed, *name.encode()])
    values = {
        "status": "COMPLETE",
        "metrics": _metrics(params, rng),
        "wall_s": rng.uniform(50, 60),
        "epochs": 3,
        **values,
    }
    trial_id = Trial(Configuration(name, params, number), seed).id
    return TrialRecord(
        trial_id=trial_id, configuration=name, number=number, params=params, seed=seed, overhead_s=0.1, **values
    )


def _metrics(params: dict, rng: np.random.Generator) -> dict[str, float]:
    dose = math.log10(params.get("recon.weight") or 0.1)
    seen = {"second": 0.1, "other": 0.05}.get(params.get("recon.view"), 0.0)
    accuracy = 0.7 - 0.05 * dose - 0.2 * (params.get("augment.rotation", 0.5) - 0.5) ** 2
    found = {"knn": accuracy, "linear": accuracy + 0.05, "inv/linear": accuracy, "equi/linear": accuracy - 0.1}
    alone = 0.5 if params.get("recon.attention") == "autoencode" else 1.0
    r2 = 0.4 + alone * seen * (dose + 1) + 0.02 * dose
    for place, factor in enumerate(FACTORS):
        for part, share in (("", 1.0), ("inv/", 0.6), ("equi/", 0.9)):
            for figure in ("r2", "mlp_r2", "equivariance"):
                found[f"{part}{figure}/{factor}"] = share * r2 + 0.03 * place
    found = {name: value + rng.normal(0, 0.01) for name, value in found.items()}
    for part in ("", "inv/", "equi/"):
        found[f"{part}r2_mean"] = float(np.mean([found[f"{part}r2/{factor}"] for factor in FACTORS]))
    return found | {"train_s": rng.uniform(10, 12), "parameters": 1e6, "requires_transform": 0.0}
