"""Images of the MRD stream (ISMRMRD) -> Volume, and a result -> images.

The MRD standard places an image by its *centre* (`position`, LPS, mm) and the directions of its three axes; the
field of view is the length of each axis with its outer voxels whole. Some converters write the corner of DICOM
there: such files are shifted, and nothing in them says so.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mrisr.errors import CATCHING, GeometryError, InputError, because
from mrisr.grid import Grid
from mrisr.volume import Volume

__all__ = ["IMAGE_HEADER_BYTES", "MrdImage", "Stack", "facts", "header_of", "load_ismrmrd", "stacks", "to_images"]

IMAGE_HEADER_BYTES = 198
DTYPES = {1: np.uint16, 2: np.int16, 3: np.uint32, 4: np.int32, 5: np.float32, 6: np.float64}
COMPLEX = (7, 8)
USHORT, SHORT, FLOAT = 1, 2, 5
MAGNITUDE = (0, 1)  # 0: not stated
COUNTERS = ("average", "contrast", "phase", "repetition", "set")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Headers hold float32: directions miss unit length and right angles by rounding, positions by micrometres.
NOT_A_DIRECTION = 1e-3
UNEVEN = 0.02  # of the distance of slices, as for DICOM
SAME_PLACE = 1e-3  # mm
NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


def load_ismrmrd() -> Any:
    """The ismrmrd package, or an InputError that says how to get it."""
    loaded = sys.modules.get("ismrmrd")
    if loaded is not None:  # connections ask at once, and filters of warnings are of the whole process
        return loaded
    try:
        with CATCHING, warnings.catch_warnings():  # importing it resets the filters of the whole program
            import ismrmrd
    except ImportError as error:
        raise InputError("the MRD stream needs ismrmrd; install it with: pip install '.[mrd]'") from error
    return ismrmrd


def header_of(raw: bytes) -> Any:
    """An `ismrmrd.ImageHeader` of its 198 bytes, checked: InputError for sizes and types that cannot be."""
    header = load_ismrmrd().image.ImageHeader.from_buffer_copy(raw)
    if header.data_type in COMPLEX:
        raise InputError("MRD image: complex voxels; send the magnitude")
    if header.data_type not in DTYPES:
        raise InputError(f"MRD image: data type {header.data_type}; expected 1 to 6 (ushort to double)")
    if min(header.matrix_size) < 1:
        raise InputError(f"MRD image: matrix {' x '.join(map(str, header.matrix_size))}; expected voxels on every axis")
    if header.channels != 1:
        raise InputError(f"MRD image: {header.channels} channels; expected 1: combine the coils first")
    return header


@dataclass(frozen=True, eq=False)
class MrdImage:
    """One image as it came: header, attribute XML and voxels. What is sent back of it is the same bytes."""

    header: Any
    attributes: bytes
    data: bytes

    @property
    def nbytes(self) -> int:
        """Length of `data` that the header states."""
        return (
            int(np.prod([int(n) for n in self.header.matrix_size])) * np.dtype(DTYPES[self.header.data_type]).itemsize
        )

    def voxels(self) -> np.ndarray:
        """[x, y, z], a view of `data`."""
        shape = tuple(reversed([int(n) for n in self.header.matrix_size]))
        return np.frombuffer(self.data, np.dtype(DTYPES[self.header.data_type]).newbyteorder("<")).reshape(shape).T

    def frame(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(axes (3, 3), whose columns are the directions of x, y and z; centre; voxel size), LPS, mm."""
        h = self.header
        x, y, z = (np.array(d, np.float64) for d in (h.read_dir, h.phase_dir, h.slice_dir))
        if not z.any():
            z = np.cross(x, y)
        axes, centre = np.stack([x, y, z], axis=1), np.array(h.position, np.float64)
        size = np.array(h.field_of_view, np.float64) / np.array(h.matrix_size, np.float64)
        if not (np.isfinite(axes).all() and np.abs(axes.T @ axes - np.eye(3)).max() < NOT_A_DIRECTION):
            raise GeometryError(
                f"MRD image {h.image_index}: read, phase and slice directions are not at right angles and of length 1: "
                f"{np.array2string(axes.T, precision=4)}"
            )
        if not (np.isfinite(centre).all() and np.isfinite(size).all() and size.min() > 0):
            raise GeometryError(
                f"MRD image {h.image_index}: position {centre} or field of view {tuple(h.field_of_view)} mm; expected "
                "finite numbers, and lengths above 0"
            )
        return axes, centre, size


