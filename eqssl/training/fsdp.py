"""How a model is spread over workers: copied to each of them, or with its parameters shared out among them (FSDP2)."""

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eqssl.training.distributed import synchronise_batch_norm, world_size

logger = logging.getLogger(__name__)

BLOCKS = ("Block", "Bottleneck", "Layer", "Residual")  # how the classes of what a backbone repeats end


def parallelize_model(model: nn.Module, *, fsdp: bool) -> nn.Module:
    """Return what is called in the place of the model, so that its gradients are those of all workers together.

    Args:
        model: on its device, changed in place.
        fsdp: share parameters, gradients and the optimizer's state out, block by block, in the place of copies.
    """
    if world_size() == 1:
        return model
    synchronise_batch_norm(model)
    if not fsdp:
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    blocks = _outermost_blocks(model)
    if not blocks:
        logger.warning("--train.fsdp: the encoder has no blocks that are known, so all of it is gathered at once")
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _outermost_blocks(module: nn.Module) -> list[nn.Module]:
    if type(module).__name__.endswith(BLOCKS):
        return [module]
    return [block for child in module.children() for block in _outermost_blocks(child)]


def full_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return `model` and `optimizer` of a spread model with all their tensors, on rank 0; every worker has to ask."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))


def load_full_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take what `full_state_dict` gave, with any number of workers."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )


def full_model_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a spread model with all its tensors, on every worker; every worker has to ask."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
