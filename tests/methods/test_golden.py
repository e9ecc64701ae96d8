"""Twenty steps of every method give the losses they gave when golden.json was written:

python -m tests.methods.test_golden            of methods that have none yet
python -m tests.methods.test_golden dino       of one whose losses changed on purpose
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from eqssl.methods import METHODS
from tests.toy import make_batch, make_model

FILE = Path(__file__).with_name("golden.json")
STEPS = 20


def losses_of(method: str) -> list[float]:
    """Return the loss of every step; one thread, since more of them round sums differently."""
    torch.set_num_threads(1)
    model, batch = make_model(method), make_batch(method)
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


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_are_as_recorded(method, threads):
    golden = json.loads(FILE.read_text())
    assert method in golden, f"{method} has no losses in {FILE.name}: run `python -m tests.methods.test_golden`"
    assert losses_of(method) == pytest.approx(golden[method], rel=1e-6, abs=1e-8)


if __name__ == "__main__":
    known = {method: losses for method, losses in json.loads(FILE.read_text()).items() if method not in sys.argv[1:]}
    losses = {method: known.get(method) or [round(loss, 10) for loss in losses_of(method)] for method in METHODS}
    rows = [f'"{method}": {json.dumps(of_method)}' for method, of_method in losses.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
