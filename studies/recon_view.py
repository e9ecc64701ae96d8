"""Which view, by which attention? Accuracy and retained factors against the target and what the decoder reads.

    python studies/recon_view.py              solids on a turntable, 2 targets x 5 attentions x 2 seeds, all controls
    python studies/recon_view.py --smoke      the same in a few minutes, to see that everything works

The first and a random view are left out, since both views are drawn alike, and so is the clean one, since renders are
not augmented. For your own augmented images, add it to the space.
"""

import sys

from eqssl.config import ReconConfig, RunConfig, TrainConfig
from eqssl.study import Study, choice, main

STUDY = Study(
    name="recon_view",
    question="Which view should be reconstructed, and by which attention?",
    space={
        "recon.view": choice("second", "both"),
        "recon.attention": choice("pooled-query", "target-queries", "other-queries", "residual", "concat"),
    },
    configs=10,
    seeds=2,
    sampler="grid",
    matched_controls=True,
    base=RunConfig(recon=ReconConfig(weight=25.0), train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2)),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
