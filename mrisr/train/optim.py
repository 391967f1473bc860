"""Optimisers: Muon for the convolutions, Adam for everything else.

Muon (K. Jordan et al. 2024, "Muon: an optimizer for hidden layers") orthogonalises the momentum of a weight matrix by
five Newton-Schulz steps. Gradients of a super-resolution network are dominated by a few directions (the mean, the
coarse edges); orthogonalised, the many weak ones, which are the fine detail, move as fast.
torch.optim.Muon takes 2D parameters only, hence this one.
"""

from __future__ import annotations

import torch
from torch import nn

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A matrix [m, n] with the singular vectors of `matrix` and singular values near 1 (0.7 to 1.2).

    The products run in `dtype`: bfloat16 is as good here, for singular values need not be equal, and costs a fraction.
    """
    a, b, c = _QUINTIC
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    wide = wide.to(matrix.dtype)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per weight; a convolution counts as the matrix [out, in * taps]."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.dtype = dtype  # of the products

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]).flatten(1), self.dtype)
                # Updates of equal size per entry whatever the shape of the matrix.
                aspect = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.add_(update.view(p.shape), alpha=-group["lr"] * aspect)
        return loss


def build_optimizers(net: nn.Module, config, others=()) -> list[torch.optim.Optimizer]:
    """[Muon for the 3^3 and 2^3 convolutions inside the network, Adam for the rest of it and `others`], peak rates in
    each group."""
    half = config.bfloat16_on(next(net.parameters()).device)
    inner, rest = [], []
    for name, p in net.named_parameters():
        is_conv = p.dim() == 5 and p.shape[2] > 1 and not name.startswith(("exit", "up"))
        (inner if is_conv else rest).append(p)
    optimizers = [
        Muon(inner, lr=config.muon_lr, dtype=torch.bfloat16 if half else torch.float32),
        torch.optim.Adam([*rest, *others], lr=config.lr, betas=(0.9, 0.99)),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