@dataclass(frozen=True, eq=False)
class Stack:
    """The images of one volume, in order along the slice direction (or one 3D image), and the volume."""

    images: tuple[MrdImage, ...]
    volume: Volume

    @property
    def first(self) -> Any:
        """The header that results inherit from."""
        return self.images[0].header

    @property
    def is_3d(self) -> bool:
        """Whether it came as one image of several partitions."""
        return len(self.images) == 1


def stacks(images: Iterable[MrdImage], meta: dict[str, Any] | None = None) -> list[Stack]:
    """The volumes of a stream: magnitude images by series, contrast, phase, repetition, set and average, each a
    stack of slices or one 3D image. What repeats a place without a counter of its own is a volume of its own.

    Images of another type (phase, real, imaginary) are left out. `meta`: facts of the XML header (`facts`).
    Raises InputError and GeometryError naming the series.
    """
    groups: dict[tuple, list[MrdImage]] = {}
    for image in images:
        h = image.header
        if h.image_type in MAGNITUDE:
            key = (h.image_series_index, *(getattr(h, name) for name in COUNTERS))
            groups.setdefault(key, []).append(image)
    volumes = []
    for key in sorted(groups):
        counted = [f"{name} {n}" for name, n in zip(COUNTERS, key[1:]) if n]
        name = ", ".join([f"MRD series {key[0]}", *counted])
        for one in _split_repeats(groups[key], name):
            volumes.append(_stack(one, name, dict(meta or {})))
    return volumes


def _split_repeats(images: list[MrdImage], name: str) -> list[list[MrdImage]]:
    """Every 3D image by itself; of slices that share a place, the first of each, the second of each, ..."""
    if any(image.header.matrix_size[2] > 1 for image in images):
        if any(image.header.matrix_size[2] == 1 for image in images):
            raise InputError(f"{name}: holds slices and 3D images; send them as series of their own")
        return [[image] for image in images]
    repeats: list[list[MrdImage]] = []
    count: dict[tuple, int] = {}
    for image in images:
        place = tuple(np.round(image.frame()[1] / SAME_PLACE))
        n = count[place] = count.get(place, 0) + 1
        if n > len(repeats):
            repeats.append([])
        repeats[n - 1].append(image)
    sizes = {len(one) for one in repeats}
    if len(sizes) > 1:
        counts = ", ".join(str(len(one)) for one in repeats)
        raise InputError(f"{name}: repeats of different length ({counts} slices): half a series; send it again")
    return repeats


def _stack(images: list[MrdImage], name: str, meta: dict[str, Any]) -> Stack:
    axes, centre, size = images[0].frame()
    shape = np.array(images[0].header.matrix_size, np.float64)
    if shape[2] == 1:
        images, centre, step = _in_order(images, axes, name)
        # As in DICOM: how thick a slice is, and how far apart slices are, are two things.
        meta["SliceThickness"] = float(size[2])
        axes = np.stack([axes[:, 0], axes[:, 1], step / np.linalg.norm(step)], axis=1)
        size = np.array([size[0], size[1], np.linalg.norm(step)])
        shape[2] = len(images)
    lps = np.eye(4)
    lps[:3, :3] = axes * size
    lps[:3, 3] = centre - lps[:3, :3] @ ((shape - 1) / 2)
    data = np.concatenate([image.voxels() for image in images], axis=2)
    return Stack(tuple(images), Volume(data, LPS_TO_RAS @ lps, name=name, meta=meta))


