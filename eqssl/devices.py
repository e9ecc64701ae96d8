"""Capabilities of a device, and non-blocking copies to it."""

import torch
from torch import Tensor


def supports_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16; without them it is several times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = torch.cpu.get_capabilities()
    return bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))


def bf16_is_faster(device: torch.device) -> bool:
    """Return whether the device trains faster in bf16 than in fp32.

    Intel's AVX-512 multiplies bf16 no faster than fp32, and the conversions cost time: a step of `resnet_tiny` takes
    1.3 times as long. Its AMX is faster, and so is AMD's AVX-512.
    """
    processor = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    slower = "Intel" in processor.get("cpu_name", "") and not processor.get("amx_bf16")
    return supports_bf16(device) and not slower


def pinned(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Return a tensor in page-locked memory if it is going to a GPU, which copies from there asynchronously.

    Args:
        tensor: on any device.
        device: its destination; None if there is none.
    """
    return tensor.pin_memory() if device and device.type == "cuda" and tensor.device.type == "cpu" else tensor


def to_device(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Return a tensor on a device, without waiting for a GPU's earlier work, as a copy from pageable memory would.

    Args:
        tensor: on any device; a copy from a GPU to the CPU does wait.
        device: its destination; None leaves it where it is.
    """
    return pinned(tensor, device).to(device, non_blocking=device is not None and device.type == "cuda")
