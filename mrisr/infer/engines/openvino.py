"""OpenVINO on the CPU, float32 or bfloat16: converted straight from the PyTorch module, compiled once per shape.

The converted graph (not the compiled one) is kept on disk, because converting takes about two seconds of
every process and compiling a tenth of that. `MRISR_CACHE` names the folder; "off" keeps nothing. Measured on
AVX-512 with the student: packing to half resolution outside of the graph, or folding the conditioning into
constants, changes the time by less than 3 %, so the graph is the plain network.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import warnings
import weakref
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mrisr import nn, third_party
from mrisr.environment import cache_folder
from mrisr.errors import CATCHING, BackendError, MrisrWarning, OutputError, because
from mrisr.infer.engines import precision
from mrisr.infer.engines.engine import Engine, Network
from mrisr.infer.engines.torch import TorchEngine, limited
from mrisr.infer.memory import COSTS, return_freed_memory
from mrisr.io.atomic import replacing_folder
from mrisr.nn.condition import GUIDANCE_CHANNELS, GUIDANCE_STRIDE, VECTOR_DIM
from mrisr.ops import rms_norm

ov = third_party.openvino()

GRAPH, WEIGHTS, DIGEST = "model.xml", "model.bin", "model.sha256"  # of an entry of the cache
KEEP_SHAPES = 3  # compiled shapes held per network; each has its own packed copy of the weights
TRACE_SIZE = 32  # edge of the example volume: the graph is made for any size afterwards
WAIT_MS = 50  # how often a running request looks for Ctrl-C
# Always stated: a CPU that has bfloat16 may choose it otherwise. Never f16, which on a CPU is slower and wrong.
HINTS = {"float32": "f32", "bfloat16": "bf16"}
OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
}

log = logging.getLogger(__name__)


class _FourInputs(torch.nn.Module):
    """The network with the inputs that an engine has, in that order."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x, y, vector, guidance):
        return self.net(x, y, vector, guidance)


class _Compiled:
    """A compiled shape, which threads may share: one runs at a time, and none takes memory from one that runs."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled, self._turn = compiled, threading.Lock()

    def network(self) -> Network:
        """A request of its own; its result is overwritten by its next call."""
        request = self._compiled.create_infer_request()
        result = None  # of our own: what OpenVINO allocates goes with release_memory

        def run(x, y, vector, guidance, active=None):
            nonlocal result
            # OpenVINO reads and writes these where they lie, so they have to live until it is done.
            inputs = [np.ascontiguousarray(t.detach().numpy()) for t in (x, y, vector, guidance)]
            if result is None:
                result = np.empty(inputs[1].shape, np.float32)
                request.set_output_tensor(0, ov.Tensor(result, shared_memory=True))
            for port, array in enumerate(inputs):
                request.set_input_tensor(port, ov.Tensor(array, shared_memory=True))
            with self._turn:
                _wait(request)
            return torch.from_numpy(result)

        return run

    def release(self) -> None:
        with self._turn:
            self._compiled.release_memory()


class _Converted:
    """One network's graph with free spatial sizes, and its compiled shapes."""

    def __init__(self, net: torch.nn.Module, state: tuple) -> None:
        self.state = state
        self.core = ov.Core()
        self.fingerprint = _fingerprint(net)
        self.model = _from_disk_or_converted(net, self.fingerprint, self.core)
        self.compiled: OrderedDict[tuple, _Compiled] = OrderedDict()

    def compile(self, shape: tuple[int, int, int], threads: int, computes_in: str) -> _Compiled:
        key = (shape, threads, computes_in)
        with _lock:
            if key not in self.compiled:
                model = self.model.clone()
                model.reshape(dict(zip(model.inputs, _shapes(shape))))
                hints = {"INFERENCE_PRECISION_HINT": HINTS[computes_in], "INFERENCE_NUM_THREADS": threads}
                self.compiled[key] = _Compiled(self.core.compile_model(model, "CPU", {**OPTIONS, **hints}))
                while len(self.compiled) > KEEP_SHAPES:
                    self.compiled.popitem(last=False)
            self.compiled.move_to_end(key)
            return self.compiled[key]


_networks: weakref.WeakKeyDictionary[torch.nn.Module, _Converted] = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # of what is kept between calls, here and in OpenVINO's Python package


