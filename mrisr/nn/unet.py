"""The 3D U-Net of teacher and student: one interface, sizes from `mrisr.nn.presets`.

Space-to-depth by 2 at the entrance and depth-to-space at the exit, so that no convolution runs at full resolution;
three levels (1/2, 1/4, 1/8), additive skips, FiLM conditioning, guidance at 1/8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mrisr.errors import UsageError
from mrisr.nn.active import active_bricks
from mrisr.nn.blocks import (
    FilmBlock,
    NormBlock,
    WindowAttention,
    depth_to_space,
    initialise_conv,
    mask_out,
    space_to_depth,
)
from mrisr.nn.vector import GUIDANCE_CHANNELS, VECTOR_DIM

DETAIL_GAIN = 6.0  # about half of 1 / sigma_data
MULTIPLE = 8  # depth, height and width are multiples of this


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net.

    Attributes:
        widths: channels at 1/2, 1/4 and 1/8 resolution, multiples of 8.
        encoder, decoder: residual blocks at 1/2 and 1/4 on the way down and up.
        middle: residual blocks at 1/8.
        norm: "channel" (per voxel: local) or "group" (statistics over active voxels).
        attention: attention layers at 1/8, in windows that are unshifted and shifted by turns.
        global_attention: how many of these, the last ones, attend to the whole volume instead.
        qk_norm: whether attention normalises queries and keys (its layers then have two more parameters).
        embed: width of the conditioning embedding.
    """

    widths: tuple[int, int, int]
    encoder: tuple[int, int]
    middle: int
    decoder: tuple[int, int]
    norm: str = "channel"
    attention: int = 0
    head_dim: int = 64
    embed: int = 128
    global_attention: int = 0
    qk_norm: bool = False

    def __post_init__(self):
        if any(w % 8 or w < 8 for w in self.widths):
            raise UsageError(f"UNetConfig: widths must be multiples of 8, found {self.widths}")
        if self.norm not in ("channel", "group"):
            raise UsageError(f"UNetConfig: norm must be 'channel' or 'group', found {self.norm!r}")
        if self.attention and self.widths[2] % self.head_dim:
            raise UsageError(
                f"UNetConfig: width {self.widths[2]} at 1/8 must be a multiple of head_dim={self.head_dim}"
            )
        if not 0 <= self.global_attention <= self.attention <= self.middle:
            raise UsageError(
                f"UNetConfig: global_attention ({self.global_attention}) may not exceed attention ({self.attention}), "
                f"nor attention the blocks of the middle ({self.middle})"
            )


