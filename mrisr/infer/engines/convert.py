"""From a PyTorch module to OpenVINO's graph, and what makes one graph another."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch

from mrisr import nn, third_party
from mrisr.errors import CATCHING, BackendError, because
from mrisr.infer.engines.torch import limited
from mrisr.infer.memory import return_freed_memory
from mrisr.nn.vector import input_shapes
from mrisr.ops import rms_norm

ov = third_party.openvino()

TRACE_SIZE = 32  # edge of the example volume: the graph is made for any size afterwards


class _FourInputs(torch.nn.Module):
    """The network with the inputs that an engine has, in that order."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x, y, vector, guidance):
        return self.net(x, y, vector, guidance)


def graph_of(net: torch.nn.Module) -> ov.Model:
    """The graph of a network, for any size. BackendError where it cannot be converted."""
    example = tuple(torch.zeros(shape) for shape in input_shapes((TRACE_SIZE,) * 3))
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


def fingerprint(net: torch.nn.Module) -> str:
    """Of all that the graph is made of: weights, sizes, the code that builds it, library versions."""
    digest = hashlib.sha256(f"{ov.__version__} {torch.__version__} {net.config}".encode())
    for package in (nn, rms_norm):
        for source in sorted(Path(package.__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
