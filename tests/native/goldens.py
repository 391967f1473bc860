"""Write the cases of every SPEC with a native backend as files that the C++ tests read.

    python tests/native/goldens.py FOLDER      writes FOLDER/FAMILY.golden

The arguments are float32, the expected values float64, from the SPEC's reference. Files are made when tests run and are
never committed. Format, little-endian (tests/native/golden.h reads it):

    file   "MRGOLD1\\0"  u32 cases  case*
    case   text name  f64 tolerance  f64 gradient tolerance  u32 items  item*
    item   text key  u8 kind (0 float32, 1 float64, 2 int64, 3 uint8, 4 text)  u32 rank  i64 size[rank]
           i64 stride[rank] (elements)  i64 bytes  data in memory order
    text   u32 bytes  data

An argument that is None has no item; a list of tensors NAME has items NAME.0, NAME.1, ...; "expected" is the result,
"upstream" the gradient given to it (see tests.ops.parity.derivatives), "d.NAME" the gradients that must come back.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.ops import parity
from tests.ops.cases import SPECS
from tests.ops.cases.spec import Spec

KINDS = {torch.float32: 0, torch.float64: 1, torch.int64: 2, torch.uint8: 3}
TEXT = 4


def families() -> dict[str, Spec]:
    """The SPECs that the native core has to keep."""
    return {name: spec for name, spec in SPECS.items() if "native" in [b.name for b in spec.family.backends]}


def write(spec: Spec, path: Path) -> None:
    """All cases of one family."""
    cases = [_case(spec, name) for name in spec.cases]
    path.write_bytes(b"MRGOLD1\0" + struct.pack("<I", len(cases)) + b"".join(cases))


def _case(spec: Spec, name: str) -> bytes:
    args = {k: v for k, v in parity.arguments(spec, name, torch.float32).items() if k != "device"}
    found = {**args, "expected": parity.oracle(spec, args).contiguous()}
    if spec.gradients:
        wide = parity.cast(args, torch.float64)
        gradients = parity.derivatives(spec.reference, spec, wide)
        found |= {f"d.{key}": value.contiguous() for key, value in gradients.items()}
        found["upstream"] = parity.upstream(found["expected"]).float()
    items = [_item(key, value) for key, given in found.items() for key, value in _flat(key, given)]
    tolerances = struct.pack("<dd", spec.tolerance[torch.float32], parity.GRADIENT_TOLERANCE)
    return _text(name) + tolerances + struct.pack("<I", len(items)) + b"".join(items)


def _flat(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Lists of tensors one by one, numbers as tensors; None is left out."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        for index, part in enumerate(value):
            yield f"{key}.{index}", part
    elif isinstance(value, (str, torch.Tensor)):
        yield key, value
    elif isinstance(value, float):
        yield key, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, int):  # bool too; seeds up to 2**64 - 1 are stored by their bits
        yield key, torch.tensor(value - 2**64 if value >= 2**63 else value, dtype=torch.int64)
    elif isinstance(value, (list, tuple)):
        yield key, torch.tensor(list(map(int, value)), dtype=torch.int64)
    elif value is not None:
        raise TypeError(f"goldens: argument {key} is a {type(value).__name__}; add it to goldens.py and golden.h")


def _item(key: str, value: str | torch.Tensor) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<BIq", TEXT, 0, len(value.encode())) + value.encode()
    value = value.detach()
    value = value.to(torch.uint8) if value.dtype == torch.bool else value
    if not torch.ops.aten.is_non_overlapping_and_dense(value):
        value = value.contiguous()
    data = value.as_strided((value.numel(),), (1,)).numpy().tobytes()
    dims = [*value.shape, *value.stride()]
    header = struct.pack(f"<BI{len(dims)}qq", KINDS[value.dtype], value.ndim, *dims, len(data))
    return _text(key) + header + data


def _text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.golden"):
        stale.unlink()
    for name, spec in families().items():
        write(spec, folder / f"{name}.golden")
        print(f"{name}: {len(spec.cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