class Stage(nn.Module):
    """Residual blocks of one level in one direction."""

    def __init__(self, config: UNetConfig, channels: int, blocks: int):
        super().__init__()
        block = FilmBlock if config.norm == "channel" else NormBlock
        self.blocks = nn.ModuleList(block(channels, config.embed, channels // 8) for _ in range(blocks))

    def forward(self, x, embedding, active):
        for block in self.blocks:
            x = block(x, embedding, active)
        return x


class Middle(nn.Module):
    """Residual blocks at 1/8, with window attention after the first ones."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.stage = Stage(config, config.widths[2], config.middle)
        windows = config.attention - config.global_attention
        self.attention = nn.ModuleList(
            WindowAttention(
                config.widths[2], config.head_dim, i % 2 == 1, everywhere=i >= windows, qk_norm=config.qk_norm
            )
            for i in range(config.attention)
        )

    def forward(self, x, embedding, active):
        for i, block in enumerate(self.stage.blocks):
            x = block(x, embedding, active)
            if i < len(self.attention):
                x = self.attention[i](x, active)
        return x


class UNet(nn.Module):
    """F(x, y, vector, guidance) -> raw output, all at the target grid; preconditioning is `mrisr.diffusion.precond`.

    Args of `forward`:
        x, y: float [N, 1, D, H, W]; D, H, W multiples of 8. Preconditioned residual, and the normalised start.
        vector: float32 [N, VECTOR_DIM] from `Condition.vector`.
        guidance: float [N, 8, D/8, H/8, W/8] from `Condition.guidance_for`.
        active: bool [N, 1, D/8, H/8, W/8], bricks that group-norm may see; None: those of `active_bricks(y)`.

    Returns:
        [N, 1, D, H, W]. The last convolution starts at zero, so an untrained network adds nothing.
    """

    transient = False  # its weights are of one run: no engine keeps on disk what it makes of them

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        w0, w1, w2 = config.widths
        self.embed = nn.Sequential(
            nn.Linear(VECTOR_DIM, config.embed), nn.SiLU(), nn.Linear(config.embed, config.embed), nn.SiLU()
        )
        self.entrance = nn.Conv3d(16, w0, 3, padding=1)
        self.encode0 = Stage(config, w0, config.encoder[0])
        self.down0 = nn.Conv3d(w0, w1, 2, stride=2)
        self.encode1 = Stage(config, w1, config.encoder[1])
        self.down1 = nn.Conv3d(w1, w2, 2, stride=2)
        self.guide = nn.Conv3d(GUIDANCE_CHANNELS, w2, 1, bias=False)
        self.middle = Middle(config)
        self.up1 = nn.ConvTranspose3d(w2, w1, 2, stride=2)
        self.decode1 = Stage(config, w1, config.decoder[1])
        self.up0 = nn.ConvTranspose3d(w1, w0, 2, stride=2)
        self.decode0 = Stage(config, w0, config.decoder[0])
        self.exit = nn.Conv3d(w0, 8, 3, padding=1)
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """Convolutions keep the variance, the last one starts at zero, and the entrance sees detail.

        Intensities are almost all mean and hardly any detail, so plain weights on the eight voxels of a 2^3 cell learn
        the mean first and the detail last. The entrance is drawn in the Haar basis of the cell instead, the seven
        detail bands amplified, and turned back: the same convolution, a far better start.
        """
        for conv in (self.entrance, self.down0, self.down1, self.up1, self.up0):
            initialise_conv(conv)
        for linear, gain in ((self.embed[0], 8.0), (self.embed[2], 2.0)):
            nn.init.normal_(linear.weight, std=(gain / linear.in_features) ** 0.5)
            nn.init.zeros_(linear.bias)
        pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        haar = torch.kron(torch.kron(pair, pair), pair)
        gain = torch.tensor([1 / 8**0.5] + [DETAIL_GAIN] * 7)
        analysis = torch.block_diag(haar * gain[:, None], haar * gain[:, None])
        self.entrance.weight.copy_(torch.einsum("ob...,bc->oc...", self.entrance.weight, analysis))
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, x, y, vector, guidance, active=None):
        if active is None and self.config.norm == "group":
            active = active_bricks(y)
        if any(size % MULTIPLE for size in y.shape[2:]):
            raise UsageError(
                f"UNet: depth, height and width must be multiples of {MULTIPLE}, found {tuple(y.shape)}; pad them "
                "(mrisr.upscale does)"
            )
        return depth_to_space(self.body(space_to_depth(torch.cat([x, y], dim=1)), vector, guidance, active))

    def body(self, packed, vector, guidance, active=None):
        """The network between space-to-depth and depth-to-space: [N, 16, D/2, ...] -> [N, 8, D/2, ...]."""
        active0 = active1 = None
        if active is not None:
            active0, active1 = (torch.nn.functional.interpolate(active.float(), scale_factor=s) > 0 for s in (4, 2))
            active = active > 0
        e = self.embed(vector)
        h0 = self.encode0(mask_out(self.entrance(packed), active0), e, active0)
        h1 = self.encode1(mask_out(self.down0(h0), active1), e, active1)
        h2 = mask_out(self.down1(h1) + self.guide(guidance.to(h1.dtype)), active)
        h2 = self.middle(h2, e, active)
        h1 = self.decode1(mask_out(h1 + self.up1(h2), active1), e, active1)
        h0 = self.decode0(mask_out(h0 + self.up0(h1), active0), e, active0)
        return mask_out(self.exit(h0), active0)
