"""libmrisr through ctypes: the structures of csrc/include/mrisr.h, member for member."""

from __future__ import annotations

import ctypes as c
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrisr.physics.psf import AxisPSF

LIBRARY = os.environ.get("MRISR_LIBRARY")  # libmrisr.so of an installed tree
Triple = c.c_int64 * 3
OK, ARGUMENT, INPUT, GEOMETRY, MODEL, MEMORY, ENGINE, CANCELLED, INTERNAL = range(9)
KINDS = ("unknown", "kspace", "gaussian", "supergaussian")
WINDOWS = ("box", "hann", "tukey")
MODES = {None: 0, "mean": 1, "sample": 2}
CONSISTENCY = {"auto": 0, "on": 1, "off": 2}
PRECISION = {"auto": 0, "float32": 1, "bfloat16": 2}

LOG = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, c.c_char_p)
PROGRESS = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_double)
RUN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p)


class AxisPsf(c.Structure):
    _fields_ = [("kind", c.c_int32), ("window", c.c_int32), ("width", c.c_double)]


class Engine(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("user", c.c_void_p),
        ("name", c.c_char_p),
        ("memory", c.c_int32),
        ("stream", c.c_void_p),
        ("fixed_bytes", c.c_uint64),
        ("bytes_per_voxel", c.c_double),
        ("prepare", c.c_void_p),
        ("run", RUN),
        ("allocate", c.c_void_p),
        ("deallocate", c.c_void_p),
        ("copy_in", c.c_void_p),
        ("copy_out", c.c_void_p),
        ("wait", c.c_void_p),
        ("error_text", c.c_void_p),
    ]


class Tile(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("size", Triple),
        ("x", c.POINTER(c.c_float)),
        ("y", c.POINTER(c.c_float)),
        ("vector", c.POINTER(c.c_float)),
        ("guidance", c.POINTER(c.c_float)),
        ("f", c.POINTER(c.c_float)),
        ("stream", c.c_void_p),
    ]


class OpenOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("log", LOG),
        ("log_user", c.c_void_p),
        ("skip_checksums", c.c_int32),
        ("cache", c.c_char_p),
        ("onnxruntime", c.c_char_p),
    ]


class ModelInfo(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("name", c.c_char_p),
        ("preset", c.c_char_p),
        ("sha256", c.c_char_p),
        ("sigma_data", c.c_double),
        ("multiple", c.c_int32),
    ]


class PlanOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("shape", Triple),
        ("affine", c.c_double * 16),
        ("voxel_size", c.c_double * 3),
        ("factor", c.c_double * 3),
        ("psf_stated", c.c_int32),
        ("psf", AxisPsf * 3),
        ("mode", c.c_int32),
        ("steps", c.c_int32),
        ("samples", c.c_int32),
        ("consistency", c.c_int32),
        ("threads", c.c_int32),
        ("tile", Triple),
        ("memory", c.c_uint64),
        ("engine", c.POINTER(Engine)),
        ("precision", c.c_int32),
        ("ends", c.c_int32),
        ("tile_fixed", c.c_int32),
        ("denoise", c.c_double),
        ("runtime", c.c_int32),
    ]


class Geometry(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("shape", Triple),
        ("affine", c.c_double * 16),
        ("voxel_size", c.c_double * 3),
        ("psf", AxisPsf * 3),
        ("psf_certain", c.c_int32),
        ("threads", c.c_int32),
        ("workspace_bytes", c.c_uint64),
        ("expected_bytes", c.c_uint64),
        ("budget_bytes", c.c_uint64),
        ("largest_tile_voxels", c.c_int64),
        ("precision", c.c_int32),
        ("precision_why", c.c_char_p),
    ]


class RunOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("input", c.c_void_p),
        ("input_element", c.c_int32),
        ("input_stride", Triple),
        ("output", c.c_void_p),
        ("output_stride", Triple),
        ("spread", c.c_void_p),
        ("seed", c.c_uint64),
        ("workspace", c.c_void_p),
        ("workspace_size", c.c_uint64),
        ("progress", PROGRESS),
        ("progress_user", c.c_void_p),
        ("mask", c.c_void_p),
        ("nonnegative", c.c_int32),
        ("output_int16", c.c_void_p),
        ("output_int16_scale", c.c_double),
    ]


