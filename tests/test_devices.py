"""That a training step neither mixes devices nor reads a value back: shown with fake tensors, which need no GPU.

They do not show copies to the device that wait; the test on a GPU does.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_map

from eqssl import augment
from eqssl.devices import bf16_is_faster, supports_bf16, to_device
from eqssl.methods import METHODS
from eqssl.training.context import LocalContext
from eqssl.training.loop import Run
from tests.toy import make_batch, make_model
from tests.training.test_loop import configuration, toy


def faked(mode, method, device):
    """Return a model and a batch without values, whose sizes and device are all that is known."""

    def fake(value):
        return mode.from_tensor(value).to(device) if isinstance(value, torch.Tensor) else value

    model, batch = make_model(method).train(), make_batch(method)
    with mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(fake(parameter).detach(), parameter.requires_grad)
            module._buffers.update({name: fake(buffer) for name, buffer in module._buffers.items()})
        return model, type(batch)(*(tree_map(fake, values) for values in batch))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"ibot"}))
def test_no_step_reads_a_value_or_leaves_its_device(method):
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    model, batch = faked(mode, method, "cuda")
    with mode:
        assert model(batch).total.device.type == "cuda"
    # Autograd asks a GPU for its streams even where all is fake, so backward goes without.
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    model, batch = faked(mode, method, "cpu")
    with mode:
        losses = model(batch)
        if losses.total.requires_grad:
            losses.total.backward()
        model.update_teachers()


def test_only_ibot_has_to_know_how_many_patches_are_hidden():
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    model, batch = faked(mode, "ibot", "cuda")
    with mode, pytest.raises(DynamicOutputShapeException):
        model(batch)


@pytest.mark.parametrize("stored", [32, 64])
def test_no_augmentation_reads_a_value_or_leaves_its_device(stored):
    with FakeTensorMode(allow_non_fake_inputs=False):
        images = torch.rand(4, 3, stored, stored, device="cuda")
        params = {name: torch.rand(4, device="cuda") for name in augment.PARAMETERS}
        views = augment._resample(images, params, 32, torch.rand(4, device="cuda") if stored > 32 else None)
        for name, operation in augment._OPERATIONS.items():
            views = operation(views, params[name][:, None, None, None])
        assert views.device.type == "cuda" and views.shape == (4, 3, 32, 32)


def test_a_tensor_that_is_there_is_not_copied():
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor and to_device(tensor, None) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cached", [True, False])
def test_a_step_on_a_gpu_waits_for_nothing(cached):
    run = Run(configuration(**{"train.batch_size": 8}), LocalContext(), toy())
    if not cached:
        run.split = run.dataset.train
    batches = run.batches(0)

    def step():
        run.optimizer.zero_grad(set_to_none=True)
        run.model(next(batches)[0], run.autocast).total.backward()
        run.optimizer.step()
        run.model.update_teachers()

    for _ in range(2):  # cuDNN and the allocator settle
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        batches.close()


@pytest.mark.parametrize(
    "capabilities, faster",
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_is_the_default_where_it_is_faster(monkeypatch, capabilities, faster):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bf16_is_faster(torch.device("cpu")) is faster
    assert supports_bf16(torch.device("cpu")) is bool(capabilities.get("avx512_bf16"))
    assert Run(configuration(), LocalContext(), toy()).autocast is faster
