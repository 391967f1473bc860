"""What is around and at the ends of real heads, beside cubic interpolation: air, masked backgrounds, end slices.

    python experiments/real_heads.py SCAN... [--width N] [--picture PNG]

Per scan: the standard deviation of air and the share of negative voxels over cubic's; in masked scans the 99th
percentile of |value| beyond 3 voxels from the head as a part of its median; the largest spread of the four slices at
each end of a stack over cubic's; lowest and highest value as parts of the scan's maximum. The picture shows air above
the scalp at a window twelve times as narrow, cubic beside the result.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import ndimage

import mrisr
from mrisr import grid as grids
from mrisr.io import nifti
from mrisr.physics.foreground import masked_background, tissue
from mrisr.physics.intensity import intensity_scale

FAR = 3  # voxels of the scan
WINDOW = 12


def cubic(data: np.ndarray, info) -> np.ndarray:
    """SciPy's, along one axis after another: what it makes of a single sample is a column of the matrix."""
    for axis in range(3):
        n, new, old = data.shape[axis], info.target.voxel_size[axis], info.input.voxel_size[axis]
        at = grids.axis_positions(n, info.target.shape[axis], new / old)[None]
        columns = [ndimage.map_coordinates(one, at, order=3, mode="nearest") for one in np.eye(n)]
        matrix = np.stack(columns, axis=1).astype(np.float32)
        data = np.moveaxis(np.tensordot(matrix, data, (1, axis)), 0, axis)
    return data


def nearest(mask: np.ndarray, info) -> np.ndarray:
    old, new = info.input, info.target
    for axis in range(3):
        ratio = new.voxel_size[axis] / old.voxel_size[axis]
        at = grids.axis_positions(old.shape[axis], new.shape[axis], ratio).round().clip(0, old.shape[axis] - 1)
        mask = mask.take(at.astype(int), axis)
    return mask


def row(data: np.ndarray, result: np.ndarray, plain: np.ndarray, info, thick: int | None) -> list[str]:
    offset, scale = intensity_scale(data)
    found = masked_background(data)
    head = tissue(((data - offset) / scale).astype(np.float32)) > 0 if found is None else ~found.mask
    far = nearest(~ndimage.binary_dilation(head, iterations=FAR), info)
    median = float(np.median(data[head]))
    air = "-" if found or not far.any() else f"{result[far].std() / plain[far].std():.3f}"
    beyond = f"{100 * np.percentile(np.abs(result[far] - found.value), 99) / median:.3f} %" if found else "-"
    negative = f"{100 * (result < 0).mean():.2f} / {100 * (plain < 0).mean():.2f} %"
    ends = "-"
    if thick is not None:
        inside = nearest(head, info)
        spread = []
        for k in (0, 1, 2, 3, -4, -3, -2, -1):
            slices = [np.moveaxis(v, thick, 0)[k] for v in (inside, result, plain)]
            if slices[0].sum() > 100:
                spread.append(slices[1][slices[0]].std() / slices[2][slices[0]].std())
        ends = f"{max(spread):.2f}"
    extremes = (f"{v.min() / data.max():.2f} to {v.max() / data.max():.2f}" for v in (result, plain))
    return [air, negative, beyond, ends, *extremes]


def picture(path: str, data: np.ndarray, result: np.ndarray, plain: np.ndarray) -> None:
    from matplotlib import image

    k, high = result.shape[0] // 2, float(np.percentile(data, 99.5)) / WINDOW
    both = np.hstack([plain[k].T[::-1], result[k].T[::-1]])
    image.imsave(path, both.clip(0, high), cmap="gray", vmin=0, vmax=high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="+")
    parser.add_argument("--picture", help="of the first scan")
    parser.add_argument("--width", type=int, help="only so many central planes of the first axis")
    args = parser.parse_args()
    print(
        "| scan | air / cubic's | negatives / cubic's | beyond 3 voxels | ends / cubic's | of the maximum | cubic's |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for number, path in enumerate(args.scans):
        volume = nifti.read(path)
        if args.width:
            first = max(0, (volume.data.shape[0] - args.width) // 2)
            there = volume.affine @ np.array([[1, 0, 0, first], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            volume = volume.replace(np.ascontiguousarray(volume.data[first : first + args.width]), there)
        result, info = mrisr.upscale(volume, threads=1, return_info=True)
        plain = cubic(volume.data, info)
        sizes = np.array(volume.voxel_size)
        thick = int(sizes.argmax()) if sizes.max() > 2 * sizes.min() else None
        cells = row(volume.data, result.data, plain, info, thick)
        print(f"| {volume.name.rsplit('/')[-1].split('.')[0]} | " + " | ".join(cells) + " |", flush=True)
        if args.picture and number == 0:
            picture(args.picture, volume.data, result.data, plain)


if __name__ == "__main__":
    main()
