"""Which attention? The default one against auto-encoding and plain cross-attention, at equal weight, on test.

    python studies/attention.py               solids on a turntable, five seeds on test, level full: about half an hour
    python studies/attention.py --data.source parquet --data.path data/photos            your own photographs

Nothing is searched here: rows that were tuned on val are trained with seeds that the tuning did not use.
"""

import sys

from eqssl.config import EvaluateConfig, ReconConfig, RunConfig, TrainConfig
from eqssl.study import REFERENCE_ROWS, Study, main

LIGHT = {"recon.weight": 10.0}
ROWS: dict[str, dict] = {
    "autoencode, weight 10": {"recon.attention": "autoencode"} | LIGHT,
    "target-queries": {"recon.attention": "target-queries"},
    "pooled-query, weight 10": {"recon.attention": "pooled-query"} | LIGHT,
    "pooled-query": {"recon.attention": "pooled-query"},
}
STUDY = Study(
    name="attention",
    question="What does cross-attention add to auto-encoding, and what does it cost?",
    space={},
    configs=0,
    seeds=5,
    rows={**REFERENCE_ROWS, **ROWS},
    controls={row: ("base", "no-recon", "autoencode, weight 10") for row in ROWS if row.endswith("10")},
    subject="pooled-query",
    base=RunConfig(
        recon=ReconConfig(weight=25.0),
        train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2, seed=2000),
        evaluate=EvaluateConfig(level="full", split="test"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
