"""Which view, by whose query? Accuracy and retained factors against the target and the roles in the attention.

    python studies/recon_view.py              rendered solids, 3 targets x 4 roles x 2 seeds, all reference rows
    python studies/recon_view.py --smoke      the same in a few minutes, to see that everything works

The first view and a random one are left out: both views are drawn alike, so they differ from the second by name only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from eqssl.config import ReconConfig, RunConfig, TrainConfig
from eqssl.study import Study, choice, main

STUDY = Study(
    name="recon_view",
    question="Which view should be reconstructed, and which should query?",
    space={
        "recon.view": choice("second", "both", "clean"),
        "recon.roles": choice("target-queries", "other-queries", "residual", "concat"),
    },
    configurations=12,
    seeds=2,
    sampler="grid",
    base=RunConfig(recon=ReconConfig(weight=10.0), train=TrainConfig(epochs=3, batch_size=64, lr=4e-3)),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
