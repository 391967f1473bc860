"""Building blocks of the U-Net: FiLM residual blocks, window attention, space-to-depth."""

from __future__ import annotations

import math

import torch
from torch import nn

from mrisr.errors import UsageError
from mrisr.ops.attention3d import attention3d
from mrisr.ops.group_norm import group_norm
from mrisr.ops.rms_norm import rms_norm


def space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """[N, C, D, H, W] -> [N, 8 C, D/2, H/2, W/2], channel = c * 8 + (4 d + 2 h + w). Channels-last result."""
    n, c, d, h, w = x.shape
    x = x.view(n, c, d // 2, 2, h // 2, 2, w // 2, 2)
    # Written in the order channels-last wants, so that this is the only copy.
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(n, d // 2, h // 2, w // 2, 8 * c)
    return x.permute(0, 4, 1, 2, 3)


def depth_to_space(x: torch.Tensor) -> torch.Tensor:
    """Inverse of `space_to_depth`: [N, 8 C, D, H, W] -> [N, C, 2D, 2H, 2W]."""
    n, c8, d, h, w = x.shape
    x = x.view(n, c8 // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, c8 // 8, 2 * d, 2 * h, 2 * w)


FILM_STD = 0.06
WINDOW = 8  # edge of an attention window, tokens
GLOBAL_TOKENS = (
    2**16
)  # the most that attend to each other: 320^3 voxels at 1/8 resolution; the work grows with its square
TOKEN_EPS = 1e-6


def initialise_conv(conv: nn.Conv3d | nn.ConvTranspose3d, gain: float = 1.0) -> None:
    """Normal weights that multiply the variance of an independent input by `gain`, no bias (He et al. 2015)."""
    taps = conv.kernel_size[0] ** 3 if isinstance(conv, nn.Conv3d) else 1
    nn.init.normal_(conv.weight, std=math.sqrt(gain / (conv.in_channels * taps)))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _may_overwrite() -> bool:
    """Whether an intermediate result may be written over: nobody differentiates, and no graph is being recorded."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


class FilmBlock(nn.Module):
    """x + conv(silu((1 + scale) * norm(conv(x)) + shift)), with a norm over the channels of each voxel.

    The student's block: its output at a voxel depends on a neighbourhood only, so that air, tiles and volume size
    cannot change it. FiLM starts random, not at zero: which filter is right depends on the scanner, and a network that
    must first learn to listen to its conditioning needs many times as many steps.
    """

    def __init__(self, channels: int, embed: int, groups: int | None = None):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embed, 2 * channels)
        nn.init.normal_(self.film.weight, std=FILM_STD)
        nn.init.zeros_(self.film.bias)
        initialise_conv(self.conv1, gain=2.0)
        initialise_conv(self.conv2, gain=0.1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        scale, shift = self.film(embedding).chunk(2, dim=1)
        h = self.conv1(x)
        return x + self.conv2(self.activate(h, scale, shift, out=h if _may_overwrite() else None))

    def activate(self, h: torch.Tensor, scale, shift, out: torch.Tensor | None = None) -> torch.Tensor:
        """Norm, FiLM and SiLU between the two convolutions, into `out` where that is given."""
        return rms_norm(h, scale, shift, act="silu", out=out)


class NormBlock(nn.Module):
    """norm, SiLU, conv, norm + FiLM, SiLU, conv, added to x: the teacher's block.

    Group-norm statistics run over active voxels only, and inactive ones are zero at the entrance of every
    convolution, as the padding is: how much air surrounds a head cannot change it.
    """

    def __init__(self, channels: int, embed: int, groups: int):
        super().__init__()
        self.groups = groups
        self.norm1 = nn.Parameter(torch.stack([torch.ones(channels), torch.zeros(channels)]))
        self.norm2 = nn.Parameter(torch.stack([torch.ones(channels), torch.zeros(channels)]))
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embed, 2 * channels)
        nn.init.normal_(self.film.weight, std=FILM_STD)
        nn.init.zeros_(self.film.bias)
        initialise_conv(self.conv1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        scale, shift = self.film(embedding).chunk(2, dim=1)
        h = group_norm(x, self.groups, self.norm1[0], self.norm1[1], mask=active, act="silu")
        h = self.conv1(mask_out(h, active))
        film = dict(scale=scale, shift=shift, mask=active, act="silu", out=h if _may_overwrite() else None)
        h = group_norm(h, self.groups, self.norm2[0], self.norm2[1], **film)
        return x + mask_out(self.conv2(mask_out(h, active)), active)


def mask_out(x: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
    """Zero the inactive voxels (all are active where `active` is None)."""
    return x if active is None else x * active.to(x.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention in 8^3 windows counted from the volume's origin, optionally shifted by half a window,
    or over the whole volume.

    Tokens outside the volume (the last windows may stick out) and inactive ones are no keys. The channels of every
    token are normalised before the projection, and with `qk_norm` the queries and keys of every head after it, so that
    no logit exceeds sqrt(head_dim) times the learnt gains (Henry et al. 2020).
    """

    def __init__(
        self,
        channels: int,
        head_dim: int = 64,
        shifted: bool = False,
        *,
        everywhere: bool = False,
        qk_norm: bool = False,
    ):
        super().__init__()
        self.heads = channels // head_dim
        self.window = None if everywhere else WINDOW
        self.shift = WINDOW // 2 if shifted and not everywhere else 0
        self.scale = nn.Parameter(torch.ones(channels))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.q_gain, self.k_gain = (nn.Parameter(torch.ones(head_dim)) if qk_norm else None for _ in range(2))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        if self.window is None and x.shape[2] * x.shape[3] * x.shape[4] > GLOBAL_TOKENS:
            raise UsageError(
                f"attention over the whole volume takes at most {GLOBAL_TOKENS} tokens; these are {list(x.shape[2:])}; "
                "process the volume in tiles (tile= of mrisr.upscale)"
            )
        # FiLM multiplies by 1 + its scale; the difference is exact for gains from 1/2 to 2.
        normed = rms_norm(x, (self.scale - 1).expand(x.shape[:2]), eps=TOKEN_EPS)
        key = None if active is None else active[:, 0] > 0
        how = dict(window=self.window, shift=self.shift, mask=key)
        if self.q_gain is not None:
            how |= dict(norm_eps=TOKEN_EPS, q_gain=self.q_gain, k_gain=self.k_gain)
        y = attention3d(self.qkv(normed.permute(0, 2, 3, 4, 1)), self.heads, **how)
        return x + mask_out(self.out(y).permute(0, 4, 1, 2, 3), active)
