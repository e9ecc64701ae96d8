"""Does reconstruction help every method, and how does it stand beside the equivariant ones?

    python studies/baselines.py            every method that needs no tokens, on a small ResNet and rendered solids
    python studies/baselines.py --encoder.name test_vit --encoder.output-stride 4            iBOT too, on a small ViT

Every method alone has three learning rates, compared on val with one seed (`baselines_alone`); at its best rate, every
entrant that builds on it has three settings of one knob (`baselines_tuning`). What is best is trained again with fresh
seeds and reported on test (`baselines`); an entrant whose settings all failed is left out.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from eqssl.config import RunConfig, TrainConfig, replace
from eqssl.evaluation.statistics import ACCURACY_MARGIN
from eqssl.study import REFERENCE_ROWS, Study, StudyOptions, main, run_study

METHODS = ("simclr", "vicreg", "barlow_twins", "byol", "simsiam", "moco_v3", "dino")
PLAIN, SPLIT = {"encoder.split": 0.0, "recon.weight": 0.0}, {"recon.weight": 0.0}
RATES, WEIGHTS, SHARES = (2e-3, 4e-3, 8e-3), (1.0, 5.0, 25.0), (0.3, 1.0, 3.0)
Rows = dict[str, dict]
STUDY = Study(
    name="baselines",
    question="Does reconstruction help every method, and how does it stand beside the equivariant ones?",
    space={},
    configurations=0,
    seeds=5,
    base=RunConfig(train=TrainConfig(epochs=3, batch_size=64, lr=4e-3)),
)


def settings(name: str, overrides: dict, knob: str, values: tuple) -> Rows:
    """Return the rows of an entrant, one for each setting of its knob."""
    return {f"{name}, {knob} {value:g}": overrides | {knob: value} for value in values}


def entrants(alone: Rows, paired: bool) -> dict[str, tuple[str, Rows]]:
    """Return name -> the method it builds on and its settings, for the methods that `alone` has."""
    found = {}
    for method, row in alone.items():
        at = {"method.name": method, "train.lr": row["train.lr"]}
        found[f"{method}, split-0"] = (method, {f"{method}, split-0": at | SPLIT})
        found[f"{method} + reconstruction"] = (
            method,
            settings(f"{method} + reconstruction", at, "recon.weight", WEIGHTS),
        )
    if "vicreg" in alone:
        at = {"train.lr": alone["vicreg"]["train.lr"]}
        for name, factors in (("sie, all", "all"), ("sie, one", "rotation" if paired else "angle_deg")):
            sie = at | SPLIT | {"method.name": "sie", "method.options.factors": factors}
            found[name] = ("vicreg", settings(name, sie, "method.options.equi_coeff", tuple(4.5 * s for s in SHARES)))
        stops = at | {"method.name": "vicreg", "recon.view": "intermediate", "recon.roles": "concat"}
        if not paired:  # no image lies between two views of an object
            found["vicreg + intermediate"] = (
                "vicreg",
                settings("vicreg + intermediate", stops, "recon.weight", WEIGHTS),
            )
    for name in ("augself", "equimod") if "simclr" in alone else ():
        peer = PLAIN | {"method.name": name, "train.lr": alone["simclr"]["train.lr"]}
        found[name] = ("simclr", settings(name, peer, "method.options.weight", SHARES))
    return found


def best(summary: dict, rows: Rows, floor: float) -> str | None:
    """Return the row with the highest R² of those that are accurate enough; if none is, the most accurate."""
    done = {
        c["name"]: c["metrics"] for c in summary["configurations"] if c["name"] in rows and "r2_mean" in c["metrics"]
    }
    accuracy = {name: m["knn"]["estimate"] if "knn" in m else 0.0 for name, m in done.items()}
    good = [name for name in done if accuracy[name] >= floor]
    return (
        max(good, key=lambda n: done[n]["r2_mean"]["estimate"]) if good else max(done, key=accuracy.get, default=None)
    )


def run(study: Study, options: StudyOptions, **shown) -> dict:
    """Tune every entrant on val, then train what was best again and report it on test."""
    on_val = dataclasses.replace(options, seeds=1, run=replace(options.run, {"evaluate.split": "val"}))
    methods = (*METHODS, *["ibot"] * ("vit" in options.run.encoder.name))
    rates = {m: settings(m, PLAIN | {"method.name": m}, "train.lr", RATES) for m in methods}
    tuning = dataclasses.replace(
        study, name="baselines_alone", rows={k: v for r in rates.values() for k, v in r.items()}
    )
    found = run_study(tuning, on_val, **shown)
    chosen = {m: rows[name] for m, rows in rates.items() if (name := best(found, rows, 2.0))}  # the most accurate
    others = entrants(chosen, found["data"]["paired"])
    accuracy = {c["name"]: c["metrics"].get("knn", {}).get("estimate", 0.0) for c in found["configurations"]}
    floors = {m: max(accuracy[name] for name in rates[m]) - ACCURACY_MARGIN for m in chosen}
    tuning = dataclasses.replace(
        tuning, name="baselines_tuning", rows={k: v for _, r in others.values() for k, v in r.items()}
    )
    found = run_study(tuning, on_val, **shown)
    chosen |= {e: rows[name] for e, (m, rows) in others.items() if (name := best(found, rows, floors[m]))}
    controls = {e: (m, f"{m}, split-0") for e, (m, _) in others.items()} | {m: (m, f"{m}, split-0") for m in rates}
    rows = {n: REFERENCE_ROWS[n] for n in ("constant", "pixels", "random", "supervised", "recon-only")} | chosen
    fresh = replace(options.run, {"train.seed": options.run.train.seed + 1000, "evaluate.split": "test"})
    return run_study(
        dataclasses.replace(study, rows=rows, controls=controls), dataclasses.replace(options, run=fresh), **shown
    )


if __name__ == "__main__":
    sys.exit(main(STUDY, run=run))
