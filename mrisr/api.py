"""`mrisr.upscale`: a scan of any kind in, the same kind out."""

from __future__ import annotations

import numbers
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mrisr import grid as grids
from mrisr.adapt.options import Adaptation, check_options
from mrisr.corrections import corrections, read_mask
from mrisr.errors import CATCHING, MrisrWarning, UsageError, excerpt
from mrisr.infer.engines.precision import asked_for
from mrisr.infer.engines.select import check_fork
from mrisr.infer.facts import MIRRORINGS, Geometry, Options
from mrisr.infer.fade import ENDS
from mrisr.infer.join.together import Together
from mrisr.infer.networks import network_for
from mrisr.infer.progress import Report, reporting
from mrisr.infer.run import Scan, upscale_volume
from mrisr.io import several as several_scans
from mrisr.io.adapters import to_volume
from mrisr.io.kinds import check_kind
from mrisr.models import model_for, remember_model
from mrisr.weights import registry

CONSISTENCY = ("auto", "on", "off")
MOST_STEPS, MOST_SAMPLES = 1000, 10_000  # beyond, nothing is gained: a slip of the finger


def upscale(
    volume: Any,
    *,
    voxel_size: float | Sequence[float] | None = None,
    factor: float | Sequence[float] | None = None,
    affine: Any = None,
    input_voxel_size: float | Sequence[float] | None = None,
    series: int | str | None = None,
    group: int | str | None = None,
    reference: int = 0,
    register: bool = True,
    force: bool = False,
    device: str = "auto",
    model: Any = "base",
    adapt: float | None = None,
    keep_adapted: str | os.PathLike | None = None,
    mode: str | None = None,
    steps: int = 1,
    samples: int = 1,
    seed: int = 0,
    ensemble: int = 1,
    denoise: float = 0.0,
    psf: Any = "auto",
    gradnl: Any = None,
    gradnl_done: str = "auto",
    slice_axis: int = 2,
    bias: Any = None,
    bias_out: str = "corrected",
    consistency: str | bool = "auto",
    mask: Any = None,
    nonnegative: bool = False,
    ends: str = "fade",
    memory: str | int | None = None,
    tile: int | Sequence[int] | str | None = None,
    engine: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    progress: bool | Callable[[str, float], None] | None = None,
    return_info: bool = False,
):
    """Bring a brain MRI scan onto a finer grid with the same centre, axes and field of view.

    Research software, not a medical device: detail above the acquired resolution is synthesised
    (`info.resolution` says which band).

    Args:
        volume: a path (.nii, .nii.gz, .hdr/.img, .mgz; or DICOM: a file, folder, DICOMDIR or zip), a nibabel image, a
            NumPy array or torch tensor [X, Y, Z] or [X, Y, Z, T], or a `mrisr.Volume`. In 4D each frame is handled on
            its own. Or a list of scans of one head in one contrast, such as stacks of slices in three orientations,
            which know their place (no bare arrays): they are joined into one result. A list of one is that one.
        voxel_size: of the output, mm, one number or three (one per stored axis). None: per axis the smaller of 0.7 mm
            and the scan's own voxel, so that nothing is lost that the scan has.
        factor: how many times finer than the input, one number or three; in place of `voxel_size`.
        affine, input_voxel_size: of an array or tensor: (4, 4) index -> mm, or mm per axis. Without both, 1
            mm is assumed with a warning.
        series: of a DICOM source that holds several: SeriesNumber, SeriesInstanceUID or (part of) the description. The
            refusal lists them.
        group: of a DICOM series that holds several volumes (echoes, magnitude and field map, time points): its number
            in the list that the refusal prints, or words of its entry.
        reference: of several scans, the number of that (from 0) whose orientation, field of view and intensity units
            the result has, and whose grid `voxel_size`, `factor` and `mask` are of.
        register: whether the head is looked for in each of several scans (rigid, by SimpleITK); False: the headers say
            where it is.
        force: join scans that do not fit, too (overlap, correlation, frame of reference), with a warning.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        model: a shipped name, a path to .safetensors or of a bundle (`mrisr export`), or what `mrisr.load_model`
            returned. Of a name that has several networks the one for the scan's acquisition runs (`info.network`);
            where several scans are joined, the general one.
        adapt: seconds (1 to 3600), or None: before it answers, let the network learn from the scan's own sharp planes;
            of thick slices only (docs/adapt.md). From 180 s on it is always the same 450 steps, and with less 2.5
            steps for each second, so that the result is the same on a faster machine; where the seconds run out before
            the steps, a warning says that it depends on the clock. Where planes that are not learnt from gain nothing,
            the answer is that of `model`, with a warning. `info.adapt` tells.
        keep_adapted: a .safetensors file for the weights that have learnt, to be given as `model` for other scans of
            the session in the same contrast. Of the scan it holds nothing but voxel sizes.
        mode: "mean" (the faithful picture, bit-equal for every seed), "sample" (realistic texture, noise
            included), or None: "mean", but "sample" where `steps` or `samples` is above 1.
        steps: network evaluations per sample, at most 1000.
        samples: number of samples, at most 10 000. The result is their mean, and `info.std` their voxel-wise standard
            deviation (n - 1), in input intensity units, as a `Volume` on the target grid; `info.std_scale` has the
            factors that make intervals of it.
        seed: of the samples; a sample depends on (seed, voxel index) only, not on tiles or device. And of `adapt`.
        ensemble: 1, or 2, 4 or 8: in mode "mean", average that many mirrorings of the scan (none; and all three axes;
            or every two; or all eight), mirrored back. As many times the work, for a somewhat better mean.
        denoise: how much of the noise is taken out of what was measured, 0 to 1. 0: what was measured stays as it is,
            noise included. 1: of the scan stands what is signal by the network's answer (a Wiener filter, twice, with
            that answer as its first pilot, `mrisr.physics.wiener`), in air plain interpolation; of weights that have
            not learnt to leave noise out ("2d" and "3d" of base) the scan is its own pilot, which takes less. In mode
            "sample", and where gradient nonlinearity is corrected, the network's answer alone, of weights that have.
            Across thick slices no band is exact, and the network's answer is an estimate without noise; at 0 what the
            scan holds beyond it goes back, noise included (`info.back_projection`).
        psf: how the scan was acquired: "auto" (by the header; else by the shape of the voxels and the spectrum, which
            shows where a scanner stored smaller voxels than it measured, and the profile of thick slices), one kind for
            all axes, or three entries (one per stored axis), each a kind ("kspace", "gaussian", "supergaussian",
            "unknown"), a pair (kind, acquired width in mm), or an `mrisr.physics.psf.AxisPSF`.
        gradnl: gradient nonlinearity to undo, in the same interpolation as the change of grid: a path of Siemens
            coefficients (.grad; a .coef by `mrisr.physics.coils.read`, with its radius), a displacement field [X, Y,
            Z, 3] in mm along R, A and S (a path, a nibabel image or a Volume; what is at x the scan shows at x +
            field(x); its grid has to cover the scan's), or a `mrisr.physics.gradnl.Distortion`.
        gradnl_done: what the scanner has corrected already: "none", "2D" (within slices), "3D" (nothing is left to
            do), or "auto": from ImageType.
        slice_axis: stored axis across slices, for "2D".
        bias: bias field to take out: "auto" (estimated by N4, which needs SimpleITK), or a field on the scan's grid (a
            path, a nibabel image, a Volume, an array or a tensor [X, Y, Z]).
        bias_out: "corrected", or "kept": the result is multiplied by the field again.
        consistency: "on" (or True) corrects the result so that it explains the input to within its noise,
            "off" (or False) does not, "auto" does where the point spread is stated. "off" also leaves out what slices
            hold beyond the network's answer, which else goes back onto it (`info.back_projection`).
        mask: of the head, on the scan's grid (a path, a nibabel image, a Volume, an array or a tensor [X, Y, Z]):
            outside of it the result is 0, or what the scan's own background is. None: a background that has been
            masked already (exact zeros, or one value all around) is found, and kept exactly.
        nonnegative: whether values below 0, which every interpolation makes beside sharp edges, are set to 0.
        ends: what stands beyond the centres of the first and the last slice, where nothing was measured: "fade" (plain
            interpolation, into which the network's answer fades), "crop" (nothing: the result ends there), or "full"
            (the network's answer, which is wrong there more often than not).
        memory: a budget that is kept: "2GB", "512MB" or bytes. On a CPU it is the process's resident memory,
            what it holds already included; on a GPU it is device memory. None: 60 % of what is free
            (in the process's control group), divided by MRISR_WORKERS.
        tile: None (the whole head in one piece where the budget allows; else, with engine="auto" on a CPU, "exact"
            where its maps fit; else overlapping blended tiles), a size in output voxels, or "exact": the same result as
            in one piece in a fraction of its memory, by the PyTorch
            engine layer by layer, with the largest maps in a file in TMPDIR where the budget is too small for them.
        engine: "auto", "torch", "openvino", "tensorrt" (of a bundle with a plan). One asked for by name never falls
            back to another.
        threads: CPU threads (None: `OMP_NUM_THREADS`, else every core this process may use).
        precision: what the network computes in: "float32", "bfloat16", or "auto": bfloat16 on a processor that has it
            (AMX-BF16 or AVX512-BF16, as it states itself) where a fixed tile agrees with float32, else float32. Sums,
            statistics and the result are float32. MRISR_PRECISION says what "auto" stands for. `info.engine` tells.
        progress: a callback(stage, fraction), or True for a bar when stderr is a terminal. A callback with an attribute
            `frame` is also told every finished frame of a 4D scan: frame(index, voxels, affine).
        return_info: also return a `mrisr.infer.info.Info`.

    Returns:
        The result, of the kind that came in (a path gives a nibabel image), float32; with `return_info` the
        pair (result, info).

    Raises:
        UsageError: a wrong argument.
        InputError, GeometryError: a scan that cannot be used, that does not fit those it is to be joined with, or from
            which there is nothing to learn (adapt).
        OutputError: keep_adapted cannot be written there.
        MemoryBudgetError: the budget is too small (the message names the smallest that works).
        ModelError: no such model.
        BackendError: the device, engine or precision cannot be had, or the process was forked from one that has used
            mrisr.
    """
    check_fork()
    asked_for(precision)
    mode = choose_mode(mode, steps, samples)
    adaptation = Adaptation.of(adapt, keep_adapted)
    if adaptation is not None:
        check_options(mode, steps, samples, denoise, engine)
    how = dict(
        device=device,
        engine=engine,
        threads=threads,
        precision=precision,
        mode=mode,
        steps=steps,
        samples=samples,
        seed=_whole("seed", seed, 0),
        ensemble=_ensemble(ensemble, mode),
        denoise=_share("denoise", denoise),
        psf=psf,
        consistency=_consistency(consistency),
        ends=_one_of("ends", ends, ENDS),
        nonnegative=_flag("nonnegative", nonnegative),
        memory=memory,
        tile=tile,
    )
    several = several_scans.listed(volume if isinstance(volume, (list, tuple)) else [volume], reference)
    together = Together(int(reference), _flag("register", register), _flag("force", force))
    grid = dict(voxel_size=voxel_size, factor=factor)
    if len(several) > 1:
        _refuse_of_one(affine, input_voxel_size, gradnl, bias)
        if adaptation is not None:
            raise UsageError(
                "adapt: is of one scan, and several are joined, which show each other what they are blind to; adapt to "
                "one of them, keep the weights (keep_adapted), and give them as model"
            )
        from mrisr.infer.join import run as joining

        joining.check_options(Options(**how))
        with reporting(progress) as report:
            pair = _join(several, (series, group), grid, mask, model, Options(**how), together, report)
        return pair if return_info else pair[0]
    volume = several[0]
    with reporting(progress) as report:
        if adaptation is not None:  # what cannot learn is refused before anything is read
            with report.stage("load model"):
                from mrisr.adapt.plan import check_learner

                model = _network(model)
                check_learner(model, device, precision, adaptation.keep is not None)
        with report.stage("read"), _warnings_as_texts() as messages:
            source, restore = to_volume(volume, affine, input_voxel_size, series, group)
            check_kind(source)
            target = grids.plan(source.grid, **grid)
            if voxel_size is None and factor is None and target == source.grid:
                _warn_of_own_grid(source)
            correction_options = dict(done=gradnl_done, slice_axis=slice_axis, bias_out=bias_out)
            head = None if mask is None else read_mask(mask, source)
            scan = Scan(source, corrections(source, gradnl, bias, **correction_options), head)
            geometry = Geometry.of(source, target, psf)
        with report.stage("load model"):
            network = model_for(model, network_for(geometry, scan.corrections, Options(**how)))
        if adaptation is None:
            how["holds_frames"] = not report.keeps_frames
            result, info = upscale_volume(scan, target, network, Options(**how), report, geometry=geometry)
            remember_model(model, network, info)
        else:
            from mrisr.adapt.run import upscale_adapted

            result, info = upscale_adapted(scan, target, network, Options(**how), adaptation, report)
        info.warnings[:0] = messages
        output = restore(result)
    return (output, info) if return_info else output


