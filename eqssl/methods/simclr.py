"""SimCLR (arXiv 2002.05709): views of one image attract, views of other images repel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.distributed import gather
from eqssl.methods.heads import projector


class SimCLR(nn.Module):
    """Two-layer projector and the normalised temperature-scaled cross-entropy.

    Args:
        dim: width of the representation.
        num_classes: unused.
        width: hidden width of the projector.
        embedding: width of the embedding.
        temperature: tau of Eq. 1; .2 as solo-learn's reference runs.
    """

    def __init__(self, dim: int, num_classes: int, *, width: int = 512, embedding: int = 128, temperature: float = 0.2):
        super().__init__()
        self.temperature = temperature
        self.projector = projector(dim, width, embedding)

    def forward(self, first: Tensor, second: Tensor, labels: Tensor | None) -> Tensor:
        z1, z2 = self.projector(torch.cat([first, second])).chunk(2)
        return nt_xent(gather(z1), gather(z2), self.temperature)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent (arXiv 2002.05709, Eq. 1), the mean over the 2B anchors.

    Args:
        z1, z2: embeddings of both views, float (B, D), any norm.
        temperature: tau.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    batch = len(z1)
    positives = torch.arange(2 * batch, device=z.device).roll(batch)
    return F.cross_entropy(logits, positives)
