"""Collectives with gradients, and a model's distribution over workers, so that N workers train like one.

Every rank computes the loss of the whole batch from gathered embeddings; the backward pass of the gather sums over
ranks. The mean of the gradients over ranks, as DistributedDataParallel takes it, is then exactly the gradient of one
process with the whole batch. Local batches may differ in size (`set_local_batch_sizes`), so that any number of workers
can share a batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of workers, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's rank, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


_sizes: list[int] = []  # images in every worker's local batch; global to the process, like the process group


def set_local_batch_sizes(batch_size: int) -> None:
    """Set the number of images of every worker, as `tensor_split` cuts a global batch; without a call all are equal."""
    workers = world_size()
    _sizes[:] = [batch_size // workers + (r < batch_size % workers) for r in range(workers)]


def _local_batch_sizes() -> list[int]:
    return _sizes or [1] * world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = _local_batch_sizes()
        rows_per_image = len(x) // sizes[rank()]
        ctx.rows = [rows_per_image * size for size in sizes]
        missing = max(ctx.rows) - len(x)  # not every backend gathers different lengths
        padded = torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x.contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, ctx.rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.rows)[rank()]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduceSum.apply(grad)


def gather(x: Tensor) -> Tensor:
    """Return the rows of all workers, in rank order: (local B, ...) -> (B, ...)."""
    return _Gather.apply(x) if world_size() > 1 else x


def all_gather_object(value: Any) -> list[Any]:
    """Return every worker's value, of any type that can be pickled, in rank order."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the elementwise sum over all workers, with gradients to each of them.

    Args:
        x: float, of the same shape on every worker.
    """
    return _AllReduceSum.apply(x) if world_size() > 1 else x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Return the mean over all workers' images, from the mean over this worker's images.

    Args:
        x: float, of the same shape on every worker; weighted by the worker's number of images.

    Returns:
        The same on every worker, of x's shape.
    """
    sizes = _local_batch_sizes()
    return all_reduce_sum(x * (sizes[rank()] / sum(sizes))) if world_size() > 1 else x


class _SyncBatchNorm(torch.autograd.Function):
    """Batch normalisation by the moments of all workers: one exchange forward, one backward, and torch's fused kernels.

    With separate operations instead of the fused kernels, two workers on two cores had a scaling efficiency of .31.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The running moments are passed only for their dtype, float32 for bf16 images, and stay unchanged.
        unused = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        mean, var = _global_moments(*torch.batch_norm_update_stats(x, unused, unused, momentum=0.0))
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, count
        ctx.mark_non_differentiable(mean, var)
        return nn.functional.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        inverse, scale = torch.rsqrt(var + ctx.eps), torch.ones_like(mean) if weight is None else weight
        # With the moments held constant: scale * inverse * grad, and the sums of grad * normalised x and of grad. The
        # CPU kernel reads mean and var, the GPU kernel mean and inverse.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, scale, mean, var, mean, inverse, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        # Through the moments: - scale * inverse * (normalised x * mean of (grad * normalised x) + mean of grad), which
        # is itself a normalisation of x.
        factor, shift = -scale * inverse / ctx.count * sums
        of_x += nn.functional.batch_norm(x, mean, var, factor, shift, eps=ctx.eps)
        affine = (None, None) if weight is None else (of_weight, of_bias)
        return of_x, *affine, None, None


def _global_moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over all workers' samples, from those over this one's."""
    sizes = _local_batch_sizes()
    parts = [torch.empty(2, *mean.shape, dtype=mean.dtype, device=mean.device) for _ in sizes]
    dist.all_gather(parts, torch.stack([mean, var]))
    least, larger = divmod(sum(sizes), len(sizes))  # the first `larger` workers have one more image
    # Created on the device, since a copy to a GPU would wait for it.
    ranks = torch.arange(len(sizes), device=mean.device)
    weights = (least + (ranks < larger)).to(mean.dtype).div_(sum(sizes)).view(-1, 1)
    means, variances = torch.stack(parts, dim=1)
    whole = (weights * means).sum(0)
    return whole, (weights * (variances + (means - whole).square())).sum(0)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the samples of all workers, on CPU and GPU (torch's own refuses CPU tensors)."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, x: Tensor) -> None:
        assert x.ndim >= 2

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        sizes = _local_batch_sizes()
        count = x.numel() // x.shape[1] // sizes[rank()] * sum(sizes)  # values per channel, over all workers
        y, mean, var = _SyncBatchNorm.apply(x, self.weight, self.bias, self.eps, count)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)  # unbiased, as in torch
        return y


class _SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d: normalisation, then drop and activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def convert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """Turn every batch normalisation inside a module into a SyncBatchNorm, in place, keeping its parameters."""
    for layer in module.modules():
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            layer.__class__ = SyncBatchNorm
        elif type(layer).__name__ == "BatchNormAct2d":
            layer.__class__ = _SyncBatchNormAct
    return module
