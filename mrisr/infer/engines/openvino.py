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
from typing import TYPE_CHECKING

import numpy as np

from mrisr import third_party
from mrisr.environment import bfloat16_absence
from mrisr.errors import MrisrWarning, OutputError
from mrisr.infer.engines import precision
from mrisr.infer.engines.cache import DIGEST, GRAPH, WEIGHTS, entry_of
from mrisr.infer.engines.device import CPU
from mrisr.infer.engines.engine import Engine, Network, Source
from mrisr.infer.memory import COSTS
from mrisr.io.atomic import replacing_folder
from mrisr.nn.vector import input_shapes

if TYPE_CHECKING:
    import torch

ov = third_party.openvino()

KEEP_SHAPES = 3  # compiled shapes held per network; each has its own packed copy of the weights
WAIT_MS = 50  # how often a running request looks for Ctrl-C
# Always stated: a CPU that has bfloat16 may choose it otherwise. Never f16, which on a CPU is slower and wrong.
HINTS = {"float32": "f32", "bfloat16": "bf16"}
OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
}

log = logging.getLogger(__name__)


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
            inputs = [np.ascontiguousarray(_array(t)) for t in (x, y, vector, guidance)]
            if result is None:
                result = np.empty(inputs[1].shape, np.float32)
                request.set_output_tensor(0, ov.Tensor(result, shared_memory=True))
            for port, array in enumerate(inputs):
                request.set_input_tensor(port, ov.Tensor(array, shared_memory=True))
            with self._turn:
                _wait(request)
            if isinstance(y, np.ndarray):
                return result
            import torch

            return torch.from_numpy(result)

        return run

    def release(self) -> None:
        with self._turn:
            self._compiled.release_memory()


def _array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.detach().numpy()


class _Converted:
    """One network's graph with free spatial sizes, and its compiled shapes."""

    def __init__(self, source: Source, state: tuple) -> None:
        self.state = state
        self.core = ov.Core()
        self.fingerprint = _fingerprint(source)
        self.model = _from_disk_or_converted(source, self.fingerprint, self.core)
        self.compiled: OrderedDict[tuple, _Compiled] = OrderedDict()

    def compile(self, shape: tuple[int, int, int], threads: int, computes_in: str) -> _Compiled:
        key = (shape, threads, computes_in)
        with _lock:
            if key not in self.compiled:
                model = self.model.clone()
                model.reshape(dict(zip(model.inputs, map(ov.PartialShape, input_shapes(shape)))))
                hints = {"INFERENCE_PRECISION_HINT": HINTS[computes_in], "INFERENCE_NUM_THREADS": threads}
                self.compiled[key] = _Compiled(self.core.compile_model(model, "CPU", {**OPTIONS, **hints}))
                while len(self.compiled) > KEEP_SHAPES:
                    self.compiled.popitem(last=False)
            self.compiled.move_to_end(key)
            return self.compiled[key]


_networks: weakref.WeakKeyDictionary[Source, _Converted] = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # of what is kept between calls, here and in OpenVINO's Python package


class OpenVINOEngine(Engine):
    """See `mrisr.infer.engines.Engine`. Tensors are shared with PyTorch, not copied; arrays need no PyTorch.

    Args:
        net: the network, or a model of which the cache has the graph.
        request: the precision, as `mrisr.infer.engines.precision.asked_for` gives it.

    Raises:
        BackendError: bfloat16 was asked for and cannot be had, or gives other values than PyTorch.
    """

    name = "openvino"
    cost = COSTS["openvino"]
    device = CPU
    takes_arrays = True

    def __init__(self, net: Source, threads: int, request: str = "float32") -> None:
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
        missing = bfloat16_absence(self.device)
        if missing is None and "BF16" not in self._converted().core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return "OpenVINO does not compute in bfloat16 on this processor"
        return missing

    def _difference(self) -> float:
        """From float32 in PyTorch, on the fixed tile."""
        from mrisr.infer.engines.torch import TorchEngine

        inputs = precision.example()
        compiled = self._converted().compile((precision.TILE,) * 3, self.threads, "bfloat16")
        result = compiled.network()(*inputs).clone()
        expected = TorchEngine(_module(self._net), self.device, self.threads).prepare((precision.TILE,) * 3)(*inputs)
        compiled.release()
        return precision.difference(result, expected)

    @property
    def fingerprint(self) -> str:
        """Of the graph: its place in the cache (`entry_of`)."""
        return self._converted().fingerprint

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


def _module(source: Source) -> torch.nn.Module:
    """The network itself."""
    return source.network() if hasattr(source, "fingerprint") else source


def _fingerprint(source: Source) -> str:
    if hasattr(source, "fingerprint"):
        return source.fingerprint
    from mrisr.infer.engines.convert import fingerprint

    return fingerprint(source)


def _state(net: Source) -> tuple:
    """Changes whenever a weight is replaced or written to."""
    if hasattr(net, "fingerprint"):
        return (net.fingerprint,)
    return tuple((t.data_ptr(), t._version) for t in (*net.parameters(), *net.buffers()))


def _from_disk_or_converted(source: Source, fingerprint: str, core: ov.Core) -> ov.Model:
    entry = None if getattr(source, "transient", False) else entry_of(fingerprint)
    if entry is None:
        return convert(_module(source))
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
        log.info("cannot read the cache %s: %s", entry.parent, error)
    model = convert(_module(source))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _store(model, entry)
    except (OSError, OutputError) as error:
        log.info("cannot keep the converted graph in %s: %s", entry.parent, error)
    return model


def convert(net: torch.nn.Module) -> ov.Model:
    """The network as a graph for any size."""
    from mrisr.infer.engines import convert as conversion

    return conversion.graph_of(net)


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
