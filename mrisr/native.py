"""The native core (C++ and CUDA): whether it is here, and why not where it is not.

The module is loaded once, when this file is first imported; it links neither torch nor CUDA libraries, so
loading is cheap and works on every machine. Asking (`reason`, `cuda_reason`) never imports, allocates or
raises.
"""

from __future__ import annotations

from types import ModuleType

from mrisr.errors import BackendError, because

_HINT = "build it with: pip install -e . (needs a C++17 compiler)"


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from mrisr import _native
    except ImportError as error:
        return None, _why_absent(error)
    return _native, None


def _why_absent(error: ImportError) -> str:
    info = build_info()
    if not info:
        return f"the native core was not built; {_HINT}"
    if not info.get("NATIVE"):
        return str(info.get("NATIVE_REASON"))
    return f"the native core does not load ({because(error)}); {_HINT}"


def build_info() -> dict[str, object]:
    """What the build wrote down about itself (NATIVE, NATIVE_REASON, CUDA, CUDA_REASON, ...); empty if it
    never ran."""
    try:
        from mrisr import _build_info
    except ImportError:
        return {}
    return {key: value for key, value in vars(_build_info).items() if key.isupper()}


_module, _reason = _load()
_cuda_reason: str | None | bool = False  # False: not asked yet


def reason() -> str | None:
    """None where the native core is loaded, else why it is not."""
    return _reason


def cuda_reason() -> str | None:
    """None where the native CUDA kernels can run, else why not. The driver is asked once."""
    global _cuda_reason
    if _cuda_reason is False:
        _cuda_reason = _find_cuda_reason()
    return _cuda_reason


def _find_cuda_reason() -> str | None:
    if _module is None:
        return _reason
    if not _module.with_cuda:
        return str(build_info().get("CUDA_REASON") or "the native core was built without CUDA")
    count, why = _module.cuda_devices()
    return None if count else why


def module() -> ModuleType:
    """The extension. Raises BackendError with the reason where it is absent."""
    if _module is None:
        raise BackendError(f"native core: {_reason}")
    return _module


def describe() -> dict[str, object]:
    """For `mrisr doctor`: state, instruction set, CUDA, each with its reason."""
    facts: dict[str, object] = {"native": _reason is None, "native_reason": _reason}
    facts["isa"] = _module.isa() if _module else None
    facts["cuda"] = cuda_reason() is None
    facts["cuda_reason"] = cuda_reason()
    facts["cuda_archs"] = build_info().get("CUDA_ARCHS") or []
    return facts
