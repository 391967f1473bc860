"""A larger network that begins as the smaller one: wider by copies of channels, deeper by blocks that add nothing.

Function-preserving growth (Chen, Goodfellow and Shlens, "Net2Net", arXiv 1511.05641). A widened channel is a copy; what
reads the copies shares the old weight out among them unevenly, at random, so that training can tell them apart. Norms
over the channels of a voxel do not see that each is there k times. New residual blocks and attention begin at zero.
"""

from __future__ import annotations

import torch

from mrisr.errors import ModelError
from mrisr.nn.unet import UNet, UNetConfig


def reason_not_to_grow(old: UNetConfig, new: UNetConfig) -> str | None:
    """Why a network of `new` cannot begin as one of `old`; None where it can."""
    if old.norm != "channel" or new.norm != "channel":
        return "norms over groups of channels see that channels are copies"
    factors = {b / a for a, b in zip(old.widths, new.widths)}
    if len(factors) > 1 or not factors.pop().is_integer():
        return f"widths {new.widths} are not the same whole multiple of {old.widths}"
    if new.embed != old.embed:
        return f"the embedding has {new.embed} channels instead of {old.embed}"
    if old.attention and (new.attention < old.attention or new.head_dim != old.head_dim or new.widths != old.widths):
        return "attention cannot be widened"
    depths = zip((*old.encoder, old.middle, *old.decoder), (*new.encoder, new.middle, *new.decoder))
    return "it has fewer blocks" if any(b < a for a, b in depths) else None


@torch.no_grad()
def grow(small: UNet, large: UNet) -> None:
    """Make `large`, newly built, give what `small` gives (to rounding). ModelError where it cannot."""
    reason = reason_not_to_grow(small.config, large.config)
    if reason is not None:
        raise ModelError(
            f"a network of widths {large.config.widths} cannot begin as the given one: {reason}; build it anew"
        )
    times = large.config.widths[0] // small.config.widths[0]
    generator = torch.Generator().manual_seed(0)
    old, new = small.state_dict(), large.state_dict()
    for name, tensor in new.items():
        if name in old:
            tensor.copy_(_grown(name, old[name], tensor.shape, times, generator))
        elif name.endswith(("conv2.weight", "conv2.bias")):
            tensor.zero_()


def _grown(name: str, old: torch.Tensor, shape, times: int, generator: torch.Generator) -> torch.Tensor:
    if old.shape == shape:
        return old
    out_axis, in_axis = (1, 0) if name.startswith("up") and old.dim() == 5 else (0, 1)
    parts = 2 if "film" in name else 1  # scale and shift stand one after the other
    if shape[out_axis if old.dim() > 1 else 0] != old.shape[out_axis if old.dim() > 1 else 0]:
        axis = out_axis if old.dim() > 1 else 0
        old = torch.cat([torch.cat([part] * times, axis) for part in old.chunk(parts, axis)], axis)
    if old.dim() > 1 and shape[in_axis] != old.shape[in_axis]:
        shares = (
            torch.rand(
                (times, *(old.shape[in_axis] if a == in_axis else 1 for a in range(old.dim()))), generator=generator
            )
            + 0.5
        )
        shares = shares / shares.sum(0)
        old = torch.cat([old * share for share in shares], in_axis)
    return old