def _in_order(images: list[MrdImage], axes: np.ndarray, name: str) -> tuple[list[MrdImage], np.ndarray, np.ndarray]:
    """Slices sorted along the slice direction, the centre of all, and the step from one to the next (LPS, mm)."""
    if len(images) < 2:
        raise InputError(f"{name}: one slice; a single slice cannot be super-resolved, send the whole series")
    first = images[0].header
    for image in images:
        for field in ("matrix_size", "data_type"):
            own, other = (np.atleast_1d(np.array(getattr(h, field))) for h in (image.header, first))
            if not np.array_equal(own, other):
                raise InputError(f"{name}: slices differ in {field} ({own} and {other}); expected one series")
        own_axes, _, _ = image.frame()
        if np.abs(own_axes - axes).max() > NOT_A_DIRECTION:
            raise GeometryError(f"{name}: slices are not parallel; expected one stack of parallel slices")
        if not np.allclose(image.header.field_of_view, first.field_of_view, rtol=1e-4):
            raise GeometryError(f"{name}: slices differ in field of view; expected one series")
    images = sorted(images, key=lambda image: float(image.frame()[1] @ axes[:, 2]))
    places = np.array([image.frame()[1] for image in images])
    steps, mean = np.diff(places, axis=0), (places[-1] - places[0]) / (len(places) - 1)
    distance = float(np.linalg.norm(mean))
    apart = np.linalg.norm(steps - mean, axis=1)
    worst = int(apart.argmax())
    if apart[worst] > UNEVEN * distance:
        raise GeometryError(
            f"{name}: slices {worst} and {worst + 1} lie {np.linalg.norm(steps[worst]):.4g} mm apart, on average "
            f"{distance:.4g} mm: a slice is missing, send the series again"
        )
    if np.linalg.norm(mean / distance - axes[:, 2]) > 10 * NOT_A_DIRECTION:
        raise GeometryError(f"{name}: slices are shifted against each other; expected a stack along its normal")
    return images, places.mean(axis=0), mean


def facts(xml: bytes | str) -> dict[str, Any]:
    """What the XML header of a stream says of the scanner, as `Volume.meta`. InputError where it is no XML.

    Read by name and not by the schema, because vendors' headers do not all follow it.
    """
    text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else xml
    text = text.split("\0", 1)[0].strip()
    if "<!" in text.replace("<!--", ""):
        raise InputError("MRD header: holds a document type or entities; expected plain XML")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"MRD header: is no XML ({because(error)}); the scan is taken without it") from error
    table: dict[str, Any] = {}
    vendor = root.findtext(f"{NAMESPACE}acquisitionSystemInformation/{NAMESPACE}systemVendor")
    if vendor and vendor.strip():
        table["Manufacturer"] = vendor.strip()
    tesla = _number(root, "acquisitionSystemInformation/systemFieldStrength_T")
    if tesla is not None and 0 < tesla < 100:
        table["MagneticFieldStrength"] = tesla
    partitions = _number(root, "encoding/encodingLimits/kspace_encoding_step_2/maximum")
    if partitions is not None:
        table["MRAcquisitionType"] = "3D" if partitions > 0 else "2D"
    return table