class OpenVINOEngine(Engine):
    """See `mrisr.infer.engines.Engine`. Tensors are shared with PyTorch, not copied.

    Args:
        asked: the precision, as `mrisr.infer.engines.precision.asked_for` gives it.

    Raises:
        BackendError: bfloat16 was asked for and cannot be had, or gives other values than PyTorch.
    """

    name = "openvino"
    cost = COSTS["openvino"]
    device = torch.device("cpu")

    def __init__(self, net: torch.nn.Module, threads: int, request: str = "float32") -> None:
        self.threads = threads
        self._net = net
        self._recent: list[_Compiled] = []
        # Before the pipeline looks at how much memory is held: converting takes some, and of no certain size.
        converted = self._converted()
        key = ("openvino", converted.fingerprint, threads)
        measured = partial(precision.measure_once, key, self._difference)
        self.precision, self.precision_why = precision.decide(request, self.device, self._lacks_bfloat16(), measured)

    def prepare(self, shape: tuple[int, int, int], *, exact=False, spill=False, tick=None) -> Network:
        compiled = self._converted().compile(tuple(shape), self.threads, self.precision)
        self._recent.append(compiled)
        return compiled.network()

    def _lacks_bfloat16(self) -> str | None:
        missing = precision.absence(self.device)
        if missing is None and "BF16" not in self._converted().core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return "OpenVINO does not compute in bfloat16 on this processor"
        return missing

    def _difference(self) -> float:
        """From float32 in PyTorch, on the fixed tile."""
        inputs = precision.example()
        compiled = self._converted().compile((precision.TILE,) * 3, self.threads, "bfloat16")
        result = compiled.network()(*inputs).clone()
        expected = TorchEngine(self._net, self.device, self.threads).prepare((precision.TILE,) * 3)(*inputs)
        compiled.release()
        return precision.difference(result, expected)

    def _converted(self) -> _Converted:
        with _lock:
            state = _state(self._net)
            converted = _networks.get(self._net)
            if converted is None or converted.state != state:
                converted = _networks[self._net] = _Converted(self._net, state)
            return converted

    def release(self) -> None:
        for compiled in self._recent:
            compiled.release()
        self._recent.clear()


def _wait(request: ov.InferRequest) -> None:
    """Run to the end, but let Ctrl-C through: a plain infer() on a whole head delays it by seconds."""
    try:
        request.start_async()
        while not request.wait_for(WAIT_MS):
            pass
    except BaseException:
        request.cancel()
        try:
            request.wait()
        except RuntimeError as error:  # how OpenVINO says that it was cancelled
            log.debug("request ended after cancel: %s", error)
        raise


def _state(net: torch.nn.Module) -> tuple:
    """Changes whenever a weight is replaced or written to."""
    return tuple((t.data_ptr(), t._version) for t in (*net.parameters(), *net.buffers()))


def _shapes(size: tuple[int, int, int]) -> list[ov.PartialShape]:
    coarse = [n // GUIDANCE_STRIDE for n in size]
    shapes = ([1, 1, *size], [1, 1, *size], [1, VECTOR_DIM], [1, GUIDANCE_CHANNELS, *coarse])
    return [ov.PartialShape(s) for s in shapes]


def _convert(net: torch.nn.Module) -> ov.Model:
    example = tuple(torch.zeros(tuple(s.to_shape())) for s in _shapes((TRACE_SIZE,) * 3))
    training = net.training
    net.eval()
    try:
        # One thread: the trace runs many tiny operators, whose threads would only wait for each other.
        with torch.no_grad(), limited(1), third_party.without_telemetry(), CATCHING, warnings.catch_warnings():
            # The check that sizes are multiples of 8 is a constant of the trace; the pipeline keeps it true.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)  # of the tracer itself
            return ov.convert_model(_FourInputs(net), example_input=example)
    except Exception as error:
        raise BackendError(
            f'openvino: cannot convert {type(net).__name__} ({because(error)}); use engine="torch"'
        ) from error
    finally:
        net.train(training)
        return_freed_memory()


def _from_disk_or_converted(net: torch.nn.Module, fingerprint: str, core: ov.Core) -> ov.Model:
    folder = cache_folder()
    if folder is None or getattr(net, "transient", False):
        return _convert(net)
    entry = folder / f"openvino-{fingerprint}"
    try:
        if (entry / GRAPH).is_file():
            if (entry / DIGEST).read_text(encoding="utf-8") != _digest(entry):
                raise RuntimeError("its checksum is another")
            return core.read_model(entry / GRAPH)
    except (RuntimeError, FileNotFoundError, ValueError) as error:  # it costs a conversion, never a result
        reason = str(error).strip().splitlines()[-1]
        warnings.warn(f"{entry}: the cached graph is damaged ({reason}); it is made again", MrisrWarning, stacklevel=2)
        shutil.rmtree(entry, ignore_errors=True)
    except OSError as error:  # a folder that one may not enter
        log.info("cannot read the cache %s: %s", folder, error)
    model = _convert(net)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _store(model, entry)
    except (OSError, OutputError) as error:
        log.info("cannot keep the converted graph in %s: %s", folder, error)
    return model


def _store(model: ov.Model, entry: Path) -> None:
    """Another process sees a whole entry or none."""
    with replacing_folder(entry) as beside:
        ov.save_model(model, beside / GRAPH, compress_to_fp16=False)
        (beside / DIGEST).write_text(_digest(beside), encoding="utf-8")


def _digest(entry: Path) -> str:
    """SHA-256 of a cached graph and its weights."""
    digest = hashlib.sha256()
    for name in (GRAPH, WEIGHTS):
        digest.update((entry / name).read_bytes())
    return digest.hexdigest()


def _fingerprint(net: torch.nn.Module) -> str:
    """Of all that the graph is made of: weights, sizes, the code that builds it, library versions."""
    digest = hashlib.sha256(f"{ov.__version__} {torch.__version__} {net.config}".encode())
    for package in (nn, rms_norm):
        for source in sorted(Path(package.__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
