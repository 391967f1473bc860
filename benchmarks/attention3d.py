"""Where PyTorch's attention beats the Triton kernel on this GPU: the table by which attention3d chooses.

    python benchmarks/attention3d.py [--results DIR] [--quick]
    python benchmarks/attention3d.py --take gpu_day.json     the rows that gpu_day.py measured, without measuring again

Both are compared with float64 first; a row where one is wrong is left out and said. Writes attention3d.json with rows
{device, dtype, head_dim, window (null: global), tokens, triton_ms, sdpa_ms}, and the same rows as the table of
mrisr/ops/attention3d/measured.py (with --record), where those of other devices stay.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout
import record
import timing
import torch
from contest import draw

DTYPES = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-3}  # dtype -> largest share of max |expected|
GRIDS = ((16, 16, 16), (32, 40, 32))
TABLE = checkout.ROOT / "mrisr" / "ops" / "attention3d" / "measured.py"
BEGIN, END = "# measured: begin", "# measured: end"
COLUMNS = ("device", "dtype", "head_dim", "window", "tokens", "triton_ms", "sdpa_ms")
GLOBAL_TOKENS = 20_000  # more would keep the float64 reference busy for minutes


def measure(device: str = "cuda", quick: bool = False) -> dict:
    """Rows and what was wrong. In a quick run the backend "native" stands in for Triton, so that it runs on a CPU."""
    mine = "native" if quick else "triton"
    rows, failures, table = [], [], ["attention3d ms: dtype, head dim, window, tokens, ours, sdpa"]
    for dtype, limit in DTYPES.items():
        for head_dim in (32,) if quick else (32, 64, 128):
            for window in (8, None):
                for grid in ((4, 4, 5),) if quick else GRIDS:
                    row = _row(device, dtype, head_dim, window, grid, limit, mine, failures)
                    rows += [row] if row else []
                    table += [f"{[v for k, v in row.items() if k != 'device']}"] if row else []
    return {"rows": rows, "table": table, "failures": failures}


def _row(device, dtype, head_dim, window, grid, limit, mine: str, failures: list) -> dict | None:
    from mrisr.ops import attention3d as family

    tokens, heads = grid[0] * grid[1] * grid[2], 256 // head_dim
    if window is None and tokens > GLOBAL_TOKENS:
        return None
    qkv = draw(1, *grid, 3 * heads * head_dim, device=device).to(dtype)
    # One head is enough to compare: the kernels treat all alike.
    part = qkv.unflatten(-1, (3, heads, head_dim))[..., 0, :].flatten(-2).double().cpu()
    expected = family.reference(part, 1, window=window)
    ms = {}
    for name in (mine, "sdpa"):

        def call(name=name):
            with torch.no_grad():
                return family.attention3d(qkv, heads, window=window, backend=name)

        answer = call()[..., :head_dim].double().cpu()
        error = float((answer - expected).abs().max() / expected.abs().max())
        if not error <= limit:
            failures.append(f"attention3d {name} {dtype} d={head_dim} window={window} {grid}: off by {error:.1e}")
            return None
        ms[name] = round(timing.seconds(call, device, 0.1) * 1e3, 4)
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": head_dim,
        "window": window,
        "tokens": tokens,
        "triton_ms": ms[mine],
        "sdpa_ms": ms["sdpa"],
    }


def tabulated(source: str, rows: list[dict]) -> str:
    """The text of measured.py with these rows in its table, in place of those of the same devices."""
    head, rest = source.split(BEGIN)
    old, tail = rest.split(END)
    table = ast.literal_eval(old.split("=", 1)[1].strip())
    devices = {row["device"] for row in rows}
    others = [row for row in table if row[0] not in devices]
    lines = [f"    {row!r},\n" for row in (*others, *(tuple(row[name] for name in COLUMNS) for row in rows))]
    body = "(\n" + "".join(lines).replace("'", '"') + ")" if lines else "()"
    return f"{head}{BEGIN}\nROWS: tuple[Row, ...] = {body}\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_place(parser)
    parser.add_argument("--quick", action="store_true", help="does it run? on the CPU; nothing is written")
    parser.add_argument("--take", type=Path, metavar="FILE", help="a gpu_day.json")
    args = parser.parse_args()
    if args.take:
        of_file = json.loads(args.take.read_text())["attention"]
        (args.results / "attention3d.json").write_text(json.dumps(of_file, indent=2) + "\n", encoding="utf-8")
        TABLE.write_text(tabulated(TABLE.read_text(encoding="utf-8"), of_file["rows"]), encoding="utf-8")
        return 0
    content = measure("cpu" if args.quick else "cuda", args.quick)
    print("\n".join([*content["table"], *content["failures"]]))
    if not args.quick:
        record.write("attention3d", content, args.results)
        if args.results == record.RESULTS:
            TABLE.write_text(tabulated(TABLE.read_text(encoding="utf-8"), content["rows"]), encoding="utf-8")
    return 1 if content["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
