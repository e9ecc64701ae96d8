"""The model's compiled encoder."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.utils import counters

from eqssl.models.model import compiled_tokens
from eqssl.training.loop import train
from tests.training.test_loop import configuration, toy


@pytest.mark.slow
def test_a_compiled_encoder_trains_alike_and_is_compiled_once_for_all_trials():
    """Tune runs every trial in a thread of its own."""
    values = {"train.precision": "fp32", "method.name": "byol", "train.epochs": 2, "recon.attention": "target-queries"}
    plain = train(configuration(**values), dataset=toy())
    compiled_tokens.cache_clear()  # what earlier tests have compiled
    torch._dynamo.reset()
    graphs = []
    for _ in range(2):
        before = counters["stats"]["unique_graphs"]
        with ThreadPoolExecutor(1) as trial:
            result = trial.submit(train, configuration(**values, **{"train.compile": True}), dataset=toy()).result()
        for name in ("loss", "recon_share/gradient"):
            assert result.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-3)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs[0] > 0 and graphs[1] == 0


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(ValueError, match=r"--train.compile needs a C\+\+ compiler, and there is no no-such-compiler"):
        train(configuration(**{"train.compile": True}), dataset=toy())