class RunInfo(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("offset", c.c_double),
        ("scale", c.c_double),
        ("noise", c.c_double),
        ("box_start", Triple),
        ("box_stop", Triple),
        ("tile", Triple),
        ("tiles", c.c_int64),
        ("tiles_run", c.c_int64),
        ("corrected", c.c_int32),
        ("chi2_before", c.c_double),
        ("chi2_after", c.c_double),
        ("outliers", c.c_double),
        ("background", c.c_int32),
        ("background_value", c.c_double),
        ("output_int16_scale", c.c_double),
        ("output_int16_clipped", c.c_int64),
    ]


INIT = {
    Engine: "engine_vtable",
    OpenOptions: "open_options",
    ModelInfo: "model_info",
    PlanOptions: "plan_options",
    Geometry: "geometry",
    RunOptions: "run_options",
    RunInfo: "run_info",
}


class Failed(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Result:
    data: np.ndarray
    affine: np.ndarray
    info: RunInfo
    geometry: Geometry
    spread: np.ndarray | None


class Library:
    """The shared library; every call raises `Failed` with the status and text of an error."""

    def __init__(self, path: Path) -> None:
        self.c = c.CDLL(str(path))
        for name in (
            "mrisr_version",
            "mrisr_build_info",
            "mrisr_builtin_engine",
            "mrisr_last_error",
            "mrisr_status_name",
        ):
            getattr(self.c, name).restype = c.c_char_p
        self.c.mrisr_close.argtypes = self.c.mrisr_job_close.argtypes = [c.c_void_p]
        self.c.mrisr_close.restype = self.c.mrisr_job_close.restype = None

    def made(self, kind, **members):
        made = kind()
        getattr(self.c, f"mrisr_{INIT[kind]}_init")(c.byref(made), c.c_size_t(c.sizeof(kind)))
        for name, value in members.items():
            setattr(made, name, value)
        return made

    def call(self, name: str, *arguments) -> None:
        status = getattr(self.c, name)(*arguments)
        if status != OK:
            raise Failed(status, self.c.mrisr_last_error().decode())

    def open(self, bundle, **options) -> c.c_void_p:
        model = c.c_void_p()
        self.call("mrisr_open", str(bundle).encode(), c.byref(self.made(OpenOptions, **options)), c.byref(model))
        return model

    def plan(self, model, shape, affine=None, *, psf=None, mode=None, consistency="auto", engine=None, **options):
        """options: members of mrisr_plan_options; one number stands for three. float32 unless another is stated."""
        how = self.made(PlanOptions, shape=Triple(*shape), threads=1, precision=PRECISION["float32"])
        how.mode, how.consistency = MODES[mode], CONSISTENCY[consistency]
        if affine is not None:
            how.affine[:] = np.asarray(affine, np.float64).ravel().tolist()
        for name in ("voxel_size", "factor", "tile"):
            value = options.pop(name, None)
            if value is not None:
                getattr(how, name)[:] = [value] * 3 if np.isscalar(value) else list(value)
        if psf is not None:
            how.psf_stated = 1
            for axis, entry in enumerate(psf):
                entry = AxisPSF(*entry) if isinstance(entry, tuple) else entry
                how.psf[axis] = AxisPsf(KINDS.index(entry.kind), WINDOWS.index(entry.window), entry.width)
        if engine is not None:
            how.engine = c.pointer(engine)
        for name, value in options.items():
            setattr(how, name, value)
        job = c.c_void_p()
        self.call("mrisr_plan", model, c.byref(how), c.byref(job))
        return job

    def geometry(self, job) -> Geometry:
        found = self.made(Geometry)
        self.call("mrisr_job_geometry", job, c.byref(found))
        return found

    def run(self, job, data: np.ndarray, *, seed=0, spread=False, **options) -> Result:
        geometry = self.geometry(job)
        out = np.full(tuple(geometry.shape), np.nan, np.float32)
        std = np.full_like(out, np.nan) if spread else None
        info = self.made(RunInfo)
        how = self.made(RunOptions, input=data.ctypes.data, output=out.ctypes.data, seed=seed, **options)
        how.input_element = {"float32": 0, "int16": 1}[data.dtype.name]
        how.input_stride = Triple(*(s // data.itemsize for s in data.strides))
        how.spread = None if std is None else std.ctypes.data
        self.call("mrisr_run", job, c.byref(how), c.byref(info))
        return Result(out, np.array(geometry.affine).reshape(4, 4), info, geometry, std)

    def upscale(self, model, data: np.ndarray, affine=None, *, seed=0, spread=False, **options) -> Result:
        job = self.plan(model, data.shape, affine, **options)
        try:
            return self.run(job, data, seed=seed, spread=spread)
        finally:
            self.c.mrisr_job_close(job)
