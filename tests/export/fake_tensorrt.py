"""A stand-in for the package tensorrt that runs PyTorch on the CPU. It exercises our calls and our checks; that
TensorRT itself takes the calls, or what it computes, nothing here shows.
"""

from __future__ import annotations

import ctypes
import json
import math
from types import SimpleNamespace

import torch

__version__ = "11.0.0-stand-in"


class ILogger:
    pass


class Logger(ILogger):
    ERROR = 1

    def __init__(self, level):
        self.level = level


class _Flags:
    def __init__(self, *names):
        for i, name in enumerate(names):
            setattr(self, name, i)


NetworkDefinitionCreationFlag = _Flags("STRONGLY_TYPED")
BuilderFlag = _Flags("TF32", "REFIT", "VERSION_COMPATIBLE")
ProfilingVerbosity = _Flags("DETAILED")
HardwareCompatibilityLevel = _Flags("NONE", "AMPERE_PLUS")
LayerInformationFormat = _Flags("JSON")


class State:
    """What the tests look at and set."""

    net = None  # computes the plan's output
    broken: str | None = None  # "parse", "build", "load", "memory"
    calls: list = []


class Builder:
    def __init__(self, log):
        self.log = log

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(path=None)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, low, best, high: profile.shapes.update({name: (low, best, high)})
        return profile

    def build_serialized_network(self, network, config):
        self.log.log(SimpleNamespace(name="ERROR" if State.broken == "build" else "VERBOSE"), "built, or not")
        if State.broken == "build":
            return None
        config.cache = b"timings"
        return json.dumps({"shapes": config.profile.shapes, "refit": BuilderFlag.REFIT in config.flags}).encode()


class _Config:
    def __init__(self):
        self.flags, self.cache = {BuilderFlag.TF32}, b""
        State.calls.append(self)

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile

    def create_timing_cache(self, data):
        self.given = bytes(data)
        return self.given

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: self.cache)


class OnnxParser:
    num_errors = 1

    def __init__(self, network, log):
        self.network = network

    def parse_from_file(self, path):
        self.network.path = path
        return State.broken != "parse"

    def get_error(self, i):
        return "node 3: not supported"


class Runtime:
    def __init__(self, log):
        pass

    def deserialize_cuda_engine(self, data):
        return None if State.broken == "load" else _Engine(json.loads(data))


class _Engine:
    num_io_tensors = 5
    device_memory_size_v2 = 8_000_000

    def __init__(self, plan):
        self.plan, self.refittable = plan, plan["refit"]

    def get_tensor_name(self, i):
        return ("x", "y", "vector", "guidance", "f")[i]

    def get_tensor_profile_shape(self, name, profile):
        return self.plan["shapes"][name]

    def create_execution_context(self):
        return None if State.broken == "memory" else _Context(self)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: '{"Layers": []}')

    def serialize(self):
        return json.dumps(self.plan | {"refitted": True}).encode()


class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.streams = engine, {}, {}, []

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        low, _, high = self.engine.plan["shapes"][name]
        return all(a <= n <= b for a, n, b in zip(low, shape, high))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        State.calls.append((stream, dict(self.addresses)))
        given = [_at(self.addresses[n], self.shapes[n]) for n in ("x", "y", "vector", "guidance")]
        with torch.inference_mode():
            _at(self.addresses["f"], self.shapes["x"]).copy_(State.net(*given))
        return True


def _at(address, shape):
    held = (ctypes.c_float * math.prod(shape)).from_address(address)
    return torch.frombuffer(held, dtype=torch.float32).reshape(shape)


class Refitter:
    def __init__(self, engine, log):
        pass

    def refit_cuda_engine(self):
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, log):
        pass

    def refit_from_file(self, path):
        return path.endswith(".onnx")