def _network(model: Any) -> Any:
    return model if hasattr(model, "denoiser") else registry.load(model)


def _join(several, selection, grid, mask, model, options: Options, how: Together, report: Report) -> tuple[Any, Any]:
    """(result, info) of several scans."""
    with report.stage("read"), _warnings_as_texts() as messages:
        volumes, restore = several_scans.read(several, how.reference, *selection, force=how.force)
        reference = volumes[how.reference]
        target = grids.plan(reference.grid, **grid)
        head = None if mask is None else read_mask(mask, reference)
    with report.stage("load model"):
        network = _network(model)
    from mrisr.infer.join import run as joining

    result, info = joining.join_volumes(volumes, target, network, options, how, report, head)
    info.warnings[:0] = messages
    return restore(result), info


def _refuse_of_one(affine: Any, input_voxel_size: Any, gradnl: Any, bias: Any) -> None:
    """What holds for one scan only."""
    for name, value in (("affine", affine), ("input_voxel_size", input_voxel_size)):
        if value is not None:
            raise UsageError(f"{name}: is of one scan, and several are joined; give each its own (mrisr.Volume)")
    for name, value in (("gradnl", gradnl), ("bias", bias)):
        if value is not None:
            raise UsageError(f"{name}: is of one scan, and several are joined; correct each first (mrisr correct)")


