"""TensorRT on a CUDA device, from the plan of a bundle (`mrisr export --format tensorrt`).

For either flavour (`tensorrt_package`); written against the Python API of TensorRT 10.13 to 11. The plan runs on the
caller's stream, so that the sampling loop can be captured in a CUDA graph; its activations are one block, taken when it
is loaded. A plan is compared with the PyTorch engine once, when it is loaded, and refused where the two differ.
"""

from __future__ import annotations

import math
import os

import torch

from mrisr.errors import BackendError
from mrisr.infer.engines import tensorrt_package
from mrisr.infer.engines.engine import Engine, Network
from mrisr.infer.engines.torch import TorchEngine
from mrisr.infer.memory import COSTS
from mrisr.nn.vector import GUIDANCE_CHANNELS, GUIDANCE_STRIDE, VECTOR_DIM

INPUTS, OUTPUT = ("x", "y", "vector", "guidance"), "f"
# Largest difference from PyTorch in float32, as a share of the largest value, by the precision of the plan's graph.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

_PLANS: dict[tuple, _Plan] = {}


class TensorRTEngine(Engine):
    """See `mrisr.infer.engines.Engine`.

    Attributes:
        tile: the size of volume that the plan is fastest for, voxels; the pipeline's tile unless another is stated.

    Args:
        plan: with `path` and `precision`, as `mrisr.bundle.Plan`.

    Raises:
        BackendError: the package, the plan or the device does not work, or the plan gives other values than PyTorch.
    """

    name = "tensorrt"
    cost = COSTS["tensorrt"]
    capturable = True
    threads = 0

    def __init__(self, net: torch.nn.Module, device: torch.device, plan, request: str = "auto") -> None:
        self.device, self.precision, self.precision_why = device, plan.precision, "of the plan"
        if request not in ("auto", plan.precision):
            raise BackendError(
                f"precision: {request} was asked for, and {plan.path} is a plan in {plan.precision}; use auto, or "
                f"export one with --precision {request}"
            )
        stat = os.stat(plan.path)
        key = (str(plan.path), stat.st_mtime_ns, stat.st_size, str(device))
        if key not in _PLANS:
            _PLANS.clear()
            network = _Plan(plan, device)
            _compare(network, net, plan)
            _PLANS[key] = network
        self._plan = _PLANS[key]
        self.tile = self._plan.tile

    def prepare(self, shape: tuple[int, int, int], *, exact=False, spill=False, tick=None) -> Network:
        self._plan.check(shape)

        def run(x, y, vector, guidance, active=None):
            return self._plan.run(x, y, vector, guidance)

        return run

    def map_bytes(self, shape: tuple[int, int, int], spill: bool = False) -> float:
        """Bytes of device memory per voxel of the largest volume that the plan takes."""
        return self._plan.device_bytes / math.prod(self._plan.largest)

    def release(self) -> None:
        torch.cuda.empty_cache()


class _Plan:
    """A deserialised plan, its one context, and its output buffers."""

    def __init__(self, plan, device: torch.device) -> None:
        package = tensorrt_package.load(plan.path)
        trt = package.api
        self.path = plan.path
        self._log = trt.Logger(trt.Logger.ERROR)
        with torch.cuda.device(device):
            runtime = trt.Runtime(self._log)
            runtime.engine_host_code_allowed = True  # a portable plan brings its own runtime
            self._engine = runtime.deserialize_cuda_engine(plan.path.read_bytes())
            if self._engine is None:
                raise BackendError(
                    f"tensorrt: {plan.path} cannot be loaded by {package} on this GPU; build it here with mrisr export "
                    f"--format tensorrt{_other_flavour(package)}"
                )
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"tensorrt: no device memory for {plan.path}; export one with a smaller --tile")
        self._check_names()
        low, tile, high = (tuple(s)[2:] for s in self._engine.get_tensor_profile_shape(INPUTS[0], 0))
        self.smallest, self.tile, self.largest = (tuple(int(n) for n in s) for s in (low, tile, high))
        self.device, self.device_bytes = device, int(self._engine.device_memory_size_v2)
        self._output: torch.Tensor | None = None

    def _check_names(self) -> None:
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {*INPUTS, OUTPUT}:
            raise BackendError(f"tensorrt: {self.path} has the tensors {sorted(names)}; it is no plan of mrisr export")

    def check(self, shape: tuple[int, int, int]) -> None:
        if all(a <= n <= b for a, n, b in zip(self.smallest, shape, self.largest)):
            return
        takes = "x".join(map(str, self.tile))
        if self.smallest != self.largest:
            takes = f"{'x'.join(map(str, self.smallest))} to {'x'.join(map(str, self.largest))}"
        raise BackendError(
            f"tensorrt: the plan takes volumes of {takes} voxels, and a piece has {'x'.join(map(str, shape))}; give "
            "tile=, or export a plan with --smallest and --largest"
        )

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        # Held until the next call: the work is only queued here.
        self._inputs = [t.to(device=self.device, dtype=torch.float32).contiguous() for t in inputs]
        if self._output is None or self._output.shape != inputs[0].shape:
            self._output = torch.empty_like(self._inputs[0])
        for name, tensor in zip(INPUTS, self._inputs):
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise BackendError(f"tensorrt: the plan does not take {name} of {tuple(tensor.shape)}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_tensor_address(OUTPUT, self._output.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise BackendError(f"tensorrt: {self.path} failed on {self.device}")
        return self._output


def _other_flavour(package: tensorrt_package.Package) -> str:
    if package.flavour == "tensorrt":
        return ", or with --portable"
    names = ", ".join(name for name in package.api.ComputeCapability.__members__ if name.startswith("SM"))
    return f" and the extra tensorrt, if the GPU is none of {names}"


def _compare(plan: _Plan, net: torch.nn.Module, notes) -> None:
    """Refuse a plan that gives something else than the weights that it came with."""
    shape = plan.smallest
    g = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, *shape, generator=g)
    coarse = [n // GUIDANCE_STRIDE for n in shape]
    sizes = (y.shape, None, (1, VECTOR_DIM), (1, GUIDANCE_CHANNELS, *coarse))
    inputs = [y if s is None else 0.1 * torch.randn(s, generator=g) for s in sizes]
    inputs = [t.to(plan.device) for t in inputs]
    expected = TorchEngine(net, plan.device, 1).prepare(shape)(*inputs)
    difference = float((plan.run(*inputs) - expected).abs().max() / expected.abs().max())
    limit = TOLERANCE[notes.precision]
    if not difference <= limit:
        raise BackendError(
            f"tensorrt: {notes.path} gives other values than its weights in PyTorch (by {difference:.2g} of the "
            f"largest, at most {limit:g} is rounding): it is of other weights or damaged; export the bundle again"
        )
