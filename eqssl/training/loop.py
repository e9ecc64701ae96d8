"""The training loop: a function of (config, context), the same in one process, in a Tune trial and under Ray Train.

Randomness belongs to the sample: every view is drawn from (seed, epoch, image, view), so 1 and N workers see the same
views, and a resumed run sees those of an uninterrupted one.
"""

import dataclasses
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eqssl.config import RunConfig, changed_options, flatten, identity
from eqssl.data import load_data
from eqssl.data.dataset import Dataset, Split, to_uint8
from eqssl.data.prefetch import cache_on_device, is_on_device, prefetch
from eqssl.devices import bf16_is_faster
from eqssl.distributed import all_reduce_sum, set_local_batch_sizes
from eqssl.environment import environment
from eqssl.evaluation.predictions import Prediction
from eqssl.evaluation.protocol import evaluate
from eqssl.evaluation.transforms import SEED
from eqssl.methods import find_method
from eqssl.methods.base import Method
from eqssl.models.encoder import Encoder
from eqssl.models.model import Losses, Model
from eqssl.models.reconstruction import attention_maps, own_and_other, view_ablation
from eqssl.random import permutation
from eqssl.training.context import Context, LocalContext
from eqssl.training.fsdp import full_model_state_dict, full_state_dict, load_full_state_dict, parallelize_model
from eqssl.training.optim import make_optimizer, set_schedules, warn_of_small_rate
from eqssl.views import Batch, Read, Views

