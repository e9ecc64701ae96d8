"""How much reconstruction? Accuracy and retained factors against the weight of the reconstruction loss.

    python studies/loss_weight.py             the default: rendered solids, 5 weights x 2 seeds, all reference rows
    python studies/loss_weight.py --smoke     the same in about a minute, to see that everything works
    python studies/loss_weight.py --help      every option

A study of your own is a copy of this file with another space.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from eqssl.config import RunConfig, TrainConfig
from eqssl.study import Study, log_uniform, main

STUDY = Study(
    name="loss_weight",
    question="How does the weight of the reconstruction loss trade invariance for equivariance?",
    space={"recon.weight": log_uniform(0.3, 30.0)},
    configurations=5,
    seeds=2,
    sampler="grid",
    objectives={"knn": "maximize", "r2_mean": "maximize"},
    base=RunConfig(train=TrainConfig(epochs=3, batch_size=64, lr=4e-3)),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
