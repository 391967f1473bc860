"""Operators inside of recorded graphs: opcheck of every custom operator, torch.compile, torch.export, ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from mrisr import ops
from mrisr.nn.presets import build
from mrisr.nn.unet import UNet, UNetConfig
from mrisr.nn.vector import GUIDANCE_CHANNELS, VECTOR_DIM
from tests.ops import parity
from tests.ops.cases import SPECS

# The mechanisms of the student, and of the teacher (masks, attention, group norm), in few channels and blocks.
SMALL = {
    "local": UNetConfig(widths=(8, 8, 16), encoder=(1, 0), middle=1, decoder=(0, 1), embed=16),
    "global": UNetConfig(
        widths=(8, 8, 16), encoder=(1, 0), middle=1, decoder=(0, 1), norm="group", attention=1, head_dim=16, embed=16
    ),
}


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    net = (UNet(SMALL[kind]) if kind in SMALL else build(kind)).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net.to(memory_format=torch.channels_last_3d)


def inputs(size: int = 16, n: int = 1) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, 1, size, size, size, generator=g) for _ in range(2))
    guidance = torch.randn(n, GUIDANCE_CHANNELS, *[size // 8] * 3, generator=g)
    return x, y, torch.randn(n, VECTOR_DIM, generator=g), guidance


class Recorder(TorchDispatchMode):
    """The first call of every operator of mrisr's, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple] = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "mrisr":
            self.calls.setdefault(op.name(), (op, [_copy(a) for a in args], kwargs or {}))
        return op(*args, **(kwargs or {}))


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def _recorded() -> dict[str, tuple]:
    """Every operator that the SPECs' cases reach, forward and backward, and in place."""
    found = {}
    for spec in SPECS.values():
        for case in list(spec.cases)[:3]:
            args = parity.arguments(spec, case, torch.float32)
            leaves = {k: args[k].requires_grad_() for k in spec.gradients if args.get(k) is not None}
            with Recorder() as recorder:
                out = spec.call(**args)
                if leaves:
                    torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
            found = recorder.calls | found
    x = torch.randn(1, 8, 2, 3, 4)
    with Recorder() as recorder:
        SPECS["rms_norm"].call(x, out=torch.empty_like(x))
        SPECS["group_norm"].call(x, 2, out=torch.empty_like(x))
    return recorder.calls | found


RECORDED = _recorded()


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name for name in names if name.startswith("mrisr::")}


def test_every_registered_operator_was_reached():
    assert {name.split(".")[0] for name in RECORDED} == {name.split(".")[0] for name in registered()}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_opcheck(name):
    op, args, kwargs = RECORDED[name]
    if OPDEFS[name]._backward_fn is None:  # what a backward pass calls has none of its own
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    torch.library.opcheck(op, tuple(args), kwargs)


@pytest.mark.parametrize("kind", ["local", "global"])
def test_a_network_compiles_into_one_graph(kind):
    net, given = network(kind), inputs()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), net(*given), rtol=0, atol=1e-6)
    gradients = []
    for f in (net, compiled):
        net.zero_grad()
        f(*given).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["student", "tiny"])
def test_a_network_exports_with_its_operators_as_single_nodes(kind):
    net, given = network(kind), inputs()
    with torch.no_grad():
        program = torch.export.export(net, given)
        torch.testing.assert_close(program.module()(*given), net(*given), rtol=0, atol=1e-6)
    name = "mrisr.rms_norm.default" if kind == "student" else "mrisr.group_norm.default"
    assert any(str(node.target) == name for node in program.graph.nodes)


@pytest.mark.parametrize("kind", ["local", "global"])
def test_onnx_gives_the_same_numbers(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="the exporter needs onnxscript (extra: export)")
    runtime = pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime (extra: export)")
    net, given = network(kind), inputs()
    path = tmp_path / "net.onnx"
    with torch.no_grad():
        expected = net(*given).numpy()
        table = ops.onnx_translations()
        torch.onnx.export(net, given, path, dynamo=True, custom_translation_table=table, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    (got,) = session.run(None, dict(zip(names, (t.numpy() for t in given))))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def _with_onnx() -> list[tuple[str, str]]:
    cases = ("film", "masked_last", "nothing_active", "plain", "film_alone", "odd", "window_with_nothing_active")
    return [(n, c) for n, s in SPECS.items() if s.family.onnx is not None for c in cases if c in s.cases]


@pytest.mark.parametrize(("name", "case"), _with_onnx())
def test_onnx_of_single_operators(name, case, tmp_path):
    spec = SPECS[name]
    pytest.importorskip("onnxscript", reason="the exporter needs onnxscript (extra: export)")
    runtime = pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime (extra: export)")
    args = parity.arguments(spec, case, torch.float32)
    tensors = {k: v.contiguous() for k, v in args.items() if isinstance(v, torch.Tensor)}
    rest = {k: v for k, v in args.items() if k not in tensors}

    class One(torch.nn.Module):
        def forward(self, *given):
            return spec.call(**dict(zip(tensors, given)), **rest)

    path, table = tmp_path / "one.onnx", ops.onnx_translations()
    torch.onnx.export(
        One().eval(), tuple(tensors.values()), path, dynamo=True, custom_translation_table=table, verbose=False
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    (got,) = session.run(None, dict(zip(names, (t.numpy() for t in tensors.values()))))
    assert parity.deviation(torch.from_numpy(got), parity.oracle(spec, args)) <= 1e-5
