"""Twenty steps of every method, and of vicreg with every attention, give the losses of golden.json:

python -m tests.methods.test_golden            of methods that have none yet
python -m tests.methods.test_golden dino       of one whose losses changed on purpose
"""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from eqssl.config import ReconAttention
from eqssl.methods import METHODS
from tests.toy import make_batch, make_model

FILE = Path(__file__).with_name("golden.json")
STEPS = 20
ATTENTIONS = [f"vicreg, {attention}" for attention in get_args(ReconAttention) if attention != "target-queries"]
CASES = [*METHODS, *ATTENTIONS]


def losses_of(case: str) -> list[float]:
    """Return the loss of every step; one thread, since more of them round sums differently."""
    torch.set_num_threads(1)
    method, _, attention = case.partition(", ")
    model, batch = make_model(method, attention=attention or "target-queries"), make_batch(method)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(STEPS):
        model.method.progress = step / STEPS
        optimizer.zero_grad()
        loss = model(batch).total
        loss.backward()
        optimizer.step()
        model.update_teachers()
        losses.append(loss.item())
    return losses


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_as_recorded(case, threads):
    golden = json.loads(FILE.read_text())
    assert case in golden, f"{case} has no losses in {FILE.name}: run `python -m tests.methods.test_golden`"
    assert losses_of(case) == pytest.approx(golden[case], rel=1e-6, abs=1e-8)


if __name__ == "__main__":
    known = {case: losses for case, losses in json.loads(FILE.read_text()).items() if case not in sys.argv[1:]}
    losses = {case: known.get(case) or [round(loss, 10) for loss in losses_of(case)] for case in CASES}
    rows = [f'"{case}": {json.dumps(of_case)}' for case, of_case in losses.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
