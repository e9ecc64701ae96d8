"""The distribution of a model over workers: a copy on each (DistributedDataParallel), or shards of one (FSDP2)."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eqssl.distributed import convert_sync_batch_norm, world_size

logger = logging.getLogger(__name__)

BLOCKS = ("Block", "Bottleneck", "Layer", "Residual")  # suffixes of the class names of a backbone's repeated parts


def parallelize_model(model: nn.Module, *, fsdp: bool) -> nn.Module:
    """Return the module to call in place of the model, so that its gradients are those of all workers together.

    Args:
        model: on its device, changed in place.
        fsdp: shard parameters, gradients and the optimizer's state, block by block, instead of copying them.
    """
    if world_size() == 1:
        return model
    convert_sync_batch_norm(model)
    if not fsdp:
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model.to(memory_format=torch.contiguous_format)  # FSDP2 accepts no other
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    blocks = _outermost_blocks(model)
    if not blocks:
        logger.warning("--train.fsdp: no known blocks in this encoder, so all its parameters are gathered at once")
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _outermost_blocks(module: nn.Module) -> list[nn.Module]:
    if type(module).__name__.endswith(BLOCKS):
        return [module]
    return [block for child in module.children() for block in _outermost_blocks(child)]


def full_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return unsharded `model` and `optimizer` states, on rank 0's CPU; a collective call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    states = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {"model": states[0], "optimizer": states[1]}


def load_full_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of `full_state_dict`, with any number of workers."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
    set_state_dict(model, optimizer, **parts, options=StateDictOptions(full_state_dict=True))


def full_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's unsharded state, on every worker; a collective call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