def _number(root: ElementTree.Element, path: str) -> float | None:
    text = root.findtext("/".join(NAMESPACE + part for part in path.split("/")))
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def to_images(
    result: Volume, stack: Stack, series_index: int, attributes: dict[str, Any]
) -> tuple[list[MrdImage], int]:
    """A result as (images, number of voxels clipped to the integer type).

    Slices where there are as many as came; else one explicit volume, a 3D image, because the scanner has no slices of
    its own to go by. ushort and short stay what they are, all else is float.

    Args:
        result: on a grid with the axes of `stack.volume`.
        series_index: of the new series.
        attributes: of every image, beside the geometry, which is written here.
    """
    kind = stack.first.data_type if stack.first.data_type in (USHORT, SHORT) else FLOAT
    data, clipped = _as_type(result.data, DTYPES[kind])
    grid = result.grid
    if not stack.is_3d and data.shape[2] == len(stack.images):
        places = [(k, k + 1) for k in range(data.shape[2])]
    else:
        places = [(0, data.shape[2])]
    images = []
    for n, (low, high) in enumerate(places):
        like = stack.images[n if len(places) > 1 else 0].header
        header = _header(like, grid, low, high, kind, series_index, n)
        if len(places) > 1:
            header.field_of_view[2] = like.field_of_view[2]  # the thickness, which a gap makes less than the step
        meta = attributes | _counters(header, n, len(places), explicit=len(places) == 1)
        text = load_ismrmrd().Meta(meta).serialize().encode()
        header.attribute_string_len = len(text)
        images.append(MrdImage(header, text, data[:, :, low:high].T.tobytes()))
    return images, clipped


def _as_type(data: np.ndarray, dtype: type) -> tuple[np.ndarray, int]:
    if not np.issubdtype(dtype, np.integer):
        return data.astype(dtype), 0
    limits, rounded = np.iinfo(dtype), np.rint(data)
    clipped = int(((rounded < limits.min) | (rounded > limits.max)).sum())
    return np.clip(rounded, limits.min, limits.max).astype(dtype), clipped


def _header(like: Any, grid: Grid, low: int, high: int, kind: int, series: int, n: int) -> Any:
    header = type(like).from_buffer_copy(bytes(like))
    lps = LPS_TO_RAS @ grid.affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    shape = np.array([grid.shape[0], grid.shape[1], high - low])
    if shape.max() > 0xFFFF:
        raise InputError(
            f"MRD image: {' x '.join(map(str, shape))} voxels; the stream holds at most 65535 along an axis"
        )
    middle = np.array([(grid.shape[0] - 1) / 2, (grid.shape[1] - 1) / 2, (low + high - 1) / 2, 1.0])
    header.version, header.data_type, header.channels, header.image_type = 1, kind, 1, 1
    header.flags = 0
    _fill(header.matrix_size, [int(v) for v in shape])
    _fill(header.field_of_view, shape * size)
    _fill(header.position, (lps @ middle)[:3])
    for field, axis in ((header.read_dir, 0), (header.phase_dir, 1), (header.slice_dir, 2)):
        _fill(field, lps[:3, axis] / size[axis])
    header.image_series_index, header.image_index, header.slice = series, n + 1, n
    _fill(header.user_int, [0] * len(header.user_int))
    _fill(header.user_float, [0.0] * len(header.user_float))
    return header


def _fill(field: ctypes.Array, values: Sequence[float]) -> None:
    for i, value in enumerate(values):
        field[i] = value


def _counters(header: Any, n: int, count: int, explicit: bool) -> dict[str, Any]:
    """Geometry and counters as attributes: the names that scanners read, all saying what the header says."""
    slices = int(header.matrix_size[2]) if explicit else count

    def vector(field: ctypes.Array) -> list[str]:
        return [f"{float(v):.9f}" for v in field]

    return {
        "Keep_image_geometry": 0 if explicit else 1,
        "partition_count": 1,
        "slice_count": slices,
        "NumberOfSlices": slices,
        "ImagesInAcquisition": slices,
        "NumberInSeries": n + 1,
        **dict.fromkeys(("SliceNo", "IsmrmrdSliceNo", "AnatomicalSliceNo", "ChronSliceNo", "ProtocolSliceNumber"), n),
        **dict.fromkeys(("Actual3DImagePartNumber", "AnatomicalPartitionNo"), 0),
        "ImageRowDir": vector(header.read_dir),
        "ImageColumnDir": vector(header.phase_dir),
        "ImageSliceNormDir": vector(header.slice_dir),
        "SlicePosLightMarker": vector(header.position),
    }
