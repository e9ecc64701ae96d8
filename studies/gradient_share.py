"""Weight or share? Whether one share of the encoder's gradient serves methods whose losses differ in size.

    python studies/gradient_share.py          three methods, three weights and three shares each, two seeds on val

A weight multiplies the reconstruction's loss; a share (`--recon.gradient-share`) adapts the weight so that the
reconstruction keeps this part of the gradient's norm. Every method has the learning rate at which its accuracy alone is
best among .5, 1, 2 and 4 times .016 (the first stage of `studies/baselines.py`).
"""

import sys

from eqssl.config import RunConfig, TrainConfig
from eqssl.study import Study, main
from eqssl.study.definition import NO_SPLIT

RATES = {"vicreg": 8e-3, "simclr": 6.4e-2, "byol": 1.6e-2}
WEIGHTS, SHARES = (0.25, 2.5, 25.0), (0.05, 0.2, 0.5)


def rows_of(method: str) -> dict[str, dict]:
    """Return the rows of a method: alone, then with each weight and each share."""
    own = {"method.name": method, "train.lr": RATES[method]}
    by_weight = {f"{method}, weight {weight:g}": own | {"recon.weight": weight} for weight in WEIGHTS}
    by_share = {f"{method}, share {share:g}": own | {"recon.gradient_share": share} for share in SHARES}
    return {method: own | NO_SPLIT, **by_weight, **by_share}


ROWS = {method: rows_of(method) for method in RATES}
STUDY = Study(
    name="gradient_share",
    question="Does one share of the gradient serve methods that need different weights?",
    space={},
    configs=0,
    seeds=2,
    rows={"constant": None, "pixels": None} | {name: row for rows in ROWS.values() for name, row in rows.items()},
    controls={name: (method,) for method, rows in ROWS.items() for name in rows if name != method},
    subject="vicreg, share 0.2",
    base=RunConfig(train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2)),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
