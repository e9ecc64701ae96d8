"""The model's compiled encoder."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.utils import counters

from eqssl.config import WITH_LOCAL_CROPS
from eqssl.methods import METHODS, find_method
from eqssl.methods.references import NoMethod
from eqssl.models.model import Model, compiled_tokens
from eqssl.training.context import LocalContext
from eqssl.training.loop import Run, train
from tests.toy import BATCH, make_batch, make_model
from tests.training.test_loop import configuration, toy


def sizes_seen(backbone: torch.nn.Module) -> list[tuple[int, int, bool]]:
    """Return a list that gets rows, side and masking of the images of every pass."""
    seen: list[tuple[int, int, bool]] = []
    backbone.register_forward_pre_hook(
        lambda _, given: seen.append((len(given[0]), given[0].shape[-1], given[1] is not None))
    )
    return seen


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_a_local_crop_is_seen_by_the_student_alone_and_never_masked_or_reconstructed(method):
    model, batch = make_model(method, local_crops=3), make_batch(method, local_crops=3)
    student, teacher = sizes_seen(model.encoder.backbone), sizes_seen(model.teacher.average.backbone)
    losses = model(batch)
    masks = method == "ibot"
    assert teacher == [(2 * BATCH, 32, False)]
    assert (2 * BATCH, 32, masks) in student and [seen for seen in student if seen[1] < 32] == [(3 * BATCH, 16, False)]
    plain = make_model(method, local_crops=3)(batch._replace(local=None))
    assert torch.equal(losses.recon, plain.recon) and torch.equal(losses.representation, plain.representation)
    assert losses.ssl.item() != plain.ssl.item()
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_references_beside_a_method_with_local_crops_have_none_and_a_class_without_them_is_refused(monkeypatch):
    values = {"augment.local_crops": 2, "method.options": {}}
    run = Run(configuration(**values, **{"method.name": "supervised"}), LocalContext(), toy())
    assert run.model.encoder.local_size == 0 and next(run.batches(0))[0].local is None
    monkeypatch.setitem(METHODS, "mine", NoMethod)
    with pytest.raises(ValueError, match=r"--augment.local-crops is 2; allowed with --method.name mine: 0, since its"):
        Model(configuration(**values, **{"method.name": "mine"}), toy())
    assert {name for name in METHODS if find_method(name).takes_local_crops} == set(WITH_LOCAL_CROPS)


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"method.name": "byol"}, {"method.name": "dino", "augment.local_crops": 2}])
def test_a_compiled_encoder_trains_alike_and_is_compiled_once_for_all_trials(method):
    """Tune runs every trial in a thread of its own."""
    values = {"train.precision": "fp32", "train.epochs": 2, "recon.attention": "target-queries", **method}
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
