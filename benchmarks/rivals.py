"""What else a user could run for the reference job: MONAI's sliding windows, and the paper's released sampler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

ROI, OVERLAP = 96, 0.25  # MONAI's default overlap; and the tile of the comparison of engines
SEED = 0

# Measured once on two cores: the released code, 2D slices of 128 x 128, 2000 steps.
PAPER = {"pixels": 128 * 128, "steps": 2000, "seconds_per_slice": 2490.0, "cores": 2, "slices": 260}


@contextmanager
def plain_operators() -> Iterator[None]:
    """Inside, mrisr's networks run on PyTorch's own operators, as a network written by anyone would."""
    from mrisr.nn import blocks
    from mrisr.ops import group_norm, rms_norm

    def channels(x, scale=None, shift=None, *, out=None, **options):
        return rms_norm.plain(x, scale, shift, **options)

    def groups(x, *args, **options):
        return group_norm.group_norm(x, *args, **options, backend="reference")

    ours = blocks.rms_norm, blocks.group_norm
    blocks.rms_norm, blocks.group_norm = channels, groups
    try:
        yield
    finally:
        blocks.rms_norm, blocks.group_norm = ours


def monai(net, vector, shape: tuple[int, int, int], roi: int = ROI) -> dict:
    """MONAI `sliding_window_inference` (Gaussian blending) around `net` in eager PyTorch, channels-last.

    Args:
        net: the network, called as net(x, y, vector, guidance).
        vector: its conditioning, [1, VECTOR_DIM].
        shape: of the volume, voxels.

    Returns:
        Seconds, windows, and the largest difference to the same network on the whole volume as a share of its largest
        output (windows that overlap are averaged, so it is not zero); or {"absent": why}.

    Raises RuntimeError where one window that covers everything is not the network's own output.
    """
    try:
        from monai.inferers import sliding_window_inference
    except ImportError as error:
        return {"absent": f"{error}; pip install -c constraints.txt monai"}
    import torch

    net = net.to(memory_format=torch.channels_last_3d)

    def predict(y):
        return net(torch.zeros_like(y), y, vector.expand(len(y), -1), _no_guidance(y))

    def windows(y, size):
        return sliding_window_inference(y, size, 1, predict, overlap=OVERLAP, mode="gaussian")

    with torch.inference_mode():
        small = torch.randn(1, 1, 32, 40, 32, generator=torch.Generator().manual_seed(SEED))
        difference = _share(windows(small, small.shape[2:]), predict(small))
        if difference > 1e-4:
            raise RuntimeError(f"rivals: one MONAI window differs from the network by {difference:.1e}")
        # Padded to whole cells of the network first, so that every window starts where one does.
        y = torch.randn(1, 1, *(-(-n // 8) * 8 for n in shape), generator=torch.Generator().manual_seed(SEED))
        start = time.perf_counter()
        blended = windows(y, (roi,) * 3)
        seconds = time.perf_counter() - start
        whole = predict(y)
    return {
        "seconds": round(seconds, 2),
        "roi": roi,
        "overlap": OVERLAP,
        "version": metadata.version("monai"),
        "difference_to_whole": _share(blended, whole),
    }


def _no_guidance(y):
    return y.new_zeros(len(y), 8, *(n // 8 for n in y.shape[2:]))


def _share(answer, expected) -> float:
    return float((answer - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def paper(target: tuple[int, int, int]) -> dict:
    """Seconds that the paper's released sampler would take, extrapolated: nothing here runs it.

    As released: one 128 x 128 picture per slice, whatever the slice's own size. On the job's grid: the cost of a
    convolutional network grows with the pixels, so the measured seconds are multiplied by the ratio of pixels.
    """
    pixels = target[0] * target[1] * target[2]
    as_released = PAPER["seconds_per_slice"] * PAPER["slices"]
    return {
        "as_released_s": as_released,
        "on_this_grid_s": round(PAPER["seconds_per_slice"] * pixels / PAPER["pixels"]),
        "how": f"extrapolated from {PAPER['seconds_per_slice']:.0f} s measured for one slice of 128 x 128 and "
        f"{PAPER['steps']} steps on {PAPER['cores']} cores: times {PAPER['slices']} slices as released, times "
        f"{pixels / PAPER['pixels']:.0f} by the ratio of pixels on a grid of {' x '.join(map(str, target))}",
    }
