"""The sampling loop as a CUDA graph: one launch for the whole loop, and nothing asked of the host meanwhile.

Whether a graph pays depends on the size (small volumes: much, large ones: nothing), so it is measured, on calls that
were to be made anyway: of the calls with one key the first runs as it is (libraries choose their algorithms), the
second is timed, the third is captured and replayed, and the fourth is timed. A graph that gains less than 2 % is
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from mrisr.errors import BackendError
from mrisr.infer.engines.engine import CAPTURING_CALL

LEAST_GAIN = 1.02

Function = Callable[..., torch.Tensor]


class Captured:
    """A function of tensors as a CUDA graph. What else the function reads has to stay where it is and as it is.

    Args:
        function: has run with such inputs before, asks the host for nothing and copies nothing from it.
        inputs: tensors (None stays None); their shapes are those of every later call.
        pool: memory shared with other graphs, which must not run at the same time.
    """

    def __init__(self, function: Function, inputs, pool=None) -> None:
        self.function = function  # keeps what it refers to alive
        self.inputs = [None if t is None else t.clone(memory_format=torch.contiguous_format) for t in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.output = function(*self.inputs)

    def __call__(self, *inputs) -> torch.Tensor:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            if buffer is not None:
                buffer.copy_(value)
        self.graph.replay()
        return self.output.clone()  # the next replay writes into it


class Stopwatch:
    """Time on the device between entering and leaving, by events: waits for nothing until it is read."""

    def __enter__(self) -> Stopwatch:
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.start.record()
        return self

    def __exit__(self, *_) -> None:
        self.end.record()

    def milliseconds(self) -> float:
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


class Trial:
    """The calls with one key, and what became of their graph."""

    def __init__(self, pool) -> None:
        self.pool, self.calls = pool, 0
        self.graph: Captured | None = None
        self.plain = self.replayed = None  # Stopwatch
        self.off: str | None = None  # why there is no graph any more
        self.gain: float | None = None

    def __call__(self, function: Function, inputs) -> torch.Tensor:
        self.calls += 1
        if self.off or self.calls == 1:
            return function(*inputs)
        if self.calls == 2:
            with Stopwatch() as self.plain:
                return function(*inputs)
        if self.calls == CAPTURING_CALL:
            self._capture(function, inputs)
        if self.calls == 4 and self.graph:
            with Stopwatch() as self.replayed:
                return self.graph(*inputs)
        if self.calls == 5:
            self._judge()
        return self.graph(*inputs) if self.graph else function(*inputs)

    def _capture(self, function: Function, inputs) -> None:
        try:
            self.graph = Captured(function, inputs, self.pool)
        except (RuntimeError, BackendError) as error:
            self.off = f"capture failed: {str(error).splitlines()[0]}"

    def _judge(self) -> None:
        self.gain = self.plain.milliseconds() / self.replayed.milliseconds()
        if self.gain < LEAST_GAIN:
            self.drop(f"it would gain {100 * (self.gain - 1):.1f} %")

    def drop(self, why: str) -> None:
        self.graph, self.off = None, why

    def note(self) -> str:
        if self.off:
            return f"off, {self.off}"
        if self.gain:
            return f"{self.gain:.2f}x"
        return "on, not timed yet" if self.graph else f"off, {self.calls} calls of this shape are too few to gain"


class Graphs:
    """The graphs of one job by key, one at a time: all maps of a graph stay in memory.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.trials: dict[Hashable, Trial] = {}
        self.last = "off, nothing ran"

    def run(self, key: Hashable, function: Function, *inputs) -> torch.Tensor:
        """function(*inputs), by a graph where that pays. Calls with one key compute the same function of inputs of the
        same shapes. The result is the caller's own."""
        trial = self.trials.setdefault(key, Trial(self.pool))
        if trial.calls == CAPTURING_CALL - 1:
            for other in self.trials.values():
                if other.graph is not None:
                    other.drop("another shape has taken its place")
        with torch.cuda.device(self.device):
            result = trial(function, inputs)
        self.last = trial.note()
        return result

    def clear(self) -> None:
        """Give the memory back; what is known about the last key stays for `note`."""
        self.trials.clear()

    def note(self) -> str:
        """What became of the graph that was wanted last, for `info`."""
        return f"CUDA graph {self.last}"