ABLATION_IMAGES, ENCODED_AT_ONCE = 256, 64  # held-out images of `view_ablation`
SHOWN_IMAGES = 8  # of a grid of reconstructions
SHOWN_PAIRS, SHOWN_SIDE = 4, 96  # of `attention`: pairs of views, and the most pixels that a side is stored with
# Under --recon.gradient-share: steps between changes of the weight, and the exponent of a change.
ADAPT_EVERY, ADAPT_RATE = 10, 0.3
# Attributes of `Run` in its state.
PROGRESS = ("epoch", "step", "totals", "train_s", "unevaluated", "metrics", "autocast")


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        encoder: on the CPU, in evaluation mode.
        method: of its training, likewise.
        metrics: of the last epoch, the evaluation included.
        epochs: trained.
        reconstructions: uint8 (3, n, C, S, S): first view, target, reconstruction; None without the branch.
        attention: see `attention_maps`, for n of these pairs: images as uint8, reduced to 96 pixels a side, weights as
            float16, and `attention`, the option; None without an attention from position to position.
        predictions: of the last evaluation's probes; None if an earlier process evaluated.
    """

    encoder: Encoder = field(repr=False)  # a notebook shows metrics, not pages of layers
    method: Method = field(repr=False)
    metrics: dict[str, float]
    epochs: int
    reconstructions: Tensor | None = field(repr=False)
    attention: dict[str, NDArray[Any]] | None = field(repr=False)
    predictions: list[Prediction] | None = field(repr=False)


def train(config: RunConfig, context: Context | None = None, dataset: Dataset | None = None) -> Result:
    """Train, evaluate and return an encoder.

    Args:
        config: the whole run.
        context: its surroundings; default: a single process that keeps no state.
        dataset: already loaded data of `config.data`, where a caller has them.

    Raises:
        ValueError: for options that do not fit the data, before the first step.
        FloatingPointError: for a loss or weights that are not finite, naming the epoch.
    """
    context = context or LocalContext()
    run = Run(config, context, dataset or load_data(config.data))
    run.load_state_dict(context.load())
    while run.epoch < config.train.epochs or run.unevaluated or not run.metrics:
        metrics = run.next_epoch()
        due = run.epoch % config.train.checkpoint_every == 0 or run.is_last
        context.report(metrics, run.state_dict() if due else None)
    model = run.full_model()
    reconstructions, attention = run.pictures(model)
    encoder, method = model.encoder.cpu().eval(), model.method.cpu().eval()
    data = {"name": run.dataset.name, "digest": run.dataset.digest}
    encoder.provenance = {"options": flatten(config), "data": data, "environment": environment()}
    return Result(encoder, method, run.metrics, run.epoch, reconstructions, attention, run.predictions)


class Run:
    """A run in progress: model, optimizer, and the next epoch and step, which are the only clock."""

    def __init__(self, config: RunConfig, context: Context, dataset: Dataset):
        check_fits(config, dataset, context.world_size)
        self.config, self.context, self.dataset, self.device = config, context, dataset, context.device
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self.split = cache_on_device(dataset.train, self.device)
        self.steps_per_epoch = len(self.split) // config.train.batch_size
        torch.manual_seed(config.train.seed)
        self.model = Model(config, dataset).to(self.device).to(memory_format=torch.channels_last)
        encoder = self.model.encoder
        self.views = Views(config, dataset, self.device, self.model.method, math.prod(encoder.grid), encoder.local_size)
        set_local_batch_sizes(config.train.batch_size // config.train.grad_accum_steps)
        self.parallel = parallelize_model(self.model, fsdp=config.train.fsdp)
        self.optimizer = make_optimizer(self.model, config.train)
        warn_of_small_rate(config.train, self.steps_per_epoch)
        precision = config.train.precision
        self.autocast = precision == "bf16" or (precision == "auto" and bf16_is_faster(self.device))
        self.is_sharded = config.train.fsdp and context.world_size > 1
        # One extra backward pass per term, in an epoch's last step; sharded parameters are not leaves of the graph.
        self.measures_gradient_share = self.model.reconstruction is not None and not self.is_sharded
        self.epoch, self.step = 0, 0
        self.totals = torch.zeros(3, device=self.device)  # losses of this epoch's steps, summed
        self.train_s = 0.0  # seconds of this epoch's steps, those before a stop included
        self.unevaluated: dict[str, float] = {}  # metrics of an epoch between its training and its evaluation
        self.metrics: dict[str, float] = {}  # of the last whole epoch
        self.predictions: list[Prediction] | None = None

    @property
    def is_last(self) -> bool:
        return self.epoch >= self.config.train.epochs

    def next_epoch(self) -> dict[str, float]:
        """Train the rest of the epoch (nothing if `train.epochs` is 0) and return its metrics, evaluated if due."""
        every = self.config.train.eval_every
        if self.config.train.epochs > 0 and not self.unevaluated:
            self.unevaluated = self._train_epoch()
            self.epoch += 1
            if self.is_last:
                self._save()  # a full evaluation may take as long as an epoch, or fail
        metrics = {"epoch": float(self.epoch), "train_s": 0.0, **self.unevaluated}
        if self.is_last or (every and self.epoch % every == 0):
            model = self.full_model()
            if self.context.rank == 0:
                metrics |= self._evaluate(model)
        self.unevaluated, self.metrics = {}, metrics
        return metrics

    def _train_epoch(self) -> dict[str, float]:
        config, steps = self.config.train, self.steps_per_epoch
        start, share = time.perf_counter() - self.train_s, self.config.recon.gradient_share
        self.parallel.train()
        for micro_batches in self.batches(self.step):
            # Schedules are functions of the step alone, so that a resumed run needs no other state.
            step = self.epoch * steps + self.step
            self.model.method.progress = step / (config.epochs * steps)
            set_schedules(self.optimizer, config, step, steps)
            self.optimizer.zero_grad(set_to_none=True)
            adapts = share is not None and step % ADAPT_EVERY == 0
            measures = self.measures_gradient_share and (adapts or self.step == steps - 1)
            norms = torch.zeros(2)  # of the gradients of both terms
            for batch in micro_batches:
                losses: Losses = self.parallel(batch, self.autocast, compiled=not measures)
                if measures:
                    norms += self._gradient_norms(losses) / len(micro_batches)
                (losses.total / len(micro_batches)).backward()
                self.totals += torch.stack(losses[:3]).detach() / len(micro_batches)
            if adapts and share is not None:
                self._adapt_weight(norms, share, first=step == 0)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.optimizer.step()
            self.model.update_teachers()
            self.step += 1
            self.train_s = time.perf_counter() - start
            if self.step < steps and self._should_checkpoint():
                self._save()
        loss, ssl, recon = (self.totals / steps).tolist()
        if not self._is_finite():
            raise FloatingPointError(
                f"loss or weights are not finite in epoch {self.epoch + 1}: ssl {ssl}, reconstruction {recon}"
            )
        metrics = {"loss": loss, "ssl": ssl, "recon": recon, "lr": self.optimizer.param_groups[0]["lr"]}
        metrics["train_s"] = self.train_s
        self.step, self.totals, self.train_s = 0, torch.zeros_like(self.totals), 0.0
        inv, equi = losses.representation.std(0).tensor_split([self.model.encoder.dim_inv])
        metrics |= {f"train_std/{part}": float(std.mean()) for part, std in (("inv", inv), ("equi", equi)) if len(std)}
        if self.model.reconstruction is not None:
            metrics["recon/weight"] = weight = self.model.weight
            metrics["recon_share/loss"] = weight * recon / (abs(ssl) + weight * recon)
        if self.measures_gradient_share:
            metrics["recon_share/gradient"] = float(norms[1] / norms.sum().clamp(min=1e-30))
        return metrics

    def batches(self, first_step: int) -> Iterator[list[Batch]]:
        """Yield this worker's micro-batches of each remaining step; images not yet on the device are prefetched."""
        size, parts = self.config.train.batch_size, self.config.train.grad_accum_steps
        order = permutation(self.config.train.seed, self.epoch, len(self.split))

        def read(step: int) -> list[Read]:
            # Split into micro-batches first, so that a loss compares the same images with 1 or N workers.
            micro_batches = order[step * size : (step + 1) * size].chunk(parts)
            local = [indices.tensor_split(self.context.world_size)[self.context.rank] for indices in micro_batches]
            return [self.views.read(self.split, indices, self.epoch) for indices in local]

        steps = range(first_step, self.steps_per_epoch)
        reads = map(read, steps) if is_on_device(self.split.images, self.device) else prefetch(read, steps)
        for micro_batches in reads:
            yield [self.views.make(stored) for stored in micro_batches]

    def _gradient_norms(self, losses: Losses) -> Tensor:
        """Return the norms of the encoder's gradient of the SSL loss and of the weighted reconstruction, (2,)."""
        parameters = [p for p in self.model.encoder.parameters() if p.requires_grad]
        norms = torch.zeros(2)
        for i, term in enumerate((losses.ssl, self.model.weight * losses.recon)):
            if term.requires_grad:
                grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
                flat = torch.cat([grad.flatten() for grad in grads if grad is not None])
                norms[i] = float(all_reduce_sum(flat).norm())
        return norms

    def _adapt_weight(self, norms: Tensor, share: float, first: bool) -> None:
        """Move the weight of the steps to come towards the one that gives the reconstruction its share of the gradient.

        Args:
            norms: see `_gradient_norms`; the weight is unchanged unless both terms have a gradient.
            share: of the sum of both norms, 0 to 1.
            first: whether to jump there in one step, since the weight before is arbitrary.
        """
        ssl, recon = norms.tolist()
        if math.isfinite(ssl + recon) and ssl > 0 and recon > 0:
            change = share / (1 - share) * ssl / recon
            self.model.weight *= change if first else change**ADAPT_RATE

    def _should_checkpoint(self) -> bool:
        due = self.context.rank == 0 and self.context.should_checkpoint()
        if self.is_sharded:  # all workers have to agree, since the state is gathered from them
            due = bool(all_reduce_sum(torch.tensor(float(due), device=self.device)))
        return due and self._is_finite()  # else the last good state stays

    def _save(self) -> None:
        if state := self.state_dict():
            self.context.save(state)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state for `load_state_dict` on rank 0, None elsewhere; every rank must call this."""
        # The same form with any number of workers, since that may change.
        parts = full_state_dict(self.model, self.optimizer) if self.config.train.fsdp else {}
        if self.context.rank > 0:
            return None
        return {
            "options": identity(self.config),
            "defaults": identity(RunConfig()),
            "data": self.dataset.digest,
            "threads": torch.get_num_threads(),
            **{name: getattr(self, name) for name in PROGRESS},
            "weight": self.model.weight,
            **(parts or {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from a state; from None, start afresh.

        Raises:
            ValueError: for the state of another configuration or other data.
        """
        if state is None:
            return
        ours, theirs = identity(self.config), state.get("options", {})
        changed = changed_options(theirs, ours, state.get("defaults", {}))
        if changed or state.get("data") != self.dataset.digest:
            others = [f"--{o.replace('_', '-')} is {ours.get(o)}, was {theirs.get(o)}" for o in changed]
            what = ", ".join(others) or "other data"
            raise ValueError(
                f"the checkpoint belongs to another configuration or other data ({what}); choose another --output"
            )
        torch.set_num_threads(state["threads"])  # another number would round sums differently
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.model.weight = state["weight"]
        self.totals = self.totals.to(self.device)
        if self.config.train.fsdp:
            load_full_state_dict(self.model, self.optimizer, state)
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def _is_finite(self) -> bool:
        """Return whether losses and weights are finite, on all workers together, so that all of them raise."""
        return all(bool(values.isfinite().all()) for values in (self.totals, *self.model.parameters()))

    def full_model(self) -> Model:
        """Return the model, or an unsharded copy of a sharded one; every worker must call this."""
        if not self.is_sharded:
            return self.model
        with torch.random.fork_rng():
            model = Model(self.config, self.dataset).to(self.device)
        model.load_state_dict(full_model_state_dict(self.model))
        return model

    def _evaluate(self, model: Model) -> dict[str, float]:
        start, config = time.perf_counter(), self.config.evaluate
        if not self.is_last:  # briefly and on val, since it decides which trials are stopped early
            config = dataclasses.replace(config, level="quick", split="val")
        self.predictions = []
        metrics = evaluate(
            model.encoder, self.dataset, config=config, device=self.device, predictions=self.predictions
        )  # fmt: skip
        if model.reconstruction is not None:
            batch, inputs = self._held_out(model, config.split, ABLATION_IMAGES)
            if len(batch.first) > 1:
                metrics |= view_ablation(model.reconstruction, *inputs)
        metrics["parameters"] = float(sum(p.numel() for p in model.parameters() if p.requires_grad))
        metrics["requires_transform"] = float(model.method.requires_transform)
        return metrics | {"evaluate_s": time.perf_counter() - start}

    @torch.no_grad()
    def _held_out(self, model: Model, name: str, count: int) -> tuple[Batch, tuple[Tensor, Tensor, Tensor]]:
        """Return a batch of a held-out split, and own tokens, others and targets of the reconstruction for it."""
        model.eval()
        split = getattr(self.dataset, name)
        objects = one_image_per_object(split)  # often stored class by class: a sample of all
        views = Views(self.config, self.dataset, self.device)  # without the method's own data, such as local crops
        batch = views.batch(split, objects[permutation(SEED, 0, len(objects))[:count]], 0)
        images = torch.cat([batch.first, batch.second])
        tokens = torch.cat([model.encoder.tokens(some) for some in images.split(ENCODED_AT_ONCE)])
        return batch, model.reconstruction_inputs(tokens, batch)

    @torch.no_grad()
    def pictures(self, model: Model) -> tuple[Tensor | None, dict[str, NDArray[Any]] | None]:
        """Return `reconstructions` and `attention` of a `Result`, of the same held-out pairs."""
        branch, encoder, recon = model.reconstruction, model.encoder, self.config.recon
        if branch is None:
            return None, None
        batch, (own, other, target) = self._held_out(model, self.config.evaluate.split, SHOWN_IMAGES)
        count, mean, std = len(batch.first), encoder.mean, encoder.std
        rows = [batch.first, target[-count:] * std + mean, branch(own, other)[-count:] * std + mean]
        images = to_uint8(torch.stack(rows))
        if not branch.has_maps:
            return images, None
        first, second = (encoder.standardise(view) for view in (batch.first, batch.second))
        views = own_and_other(recon.view, first, second, batch.pick_second)
        given = (x[-count:][:SHOWN_PAIRS] for x in (own, other, target, *views))
        maps, side = attention_maps(branch, *given), min(SHOWN_SIDE, encoder.image_size)
        found = {"attention": np.array(recon.attention), "positions": maps.pop("positions").numpy()}
        found["weights"] = maps.pop("weights").cpu().numpy().astype(np.float16)
        for name, image in maps.items():
            found[name] = to_uint8(F.adaptive_avg_pool2d(image * std + mean, side)).numpy()
        return images, found


def one_image_per_object(split: Split) -> Tensor:
    """Return the index of one image per object, int64, so that no two of them show the same object."""
    return torch.from_numpy(np.unique(split.units.numpy(), return_index=True)[1])


def check_fits(config: RunConfig, dataset: Dataset, world_size: int) -> None:
    """Refuse options that do not fit the data or the workers.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    batch, images, parts = config.train.batch_size, len(dataset.train), config.train.grad_accum_steps
    if batch > images:
        raise ValueError(
            f"--train.batch-size is {batch}; allowed: up to the {images} training images of {dataset.name}"
        )
    if batch % parts or batch // parts < 2 * world_size:
        raise ValueError(
            f"--train.batch-size is {batch}; allowed with --train.grad-accum-steps {parts}: multiples of {parts}, with "
            f"two or more images a part for each of {world_size} workers"
        )
    if find_method(config.method.name).requires_labels and dataset.train.labels is None:
        raise ValueError(f"--method.name {config.method.name} needs labels, and {dataset.name} has none")
    if config.train.compile:
        compiler = shlex.split(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))[0]
        if shutil.which(compiler) is None:
            raise ValueError(f"--train.compile needs a C++ compiler, and there is no {compiler}; CXX may name another")
