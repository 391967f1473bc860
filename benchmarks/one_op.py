"""One operator of ours at one shape, beside another commit: seconds, share of the floor and its ceilings, memory.

    python benchmarks/one_op.py --op group_norm --shape 1,64,96,96,96 [--dtype bfloat16] [--device cuda] [--base COMMIT]

Compared with float64 before it is timed. With --base each commit runs in turns, in processes of its own, with ceilings
measured there: the medians of the rounds are shown. For what it is worth beside PyTorch and others: ops.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from contest import Ceilings, Contest, draw, hold

MEANING = {  # operator -> what its --shape is
    "group_norm": "N,C,D,H,W",
    "rms_norm": "N,C,D,H,W",
    "attention3d": "N,D,H,W,3*heads*64",
    "noise": "D,H,W",
    "prefilter": "D,H,W",
    "axis_apply": "D,H,W",
    "sampler_step": "D,H,W",
    "gather": "D,H,W",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def contest_of(op: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Contest:
    """The operator on random data; what it has to give, and the bytes and FLOP that it cannot do without."""
    from mrisr import ops

    family = ops.families().get(op)
    if family is None:
        raise SystemExit(f"{op}: this commit has {', '.join(ops.families())}")
    call, expected, traffic, flop = BUILD[op](shape, dtype, device)
    able = [b.name for b in family.backends if b.name != "reference" and b.available() is None]
    return Contest(
        op,
        f"{','.join(map(str, shape))} {str(dtype).removeprefix('torch.')}",
        {name: partial(call, backend=name) for name in able},
        {},
        expected,
        tolerance=TOLERANCE[dtype],
        bytes_moved=traffic,
        flop=flop,
    )


def _maps(shape, dtype, device):
    """Channels-last maps with FiLM, and how many bytes they have."""
    x = draw(*shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    scale, shift = (0.1 * draw(shape[0], shape[1], device=device, seed=i) for i in (3, 4))
    return x, scale, shift, x.numel() * x.element_size()


def group_norm(shape, dtype, device):
    from mrisr.ops import group_norm as family

    x, scale, shift, size = _maps(shape, dtype, device)
    weight, bias = 1 + 0.1 * draw(shape[1], device=device, seed=1), draw(shape[1], device=device, seed=2)
    groups = shape[1] // 8

    def plain(x, weight, bias, scale, shift):
        h = torch.nn.functional.group_norm(x, groups, weight, bias)
        return torch.nn.functional.silu(h * (1 + scale)[:, :, None, None, None] + shift[:, :, None, None, None])

    wide = (t.double().cpu().contiguous() for t in (x, weight, bias, scale, shift))
    call = partial(family.group_norm, x, groups, weight, bias, scale=scale, shift=shift, act="silu")
    return call, plain(*wide), 3 * size, 0


def rms_norm(shape, dtype, device):
    from mrisr.ops import rms_norm as family

    x, scale, shift, size = _maps(shape, dtype, device)
    x64, scale64, shift64 = (t.double().cpu() for t in (x, scale, shift))
    h = x64 * torch.rsqrt(x64.square().mean(1, keepdim=True) + family.EPS)
    expected = torch.nn.functional.silu(h * (1 + scale64)[:, :, None, None, None] + shift64[:, :, None, None, None])
    return partial(family.rms_norm, x, scale, shift, act="silu"), expected, 2 * size, 0


def attention3d(shape, dtype, device):
    from mrisr.ops import attention3d as family

    heads = shape[-1] // 192
    qkv = draw(*shape, device=device).to(dtype)
    size, tokens = qkv.numel() * qkv.element_size(), qkv[..., 0].numel()
    expected = family.reference(qkv.double().cpu(), heads, shift=0)
    call = torch.no_grad()(partial(family.attention3d, qkv, heads, shift=0))
    return call, expected, size + size // 3, 4 * tokens * 8**3 * heads * 64


def noise(shape, dtype, device):
    from mrisr.ops import noise as family

    box = (list(shape), [0, 0, 0], list(shape), 1, 0, 0)
    expected = family.reference(*box, torch.device("cpu"), torch.float64)
    return partial(family.normal_noise, tuple(shape), seed=1, device=device), expected, 4 * expected.numel(), 0


def prefilter(shape, dtype, device):
    from mrisr.ops.resample.prefilter import halo, reference
    from mrisr.ops.resample.prefilter import prefilter as public

    x, h = draw(*shape, device=device).to(dtype), halo(5)

    def inner(out: torch.Tensor) -> torch.Tensor:
        """Without the coefficients beyond the ends, which not every backend makes."""
        return out if out.shape == x.shape else out[h:-h, h:-h, h:-h]

    def call(backend: str) -> torch.Tensor:
        return inner(public(x, 5, "mirror", backend=backend))

    return call, inner(reference(x.double().cpu(), 5, "mirror")), 2 * x.numel() * x.element_size(), 0


def axis_apply(shape, dtype, device):
    from mrisr.ops.resample import interpolation_matrix
    from mrisr.ops.resample.axes import axis_apply as public
    from mrisr.ops.resample.axes import reference

    x, wide = draw(*shape, device=device).to(dtype), round(shape[0] / 0.7)
    matrix = torch.as_tensor(interpolation_matrix(shape[0], wide, 0.7).copy(), device=device)
    taps = int((matrix.abs() > 1e-9 * matrix.abs().amax(1, keepdim=True)).sum())
    plane = shape[1] * shape[2]
    traffic = x.element_size() * plane * (shape[0] + wide)
    return partial(public, x, matrix, 0), reference(x.double().cpu(), matrix.cpu(), 0), traffic, 2 * taps * plane


def sampler_step(shape, dtype, device):
    from mrisr.ops import sampling as family

    x, f, before = (draw(*shape, device=device, seed=i).to(dtype) for i in range(3))
    table, clock = draw(4, family.COLUMNS, device=device, seed=3), family.clocks(4, seed=5, device=device)[2]
    wide = (t.double().cpu() for t in (x, f, before, table))
    expected = family.reference(*wide, clock.cpu(), -1.0, 1.0, False)[0]

    def call(backend):
        return family.sampler_step(x, f, table, clock, before=before, clamp=(-1.0, 1.0), noise=False, backend=backend)[
            0
        ]

    return call, expected, 5 * x.numel() * x.element_size(), 0


def gather(shape, dtype, device):
    from mrisr.ops.tiles import gather as public
    from mrisr.ops.tiles import reference_gather

    volume, inner = draw(*shape, device=device).to(dtype), [max(1, n - 4) for n in shape]
    origin = [-4, 2, 4]
    expected = reference_gather(volume.double().cpu(), origin, inner)
    return partial(public, volume, origin, inner), expected, 2 * expected.numel() * volume.element_size(), 0


BUILD: dict[str, Callable] = {
    "group_norm": group_norm,
    "rms_norm": rms_norm,
    "attention3d": attention3d,
    "noise": noise,
    "prefilter": prefilter,
    "axis_apply": axis_apply,
    "sampler_step": sampler_step,
    "gather": gather,
}


def child(args: argparse.Namespace) -> dict:
    """Compared and timed in this process, with the ceilings of this process."""
    import versus

    versus.own(args.root)
    one = contest_of(args.op, args.shape, DTYPES[args.dtype], args.device)
    ceilings = Ceilings.measured(args.device, args.quick)
    row = hold(one, args.device, ceilings, 0.01 if args.quick else 1.0)
    memory = _extra_bytes(one.ours[row["best"]], args.device) if "best" in row else None
    ceilings_here = {"copy_gb_per_s": ceilings.copy / 1e9, "matmul_gflop_per_s": ceilings.matmul / 1e9}
    return {**row, "bytes_moved": one.bytes_moved, "flop": one.flop, "memory_bytes": memory, "ceilings": ceilings_here}


def _extra_bytes(call: Callable, device: str) -> int | None:
    """What a call holds at most beyond what was there before, its result included; None where that is not known."""
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status(status, "VmRSS")
    call()
    return max(0, _status(status, "VmHWM") - before)


def _status(path: Path, name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", path.read_text())[1])


def measure(args: argparse.Namespace) -> dict:
    """{"rows": one per commit}; RuntimeError where a process fails."""
    import record
    import versus

    words = ["--op", args.op, "--shape", ",".join(map(str, args.shape)), "--dtype", args.dtype]
    words += ["--device", args.device, *(["--quick"] if args.quick else [])]

    def run(root: Path) -> dict:
        return versus.run(root, __file__, *words)

    if not args.base:
        rounds = versus.in_turns({"this": record.ROOT}, run, args.rounds)
        return {"rows": [_row(rounds["this"], "this checkout")]}
    with versus.checkout_of(args.base) as there:
        rounds = versus.in_turns({"this": record.ROOT, "base": there}, run, args.rounds)
    names = {"this": "this checkout", "base": versus.commit_of(args.base)[:12]}
    return {"rows": [_row(runs, names[name]) for name, runs in rounds.items()]}


def _row(runs: list[dict], commit: str) -> dict:
    """The medians of several runs of one commit."""
    wrong = next((run for run in runs if "best" not in run), None)
    if wrong is not None:
        return {"commit": commit, **wrong}
    middle = {name: median(run["seconds"][name] for run in runs) for name in runs[0]["seconds"]}
    best = min(middle, key=middle.get)
    floor = median(run["floor_s"] for run in runs)
    ceilings = {name: median(run["ceilings"][name] for run in runs) for name in runs[0]["ceilings"]}
    columns = {"seconds": middle, "best": best, "floor_s": floor, "ceilings": ceilings}
    rounds = [run["seconds"][best] for run in runs]
    return {
        "commit": commit,
        **runs[0],
        **columns,
        "share_of_floor": round(floor / middle[best], 3),
        "rounds_s": rounds,
    }


def table(content: dict) -> str:
    """A line per commit, and what it was held against."""
    lines = []
    for row in content["rows"]:
        if "best" not in row:
            why = "; ".join(row["failures"]) or str(row["absent"])
            lines.append(f"{row['commit']:<14} {row['family']} {row['case']}: no speed: {why}")
            continue
        memory = "unknown" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.0f} MB"
        ceilings, rounds = row["ceilings"], ", ".join(f"{s * 1e3:.3f}" for s in row["rounds_s"])
        lines += [
            f"{row['commit']:<14} {row['family']} {row['case']}: {row['seconds'][row['best']] * 1e3:.3f} ms "
            f"({row['best']}), {row['share_of_floor']:.1%} of the floor, {memory} more at most, "
            f"off by {row['errors'][row['best']]:.1e}",
            f"{'':<14} floor {row['floor_s'] * 1e3:.3f} ms: {row['bytes_moved'] / 1e6:.1f} MB at a copy's "
            f"{ceilings['copy_gb_per_s']:.1f} GB/s, {row['flop'] / 1e9:.2f} GFLOP at a float32 product's "
            f"{ceilings['matmul_gflop_per_s']:.0f} GFLOP/s; rounds {rounds} ms",
        ]
    timed = [row for row in content["rows"] if "best" in row]
    if len(timed) == 2:
        ours, base = (row["seconds"][row["best"]] for row in timed)
        lines.append(f"{base / ours:.2f}x as fast as {timed[1]['commit']}")
    return "\n".join(lines)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def main() -> int:
    import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", required=True, choices=list(BUILD))
    parser.add_argument("--shape", required=True, type=_shape, help=str(MEANING))
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", metavar="COMMIT", help="measure this commit too, in turns")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="does it run? the figures mean nothing")
    record.add_place(parser)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    places = MEANING[args.op].count(",") + 1
    if len(args.shape) != places or min(args.shape) < 1:
        parser.error(f"--shape: {args.op} takes {MEANING[args.op]}, found {','.join(map(str, args.shape))}")
    if args.answer:
        args.answer.write_text(json.dumps(child(args)), encoding="utf-8")
        return 0
    content = measure(args)
    print(table(content))
    if any("best" not in row for row in content["rows"]):
        return 1
    if not args.quick:
        record.write(f"one_op_{args.op}", content, args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
