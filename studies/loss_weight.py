"""How much reconstruction? Accuracy and retained factors against the weight of the reconstruction loss.

    python studies/loss_weight.py             the default: solids on a turntable, 3 weights x 2 seeds, all controls
    python studies/loss_weight.py --smoke     the same in about a minute, to see that everything works
    python studies/loss_weight.py --help      every option

Every weight has its twin, plain auto-encoding at the same weight: a gain beyond it is the second view's. A study of
your own is a copy of this file with another space.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from eqssl.config import EvaluateConfig, RunConfig, TrainConfig
from eqssl.study import Study, log_uniform, main

STUDY = Study(
    name="loss_weight",
    question="How does the weight of the reconstruction loss trade invariance for equivariance?",
    space={"recon.weight": log_uniform(1.0, 100.0)},
    configurations=3,
    seeds=2,
    sampler="grid",
    objectives={"linear": "maximize", "r2_mean": "maximize"},
    twins=True,
    base=RunConfig(train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2), evaluate=EvaluateConfig(level="full")),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
