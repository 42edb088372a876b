"""The head of a PyTorch module with an arbiter (`icis_deploy/head/arbiter.py`), as a module that can be trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icis_deploy.head.arbiter import GREATEST, TINY


class ArbitratedLinear(nn.Module):
    """A linear layer whose new classes follow statistics of the image and the seen logits.

    Args:
        linear: All rows, seen ones first, `(num_classes, feature_dim)`.
        arbiter: `(num_new, 5)`, of `icis_deploy.head.arbiter.STATISTICS`.
        row_lengths: `(num_seen,)`, from `deviation_lengths`.
    """

    arbiter: Tensor
    row_lengths: Tensor

    def __init__(self, linear: nn.Linear, arbiter: Tensor, row_lengths: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("arbiter", arbiter)
        self.register_buffer("row_lengths", row_lengths)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, `(..., num_classes)`, of features `(..., feature_dim)`."""
        logits: Tensor = self.linear(features)
        seen = logits[..., : len(self.row_lengths)]
        limits = float(TINY), float(GREATEST)
        statistics = torch.stack(
            [
                seen.amax(-1),
                seen.mean(-1),
                seen.var(-1, unbiased=False).clamp(*limits).log(),
                features.square().sum(-1).clamp(*limits).log(),
                self.row_lengths[seen.argmax(-1)],
            ],
            dim=-1,
        )
        return torch.cat([seen, logits[..., len(self.row_lengths) :] + statistics @ self.arbiter.T], dim=-1)
