"""Non-linear regression of factors from frozen features, for what a linear probe cannot read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.evaluation.r2 import varying
from eqssl.evaluation.selection import hold_back

HIDDEN, EPOCHS, BATCH = 128, 15, 64
LR = 3e-3  # of 128 hidden units; in inverse proportion to their number
PATIENCE = 3  # epochs without a better one, after which no more are trained


def mlp_predict(x: Tensor, y: Tensor, held: Tensor, hidden: int = HIDDEN, objects: Tensor | None = None) -> Tensor:
    """Return the predictions of an MLP with two hidden layers, from the epoch that was best on a tenth of the samples,
    or objects.

    Inputs and outputs are standardised; Adam, one cosine decay. Torch's own random state is left as it was.

    Args:
        x, y: (n, p) and (n, m), to fit: one factor, since factors differ in how long they take.
        held: (N, p).
        hidden: units of each hidden layer.
        objects: int64 (n,), which object a sample shows; default: every sample is its own.

    Returns:
        float32 (N, m).
    """
    mean_x, std_x, mean_y = x.mean(0), x.std(0), y.mean(0)
    # Below float32's resolution a spread is rounding: such an input is 0, and such an output its mean.
    std_x = torch.where(std_x > 1e-7 * mean_x.abs(), std_x, torch.inf)
    std_y = torch.where(varying(y), y.std(0), torch.inf)
    x, y, held = (x - mean_x) / std_x, (y - mean_y) / std_y, (held - mean_x) / std_x
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        chosen, fitted = hold_back(torch.randperm(len(x)), 10, objects, least=1)
        model = _mlp(x.shape[1], y.shape[1], hidden)
        optimizer = torch.optim.Adam(model.parameters(), LR * HIDDEN / hidden, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        best, best_epoch, predicted = float("inf"), 0, None
        for epoch in range(EPOCHS):
            for rows in fitted[torch.randperm(len(fitted))].split(BATCH):
                optimizer.zero_grad()
                F.mse_loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                error = float(F.mse_loss(model(x[chosen]), y[chosen]))
                if error < best:
                    best, best_epoch, predicted = error, epoch, model(held)
            if epoch - best_epoch >= PATIENCE:
                break
    return torch.where(std_y.isinf(), mean_y, predicted * std_y + mean_y)


def _mlp(dim_in: int, dim_out: int, hidden: int) -> nn.Module:
    layers = [nn.Linear(dim_in, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(hidden, dim_out))