def choose_mode(mode: str | None, steps: int, samples: int) -> str:
    """ "mean" or "sample" from the arguments. Raises UsageError where they contradict."""
    several = _whole("steps", steps, 1, MOST_STEPS) > 1
    several |= _whole("samples", samples, 1, MOST_SAMPLES) > 1
    if mode is None:
        return "sample" if several else "mean"
    if mode not in ("mean", "sample"):
        raise UsageError(f'mode: expected "mean", "sample" or None, found {mode!r}')
    if mode == "mean" and several:
        raise UsageError(
            f'mode: "mean" is one noiseless step, found steps={steps} and samples={samples}; '
            'leave steps and samples at 1, or ask for mode="sample"'
        )
    return mode


def _ensemble(count: int, mode: str) -> int:
    if isinstance(count, bool) or count not in MIRRORINGS:
        raise UsageError(f"ensemble: expected one of {', '.join(map(str, MIRRORINGS))}, found {count!r}")
    if count > 1 and mode == "sample":
        raise UsageError(
            f'ensemble: {count} mirrorings are averaged in mode "mean" only, which is one step and one sample; an '
            "average of samples loses the texture that they are drawn for (for their mean, ask for samples=K)"
        )
    return int(count)


@contextmanager
def _warnings_as_texts() -> Iterator[list[str]]:
    """Collect the texts of the MrisrWarnings that this thread gives inside, and pass every warning on.

    One thread at a time: what catches warnings belongs to the process (as does nibabel's logger, which reading swaps).
    What other threads say meanwhile goes where it would have gone.
    """
    texts: list[str] = []
    records: list[tuple] = []
    mine, before = threading.get_ident(), warnings.showwarning

    def keep(message, category, filename, lineno, file=None, line=None) -> None:
        if threading.get_ident() == mine:
            records.append((message, category, filename, lineno))
        else:
            before(message, category, filename, lineno, file, line)

    with CATCHING, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = keep
        yield texts
    for message, category, filename, lineno in records:
        if issubclass(category, MrisrWarning):
            texts.append(str(message))
        warnings.warn_explicit(message, category, filename, lineno)


def _warn_of_own_grid(source) -> None:
    sizes = " x ".join(f"{v:.3g}" for v in source.voxel_size)
    warnings.warn(
        f"{source.name}: {sizes} mm is {grids.DEFAULT_VOXEL_SIZE:g} mm or finer along every axis already: the scan "
        "keeps its grid, and hardly anything is gained; ask for a smaller voxel_size, or for factor",
        MrisrWarning,
        stacklevel=3,
    )


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    return value


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: expected True or False, found {value!r}")
    return value


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise UsageError(f"{name}: expected a number from 0 to 1, found {value!r}")
    return float(value)


def _whole(name: str, value: int, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise UsageError(f"{name}: expected a whole number of at least {least}, found {excerpt(value)}")
    if most is not None and value > most:
        raise UsageError(f"{name}: expected at most {most}, found {excerpt(value)}")
    return int(value)


def _consistency(value: str | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value not in CONSISTENCY:
        raise UsageError(f"consistency: expected one of {', '.join(CONSISTENCY)}, True or False, found {value!r}")
    return value
