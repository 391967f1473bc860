"""What ops.py times: per family, inputs of the sizes that upscaling uses, ours, the rivals and the floor.

A function takes (device, quick) and yields contests; FAMILIES lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import op_network_cases
import torch
from contest import F32, Contest, compiled, draw, ours


def noise(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops import noise as family

    shape = (8, 9, 10) if quick else (160, 160, 160)
    box = (list(shape), [0, 0, 0], list(shape), 1, 0, 0)
    there = torch.device(device)
    yield Contest(
        "noise",
        "x".join(map(str, shape)),
        ours("noise", device, partial(family.normal_noise, shape, seed=1, device=device)),
        {
            "eager": lambda: family.reference(*box, there),
            # Other numbers, which any tiling would change: what keying the noise by voxel costs.
            "torch.randn": lambda: torch.randn(*shape, device=there),
        },
        expected=family.reference(*box, torch.device("cpu"), torch.float64),
        tolerance=2e-6,
        bytes_moved=F32 * shape[0] * shape[1] * shape[2],
        unlike=("torch.randn",),
    )


def blend(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops.tiles import blend_add_, reference_add

    size, edge = (20, 12) if quick else (200, 128)
    volume, tile = draw(size, size, size, device=device), draw(edge, edge, edge, device=device, seed=1)
    origin = [3, 4, 5]
    weights = [draw(edge, device=device, seed=2 + i).abs() for i in range(3)]
    expected = volume.double().cpu()
    reference_add(expected, tile.double().cpu(), origin, *(w.double().cpu() for w in weights))

    def in_place(add: Callable) -> Callable:
        to = volume.clone()  # of its own: every call adds once more, and the first is compared

        def call(**options):
            add(to, tile, origin, *options.pop("weights"), **options)
            return to

        return call

    def mine(backend: str) -> Callable:
        def add(to, piece, at, *w, **_):
            blend_add_(to, piece, at, w, backend=backend)

        return partial(in_place(add), weights=weights)

    yield Contest(
        "blend",
        f"{edge}^3 into {size}^3",
        {name: mine(name) for name in ours("blend", device, blend_add_)},
        {
            "eager": partial(in_place(reference_add), weights=weights),
            "compile": partial(in_place(compiled(reference_add, quick)), weights=weights),
        },
        expected=expected,
        tolerance=1e-6,
        bytes_moved=3 * F32 * edge**3,
    )


def gather(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops.tiles import gather as public
    from mrisr.ops.tiles import reference_gather

    size, edge = (20, 16) if quick else (200, 144)
    volume = draw(size, size, size, device=device)
    origin, shape = [-4, 2, size - edge + 4], [edge] * 3

    def padded() -> torch.Tensor:
        wide = torch.nn.functional.pad(volume[None, None], (0, 4, 0, 0, 4, 0), mode="replicate")[0, 0]
        part = wide[: shape[0], origin[1] : origin[1] + shape[1], origin[2] : origin[2] + shape[2]]
        return part.contiguous()

    yield Contest(
        "gather",
        f"{edge}^3 from {size}^3",
        ours("gather", device, partial(public, volume, origin, shape)),
        {"eager": lambda: reference_gather(volume, origin, shape), "pad and slice": padded},
        expected=reference_gather(volume.double().cpu(), origin, shape),
        tolerance=0.0,
        bytes_moved=2 * F32 * edge**3,
    )


def axis_apply(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops.resample import interpolation_matrix
    from mrisr.ops.resample.axes import axis_apply as public
    from mrisr.ops.resample.axes import reference

    size = 16 if quick else 160
    wide = round(size / 0.7)
    x = draw(size, size, size, device=device)
    # The native kernel leaves out coefficients below 1e-9 of their row; what is left is what has to be multiplied.
    matrix = torch.as_tensor(interpolation_matrix(size, wide, 0.7).copy(), device=device)
    taps = int((matrix.abs() > 1e-9 * matrix.abs().amax(1, keepdim=True)).sum())
    for axis in range(3):
        yield Contest(
            "axis_apply",
            f"{size}^3, axis {axis}, quintic",
            ours("axis_apply", device, partial(public, x, matrix, axis)),
            {
                "eager": partial(reference, x, matrix, axis),
                "compile": partial(compiled(reference, quick), x, matrix, axis),
            },
            expected=reference(x.double().cpu(), matrix.cpu(), axis),
            tolerance=1e-5,
            bytes_moved=F32 * (size**3 + size * size * wide),
            flop=2 * taps * size * size,
        )


def sampler_step(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops import sampling as family

    size = 10 if quick else 160
    x, f, before = (draw(size, size, size, device=device, seed=i) for i in range(3))
    table = draw(4, family.COLUMNS, device=device, seed=3)
    clock = family.clocks(4, seed=5, device=device)[2]
    for noisy in (False, True):

        def plain(x, f, before, table, clock, noisy=noisy):
            return family.reference(x, f, before, table, clock, -1.0, 1.0, noisy)

        def following(step, *args):
            # The next step's `before` is the second output: compiled to give the first alone, nobody would write it.
            return step(*args)[0]

        def mine(backend, noisy=noisy):
            options = dict(before=before, clamp=(-1.0, 1.0), noise=noisy, backend=backend)
            return family.sampler_step(x, f, table, clock, **options)[0]

        rivals = {"eager": partial(following, plain, x, f, before, table, clock)}
        if not noisy:  # reading the clock on the host breaks the graph
            rivals["compile"] = partial(following, compiled(plain, quick), x, f, before, table, clock)
        wide = (t.double().cpu() for t in (x, f, before, table))
        yield Contest(
            "sampler_step",
            f"{size}^3" + (", noise" if noisy else ""),
            ours("sampler_step", device, mine),
            rivals,
            expected=following(plain, *wide, clock.cpu()),
            tolerance=3e-6,
            bytes_moved=5 * F32 * size**3,
        )


def prefilter(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops.resample.prefilter import halo, reference
    from mrisr.ops.resample.prefilter import prefilter as public

    size = 12 if quick else 160
    x, h = draw(size, size, size, device=device), halo(5)

    def scipys() -> torch.Tensor:  # one core, double inside, and no coefficients beyond the ends
        from scipy.ndimage import spline_filter

        return torch.from_numpy(spline_filter(x.cpu().numpy(), 5, "float32", "mirror"))

    yield Contest(
        "prefilter",
        f"{size}^3, quintic",
        ours("prefilter", device, partial(public, x, 5, "mirror")),
        {"eager": partial(reference, x, 5, "mirror"), "scipy": scipys},
        expected=reference(x.double().cpu(), 5, "mirror")[h:-h, h:-h, h:-h],
        tolerance=1e-5,
        bytes_moved=2 * F32 * size**3,
        inside=lambda out: out if out.shape[-1] == size else out[h:-h, h:-h, h:-h],
    )


def resample3d(device: str, quick: bool) -> Iterator[Contest]:
    """Prefilter and sampling along a smooth displacement of up to some voxels, on the grid of the volume."""
    import numpy as np

    from mrisr.ops.resample import resample3d as public
    from mrisr.ops.resample.spline import reference

    size = 12 if quick else 96  # the reference takes seconds
    shape = (size,) * 3
    x, nodes = draw(*shape, device=device), draw(1, 3, 4, 4, 4, device=device, seed=1)
    field = 1.5 * torch.nn.functional.interpolate(nodes, shape, mode="trilinear", align_corners=True)[0]
    still = torch.stack(torch.meshgrid(*(torch.arange(size, device=device) for _ in range(3)), indexing="ij"))
    # grid_sample counts from -1 to 1, and its last coordinate first.
    grid = ((still + field) * (2 / (size - 1)) - 1).flip(0).permute(1, 2, 3, 0)[None]
    matrix = np.eye(4).tolist()
    for order in (1, 5):
        options = dict(displacement=field, order=order, boundary="mirror")
        wide = {**options, "displacement": field.double().cpu()}

        def scipys(order=order):
            from scipy.ndimage import map_coordinates

            positions = (still + field).cpu().numpy()
            return torch.from_numpy(map_coordinates(x.cpu().numpy(), positions, order=order, mode="mirror"))

        rivals = {"eager": partial(reference, x, shape, matrix, **options), "scipy": scipys}
        if order == 1:
            sampled = partial(torch.nn.functional.grid_sample, padding_mode="reflection", align_corners=True)
            rivals["compile"] = partial(compiled(reference, quick), x, shape, matrix, **options)
            rivals["grid_sample"] = lambda sampled=sampled: sampled(x[None, None], grid)[0, 0]
        yield Contest(
            "resample3d",
            f"{size}^3, order {order}, displaced",
            ours("resample3d", device, partial(public, x, shape, matrix, **options)),
            rivals,
            expected=reference(x.double().cpu(), shape, matrix, **wide),
            tolerance=1e-4,  # grid_sample forms its positions in float32
            bytes_moved=5 * F32 * size**3,
            flop=2 * (order + 1) ** 2 * (order + 2) * size**3,
        )


FAMILIES = {
    "noise": noise,
    "blend": blend,
    "gather": gather,
    "axis_apply": axis_apply,
    "prefilter": prefilter,
    "resample3d": resample3d,
    "sampler_step": sampler_step,
    **op_network_cases.FAMILIES,
}
