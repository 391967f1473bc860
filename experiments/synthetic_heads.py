"""Heads without any noise, to measure denoising against: label maps in random colours, as training makes them.

python experiments/synthetic_heads.py --labels MAPS --out HEADS
mrisr evaluate HEADS -o OUT --cases iso2n,noisy --methods cubic,mrisr,denoise=mrisr@denoise
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np

from mrisr.data.labels import LabelVolume
from mrisr.data.synth import label_crop
from mrisr.io.atomic import replacing

SIZE, LEVEL = 112, 1000.0  # voxels along a head; intensity of the brightest tissue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", nargs="+", type=Path, required=True, help="label maps, a head of each")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=99, help="not one that anything was trained with")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for k, path in enumerate(args.labels):
        image = nibabel.load(path)
        volume = LabelVolume.from_array(np.asanyarray(image.dataobj), image.header.get_zooms()[:3], path.name)
        rng = np.random.default_rng([args.seed, k])
        head = label_crop(volume, SIZE, [0, 1, 2], rng, volume.head(args.seed, k)).numpy() * LEVEL
        name = args.out / f"synthetic_{path.name.split('.')[0]}.nii.gz"
        with replacing(name, force=True) as beside:
            nibabel.save(nibabel.Nifti1Image(head.astype(np.float32), np.eye(4)), beside)
        print(f"{name}: from {head.min():.0f} to {head.max():.0f}")


if __name__ == "__main__":
    main()
