"""A bundle's config.json, from the model and from the code's own constants: nothing is typed twice."""

from __future__ import annotations

import inspect

from mrisr import __version__, grid
from mrisr.bundle import FORMAT, MODEL_NAME, VERSION
from mrisr.diffusion.schedule import karras_sigmas
from mrisr.infer import fade, tiles
from mrisr.infer.facts import WINDOW_ALIGN, ModelFacts, trained_range
from mrisr.infer.info import RESEARCH_USE
from mrisr.nn import vector
from mrisr.nn.blocks import WINDOW
from mrisr.nn.unet import MULTIPLE
from mrisr.ops.resample.matrices import interpolation_matrix
from mrisr.physics import consistency, degrade, foreground, intensity, psf

INPUTS = ("x", "y", "vector", "guidance")
OUTPUTS = ("f",)


def config_of(model, opset: int, graphs: list[dict]) -> dict:
    """Everything but `files`.

    Args:
        model: a `mrisr.weights.registry.LoadedModel`.
        graphs: further entries after model.onnx in float32.
    """
    net, meta = model.denoiser.net, model.meta
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "library_version": __version__,
        "notice": RESEARCH_USE,
        "name": str(meta.get("name", meta["preset"])),
        "model_version": int(meta.get("version", 0)),
        "preset": meta["preset"],
        "parameters": sum(p.numel() for p in net.parameters()),
        "opset": opset,
        "graphs": [{"file": MODEL_NAME, "format": "onnx", "precision": "float32"}, *graphs],
        "network": network_of(net.config),
        "vector": _vector(),
        "guidance": {
            "channels": vector.GUIDANCE_CHANNELS,
            "stride": vector.GUIDANCE_STRIDE,
            "layout": list(vector.GUIDANCE_LAYOUT),
        },
        "diffusion": _diffusion(model.denoiser, meta),
        "trained_range": {kind: trained_range(meta).get(kind) for kind in ("isotropic", "slice")},
        **_preprocessing(),
        "tiling": _tiling(net.config, ModelFacts.of(model).overlap),
        "grid": {"voxel_size": grid.DEFAULT_VOXEL_SIZE, "same_spacing": grid.SAME_SPACING},
        "fade": {
            "spline_order": fade.ORDER,
            "end_none": fade.END_NONE,
            "end_all": fade.END_ALL,
            "half": fade.HALF,
            "darkest": foreground.DARKEST,
            "certain": foreground.CERTAIN,
            "over_air": foreground.OVER_AIR,
            "background_share": foreground.BACKGROUND_SHARE,
            "background_solid": foreground.BACKGROUND_SOLID,
            "least": fade.LEAST,
            "most": fade.MOST,
        },
        "consistency": {
            "mean_widths": degrade.MEAN_WIDTHS,
            "noise_floor": consistency.NOISE_FLOOR,
            "smallest_eigenvalue": consistency.SMALLEST_EIGENVALUE,
        },
    }


def network_of(config) -> dict:
    """The `network` section, from a `mrisr.nn.unet.UNetConfig`."""
    plain = [1, 1, "D", "H", "W"]
    coarse = [1, vector.GUIDANCE_CHANNELS, "D/8", "H/8", "W/8"]
    shapes = (plain, plain, [1, vector.VECTOR_DIM], coarse)
    return {
        "inputs": [{"name": name, "shape": shape} for name, shape in zip(INPUTS, shapes)],
        "outputs": [{"name": name, "shape": plain} for name in OUTPUTS],
        "multiple": MULTIPLE,
        "widths": list(config.widths),
        "norm": config.norm,
        "attention_window": WINDOW if config.attention else 0,
    }


def _vector() -> dict:
    return {
        "length": vector.VECTOR_DIM,
        "layout": {name: list(span) for name, span in vector.VECTOR_LAYOUT.items()},
        "log_sigma_unit": vector.LOG_SIGMA_UNIT,
        "noise_unit": vector.NOISE_UNIT,
        "mode_mean": vector.MEAN,
        "mode_sample": vector.SAMPLE,
        "profiles": list(psf.KINDS),
        "width_decimals": vector.WIDTH_DECIMALS,
    }


def _diffusion(denoiser, meta: dict) -> dict:
    return {
        "sigma_data": denoiser.sigma_data,
        "sigma_min": denoiser.sigma_min,
        "sigma_max": denoiser.sigma_max,
        "sampler": "dpmpp_2m",  # as mrisr/infer/denoise.py has it
        "rho": _default(karras_sigmas, "rho"),
        "mode": "mean",
        "steps": 1,
        "few_steps": list(meta.get("few_steps", ())),
        "denoise": bool(meta.get("denoise", False)),
    }


def _preprocessing() -> dict:
    return {
        "intensity": {
            "foreground": foreground.CERTAIN,
            "offset_percentile": intensity.LOW,
            "first_percentile": intensity.HIGH,
            "scale_percentile": intensity.TISSUE,
            "rounds": intensity.ROUNDS,
            "settled": intensity.SETTLED,
            "sample": intensity.ENOUGH,
            "bulk_percentile": intensity.BULK,
            "outlier": intensity.OUTLIER,
            "alike": intensity.ALIKE,
            "lag": intensity.LAG,
        },
        "noise": {"fewest_cells": intensity.FEWEST_CELLS, "sample": intensity.NOISE_SAMPLE},
        "start": {
            "spline_order": _default(interpolation_matrix, "order"),
            "thick_slice_ratio": psf.THICK_SLICE_RATIO,
        },
    }


def _tiling(config, overlap: int) -> dict:
    align = WINDOW_ALIGN if config.attention else tiles.BRICK
    return {
        "brick": tiles.BRICK,
        "align": align,
        "overlap": overlap,
        "trim": tiles.TRIM,
        "smallest": tiles.smallest_tile(align),
        "margin": tiles.MARGIN,
        "fade": tiles.FADE,
        "air": foreground.AIR,
        "bright": foreground.BRIGHT,
        "fewest_neighbours": foreground.FEWEST_NEIGHBOURS,
    }


def _default(function, name: str):
    return inspect.signature(function).parameters[name].default
