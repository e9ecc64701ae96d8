"""The one training loop: a plain function of (config, context), the same alone, in a Tune trial and under Ray Train.

Randomness belongs to the sample: every view is drawn from (seed, epoch, image, view), so 1 and N workers see the same
views, and a resumed run sees what an uninterrupted one would have seen.
"""

import dataclasses
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqssl.config import EvaluateConfig, RunConfig, digest
from eqssl.data import load_data
from eqssl.data.dataset import Dataset, Split
from eqssl.data.prefetch import cache_on_device, is_on_device, prefetch
from eqssl.devices import supports_bf16
from eqssl.evaluation.predictions import Prediction
from eqssl.evaluation.protocol import evaluate
from eqssl.methods.base import Method
from eqssl.models.encoder import Encoder
from eqssl.models.model import Losses, Model
from eqssl.models.reconstruction import view_ablation
from eqssl.random import permutation
from eqssl.training.context import Context, LocalContext
from eqssl.training.distributed import all_gather_object, all_reduce_sum, set_local_batch_sizes
from eqssl.training.fsdp import full_model_state_dict, full_state_dict, load_full_state_dict, parallelize_model
from eqssl.training.optim import learning_rate, make_optimizer
from eqssl.views import Batch, Read, Views

HELD_OUT, HELD_OUT_AT_ONCE = 256, 64  # images on which the reconstruction is tried, and those encoded together
SHOWN = 8  # images in a grid of reconstructions


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        encoder: on the CPU, in evaluation mode.
        method: that trained it, likewise.
        metrics: of the last epoch, the evaluation included.
        epochs: trained.
        reconstructions: uint8 (3, n, C, S, S): first view, target, reconstruction; None without the branch.
        predictions: what the probes of the last evaluation said; None where an earlier process had evaluated.
    """

    encoder: Encoder
    method: Method
    metrics: dict[str, float]
    epochs: int
    reconstructions: Tensor | None
    predictions: list[Prediction] | None


def train(config: RunConfig, context: Context | None = None, dataset: Dataset | None = None) -> Result:
    """Train, evaluate and return an encoder.

    Args:
        config: the whole run.
        context: its surroundings; default: a single process that keeps no state.
        dataset: already loaded data of `config.data`, where a caller has them.

    Raises:
        ValueError: for options that do not fit the data, before the first step.
        FloatingPointError: for a loss that is not finite, naming the epoch.
    """
    context = context or LocalContext()
    dataset = dataset or load_data(config.data)
    run = Run(config, context, dataset)
    run.resume(context.load())
    while run.epoch < config.train.epochs or run.trained or not run.metrics:
        run.next_epoch()
        due = run.epoch % config.train.checkpoint_every == 0 or run.is_last
        context.report(run.metrics, run.state() if due else None)
    model = run.whole_model()
    reconstructions = run.reconstructions(model)
    encoder, method = model.encoder.cpu().eval(), model.method.cpu().eval()
    return Result(encoder, method, run.metrics, run.epoch, reconstructions, run.predictions)


class Run:
    """A run in progress: model, optimizer, and the epoch and its step, which are the only clock."""

    def __init__(self, config: RunConfig, context: Context, dataset: Dataset):
        self.config, self.context, self.dataset = config, context, dataset
        check_fits(config, dataset, context.world_size)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self.device = context.device
        self.split = cache_on_device(dataset.train, self.device)
        self.views = Views(config, dataset, self.device)
        torch.manual_seed(config.train.seed)
        self.model = Model(config, dataset).to(self.device, memory_format=torch.channels_last)
        set_local_batch_sizes(config.train.batch_size // config.train.grad_accum_steps)
        self.parallel = parallelize_model(self.model, fsdp=config.train.fsdp)
        self.optimizer = make_optimizer(self.model, config.train)
        precision = config.train.precision
        self.autocast = precision == "bf16" or (precision == "auto" and supports_bf16(self.device))
        self.identity = f"{digest(config)}-{dataset.digest}"
        self.steps_per_epoch = len(self.split) // config.train.batch_size
        self.sharded = config.train.fsdp and context.world_size > 1
        # The last step of an epoch goes backward through each term alone as well; a stopwatch does without, and shared
        # out parameters are no leaves of the graph.
        self.weighs_terms = self.model.reconstruction is not None and not self.sharded
        self.epoch, self.step = 0, 0  # what is next
        self.totals = torch.zeros(3, device=self.device)  # of the losses of this epoch's steps
        self.trained: dict[str, float] = {}  # of the last epoch, until it is evaluated
        self.metrics: dict[str, float] = {}  # of the epoch before
        self.predictions: list[Prediction] | None = None

    @property
    def is_last(self) -> bool:
        return self.epoch >= self.config.train.epochs

    def next_epoch(self) -> dict[str, float]:
        """Train what is left of an epoch (none, if zero are asked for) and return its metrics, evaluated where due."""
        start = time.perf_counter()
        if self.config.train.epochs > 0 and not self.trained:
            self.trained = self._train_epoch()
            self.epoch += 1
            self.trained |= {"train_s": time.perf_counter() - start}
            if self.is_last and (state := self.state()):  # a full evaluation may take as long as an epoch, or fail
                self.context.save(state)
        metrics = {"epoch": float(self.epoch), "train_s": 0.0, **self.trained}
        every = self.config.train.eval_every
        if self.is_last or (every and self.epoch % every == 0):
            model = self.whole_model()
            if self.context.rank == 0:
                metrics |= self._evaluate(model)
        self.trained, self.metrics = {}, metrics
        return metrics

    def _evaluated(self) -> EvaluateConfig:
        """Return what is evaluated now: before the end little, and on val, since trials are ended early by it."""
        config = self.config.evaluate
        return config if self.is_last else dataclasses.replace(config, level="quick", split="val")

    def _evaluate(self, model: Model) -> dict[str, float]:
        start = time.perf_counter()
        self.predictions = []
        metrics = evaluate(
            model.encoder,
            self.dataset,
            config=self._evaluated(),
            device=self.device,
            predictions=self.predictions,
        )
        if held_out := self._held_out(model, HELD_OUT):
            metrics |= view_ablation(model.reconstruction, *held_out[1])
        metrics["parameters"] = float(sum(p.numel() for p in model.parameters() if p.requires_grad))
        metrics["requires_transform"] = float(model.method.requires_transform)
        return metrics | {"evaluate_s": time.perf_counter() - start}

    def whole_model(self) -> Model:
        """Return the model with all its parameters; where they are shared out, a copy for which every worker asks."""
        if not self.sharded:
            return self.model
        with torch.random.fork_rng():
            model = Model(self.config, self.dataset).to(self.device)
        model.load_state_dict(full_model_state_dict(self.model))
        return model

    def _train_epoch(self) -> dict[str, float]:
        self.parallel.train()
        for parts in self._batches(self.step):
            self._set_clock(self.epoch * self.steps_per_epoch + self.step)
            self.optimizer.zero_grad(set_to_none=True)
            weighs_terms = self.weighs_terms and self.step == self.steps_per_epoch - 1
            for batch in parts:
                with self.model.uncompiled() if weighs_terms else nullcontext():
                    losses = self.parallel(batch, self.autocast)
                if weighs_terms:
                    share = self._share_in_gradient(losses)
                (losses.total / len(parts)).backward()
                self.totals += torch.stack(losses[:3]).detach() / len(parts)
            self.optimizer.step()
            self.model.update_teachers()
            self.step += 1
            if self.step < self.steps_per_epoch and self._save_due():
                state = self.state()
                if state and self._is_finite(state):  # else the last good one stays; the epoch's end tells all workers
                    self.context.save(state)
        loss, ssl, recon = (self.totals / self.steps_per_epoch).tolist()
        self.step, self.totals = 0, torch.zeros_like(self.totals)
        if not math.isfinite(loss):  # of all workers together, so that none waits for another
            raise FloatingPointError(
                f"the loss is not finite in epoch {self.epoch + 1}: ssl {ssl}, reconstruction {recon}"
            )
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(f"a weight is not finite after the last step of epoch {self.epoch + 1}")
        dim_inv = self.model.encoder.dim_inv
        std = losses.representation.std(0)
        metrics = {"loss": loss, "ssl": ssl, "recon": recon, "lr": self.optimizer.param_groups[0]["lr"]}
        metrics["train_std/inv"] = float(std[:dim_inv].mean())
        if dim_inv < len(std):
            metrics["train_std/equi"] = float(std[dim_inv:].mean())
        if self.model.reconstruction is not None:
            metrics["recon_share/loss"] = self.model.weight * recon / (abs(ssl) + self.model.weight * recon)
        if self.weighs_terms:
            metrics["recon_share/gradient"] = share
        return metrics

    def _save_due(self) -> bool:
        due = self.context.rank == 0 and self.context.should_checkpoint()
        return all_gather_object(due)[0] if self.sharded else due  # then the state is what all workers hold

    def _share_in_gradient(self, losses: Losses) -> float:
        """Return the norm of the reconstruction's gradient of the encoder over the sum of both terms' norms."""
        parameters = [p for p in self.model.encoder.parameters() if p.requires_grad]
        norms = []
        for term in (losses.ssl, self.model.weight * losses.recon):
            if not term.requires_grad:
                norms.append(0.0)
                continue
            grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            norms.append(float(all_reduce_sum(torch.cat([g.flatten() for g in grads if g is not None])).norm()))
        return norms[1] / (sum(norms) or 1.0)

    def _set_clock(self, step: int) -> None:
        """Set what follows a schedule, a function of the step alone, so that a resumed run needs no other state."""
        self.model.method.progress = step / (self.config.train.epochs * self.steps_per_epoch)
        rate = learning_rate(self.config.train, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _batches(self, first: int) -> Iterator[list[Batch]]:
        """Yield this worker's share of every global batch from a step on, in the parts that gradients are summed of."""
        steps = self._shares(first)
        parts = map(self._read, steps) if is_on_device(self.split.images, self.device) else prefetch(self._read, steps)
        for reads in parts:
            yield [self.views.make(read, self._tokens()) for read in reads]

    def _shares(self, first: int) -> Iterator[list[Tensor]]:
        train = self.config.train
        order = permutation(train.seed, self.epoch, len(self.split))
        for step in range(first, self.steps_per_epoch):
            whole = order[step * train.batch_size : (step + 1) * train.batch_size]
            # Cut into parts first: the images that a part's loss compares are then the same for 1 and N workers.
            yield [
                part.tensor_split(self.context.world_size)[self.context.rank]
                for part in whole.chunk(train.grad_accum_steps)
            ]

    def _read(self, shares: list[Tensor]) -> list[Read]:
        return [self.views.read(self.split, share, self.epoch) for share in shares]

    def _tokens(self) -> int:
        rows, columns = self.model.encoder.grid
        return rows * columns

    def state(self) -> dict[str, Any] | None:
        """Return everything that `resume` needs, on rank 0; every worker has to ask."""
        # With any number of workers in the same form, since that may change.
        spread = full_state_dict(self.model, self.optimizer) if self.config.train.fsdp else {}
        if self.context.rank > 0:
            return None
        whole = spread or {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {
            "config": self.identity,
            "threads": torch.get_num_threads(),
            "autocast": self.autocast,
            "epoch": self.epoch,
            "step": self.step,
            "totals": self.totals,
            "trained": self.trained,
            "metrics": self.metrics,
            **whole,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def _is_finite(self, state: dict[str, Any]) -> bool:
        """Return whether the losses and weights of a state are; a buffer may hold infinity, as a mask does."""
        buffers = {name for name, _ in self.model.named_buffers()}
        weights = (values for name, values in state["model"].items() if name not in buffers)
        return all(bool(values.isfinite().all()) for values in (state["totals"], *weights))

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on from a state; from None, start afresh.

        Raises:
            ValueError: for the state of another configuration or other data.
        """
        if state is None:
            return
        if state["config"] != self.identity:
            raise ValueError("the checkpoint belongs to another configuration or other data; take another --output")
        # Another number of threads, or another precision where `auto` chooses it, would round sums differently.
        torch.set_num_threads(state["threads"])
        self.autocast = state["autocast"]
        if self.config.train.fsdp:
            load_full_state_dict(self.model, self.optimizer, state)
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.epoch, self.step, self.metrics = state["epoch"], state["step"], state["metrics"]
        self.trained = state.get("trained", {})
        self.totals = state["totals"].to(self.device)

    @torch.no_grad()
    def _held_out(self, model: Model, count: int) -> tuple[Batch, tuple] | None:
        """Return a held-out batch and the inputs of the reconstruction branch for it; None without the branch."""
        if model.reconstruction is None:
            return None
        model.eval()
        split = getattr(self.dataset, self._evaluated().split)
        batch = self.views.batch(split, _of_different_objects(split)[:count], 0, self._tokens())
        images = torch.cat([batch.first, batch.second])
        tokens = torch.cat([model.encoder.tokens(some) for some in images.split(HELD_OUT_AT_ONCE)])
        return batch, model.reconstruction_inputs(tokens, batch)

    @torch.no_grad()
    def reconstructions(self, model: Model) -> Tensor | None:
        """Return held-out images as `Result.reconstructions` has them."""
        held_out = self._held_out(model, SHOWN)
        if held_out is None:
            return None
        batch, inputs = held_out
        image, target = (x[-len(batch.first) :] for x in model.reconstruction(*inputs))
        encoder = model.encoder
        rows = [batch.first, target * encoder.std + encoder.mean, image * encoder.std + encoder.mean]
        return (torch.stack(rows).clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def _of_different_objects(split: Split) -> Tensor:
    """Return one image of every object, so that another image's features are never those of another view."""
    if split.objects is None:
        return torch.arange(len(split))
    order = split.objects.argsort(stable=True)
    counts = split.objects.unique(return_counts=True)[1]
    return order[counts.cumsum(0) - counts]


def check_fits(config: RunConfig, dataset: Dataset, world_size: int) -> None:
    """Refuse options that do not fit the data or the workers.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    batch, images = config.train.batch_size, len(dataset.train)
    if batch > images:
        raise ValueError(
            f"--train.batch-size is {batch}; allowed: up to the {images} training images of {dataset.name}"
        )
    parts = config.train.grad_accum_steps
    if batch % parts or batch // parts < 2 * world_size:
        raise ValueError(
            f"--train.batch-size is {batch}; allowed with --train.grad-accum-steps {parts}: multiples of {parts}, with two "
            f"or more images a part for each of {world_size} workers"
        )
    if config.train.compile:
        compiler = shlex.split(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))[0]
        if shutil.which(compiler) is None:
            raise ValueError(f"--train.compile needs a C++ compiler, and there is no {compiler}; CXX may name another")
    if config.method.name == "supervised" and dataset.train.labels is None:
        raise ValueError(f"--method.name supervised needs labels, and {dataset.name} has none")
