"""Does reconstruction help every method, and how does it stand beside the equivariant ones?

    python studies/baselines.py            every method that needs no tokens, on a small ResNet and rendered solids
    python studies/baselines.py --encoder.name test_vit --encoder.output-stride 4            iBOT too, on a small ViT

Every entrant has three settings of one knob, compared on val with one seed (`baselines_tuning`); the best of them is
trained again with fresh seeds and reported on test (`baselines`).
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
FRESH = {"train.seed": 1000, "evaluate.split": "test"}
STUDY = Study(
    name="baselines",
    question="Does reconstruction help every method, and how does it stand beside the equivariant ones?",
    space={},
    configurations=0,
    seeds=5,
    base=RunConfig(train=TrainConfig(epochs=3, batch_size=64, lr=4e-3)),
)


def entrants(run: RunConfig) -> dict[str, tuple[str, dict, str, tuple]]:
    """Return name -> the method it is compared with, what it overrides, its knob and the knob's settings."""
    paired = run.data.source in ("solids", "3diebench") and run.data.pairs != "image"
    found = {}
    for method in (*METHODS, *["ibot"] * ("vit" in run.encoder.name)):
        of = {"method.name": method}
        found[method] = (method, of | PLAIN, "train.lr", RATES)
        found[f"{method}, split-0"] = (method, of | SPLIT, "train.lr", RATES)
        found[f"{method} + reconstruction"] = (method, of, "recon.weight", WEIGHTS)
    if not paired:
        view = {"method.name": "vicreg", "recon.view": "intermediate", "recon.roles": "concat"}
        found["vicreg + intermediate"] = ("vicreg", view, "recon.weight", WEIGHTS)
    for name, factors in (("sie, all", "all"), ("sie, one", "rotation" if paired else "angle_deg")):
        sie = {"method.name": "sie", "method.options.factors": factors} | SPLIT
        found[name] = ("vicreg", sie, "method.options.equi_coeff", tuple(4.5 * share for share in SHARES))
    for name in ("augself", "equimod"):
        found[name] = ("simclr", {"method.name": name} | PLAIN, "method.options.weight", SHARES)
    return found


def best(means: dict[str, dict], settings: list[str], floor: float) -> str:
    """Return the setting with the highest R² of those that are accurate enough; if none is, the most accurate."""
    good = [name for name in settings if means[name]["knn"] >= floor]
    return max(good, key=lambda name: means[name]["r2_mean"]) if good else max(settings, key=lambda n: means[n]["knn"])


def run(study: Study, options: StudyOptions, **shown) -> dict:
    """Tune every entrant on val, then train what was best again and report it on test."""
    who, settings, rows = entrants(options.run), {}, {}
    for name, (_, overrides, knob, values) in who.items():
        settings[name] = [f"{name}, {knob} {value:g}" for value in values]
        rows |= {setting: overrides | {knob: value} for setting, value in zip(settings[name], values, strict=True)}
    tuning = dataclasses.replace(study, name="baselines_tuning", rows=rows)
    found = run_study(tuning, dataclasses.replace(options, seeds=1), **shown)
    means = {c["name"]: {f: m["estimate"] for f, m in c["metrics"].items()} for c in found["configurations"]}
    chosen, controls = {}, {}
    for name, (method, *_) in who.items():
        alone = max(means[setting]["knn"] for setting in settings[method])
        chosen[name] = rows[best(means, settings[name], alone - (name != method) * ACCURACY_MARGIN)]
        controls[name] = (method, f"{method}, split-0")
    references = {name: REFERENCE_ROWS[name] for name in ("constant", "pixels", "random", "supervised", "recon-only")}
    final = dataclasses.replace(study, rows=references | chosen, controls=controls)
    return run_study(final, dataclasses.replace(options, run=replace(options.run, FRESH)), **shown)


if __name__ == "__main__":
    sys.exit(main(STUDY, run=run))
