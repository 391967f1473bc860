"""Who may import whom. Read from the source, so that lazy imports count and nothing needs to be
importable."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, KERNELS = ROOT / "mrisr", ROOT / "kernels"

# part of mrisr -> the other parts that it may import. Every part may use errors, environment,
# third_party and the version.
MAY_IMPORT = {
    "errors": set(),
    "environment": set(),
    "schema": set(),
    "third_party": set(),
    "grid": set(),
    "volume": {"grid"},
    "native": {"_native", "_build_info"},
    "preview": {"io"},
    "io": {"volume", "grid", "schema"},
    "bundle": {"schema"},
    "kernels": set(),
    "ops": {"kernels", "native"},
    "nn": {"ops", "physics", "grid"},
    "diffusion": {"ops"},
    "physics": {"ops", "native", "volume", "grid"},
    "data": {"io", "schema", "volume", "grid", "physics", "ops", "nn"},
    "train": {
        "schema",
        "nn",
        "diffusion",
        "data",
        "physics",
        "ops",
        "io",
        "volume",
        "grid",
        "preview",
        "weights",
        "evaluate",
    },
    "infer": {"schema", "io", "nn", "diffusion", "ops", "physics", "volume", "grid", "native", "report"},
    "export": {"bundle", "grid", "nn", "infer", "ops", "diffusion", "physics", "io"},
    "weights": {"bundle", "schema", "nn", "diffusion", "io"},
    "evaluate": {"io", "infer", "ops", "physics", "volume", "grid", "preview", "weights", "api"},
    "corrections": {"io", "infer", "physics", "volume", "grid"},
    "api": {"io", "infer", "weights", "volume", "grid", "corrections"},
    "report": {"preview", "volume", "io", "physics", "schema"},
    "batch": {"api", "corrections", "report", "io", "volume", "grid", "schema", "preview"},
    "serve": {"api", "report", "batch", "io", "volume", "grid"},
    "cli": {"*"},
    "__init__": {"api", "report", "volume", "weights"},
    "_build_info": set(),
}
NUMPY_ONLY = ("errors", "grid", "volume")  # beside the standard library
STANDARD = set(sys.stdlib_module_names)


def part_of(module: str) -> str:
    """mrisr.io.nifti -> io"""
    return module.split(".")[1] if "." in module else "__init__"


def sources() -> dict[Path, str]:
    files = {
        path: part_of("mrisr." + path.relative_to(PACKAGE).with_suffix("").parts[0]) for path in PACKAGE.rglob("*.py")
    }
    return files | dict.fromkeys(KERNELS.rglob("*.py"), "kernels")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names of what a file imports: modules, and what is taken from the root package."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import; write it out"
            names = [f"mrisr.{alias.name}" for alias in node.names] if node.module == "mrisr" else [node.module]
            found |= set(names)
    return found


FILES = sources()
PARTS = sorted(set(FILES.values()))


def test_every_part_has_a_rule():
    assert set(PARTS) <= set(MAY_IMPORT), f"no rule for {sorted(set(PARTS) - set(MAY_IMPORT))}: add it above"


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_only_what_they_may(part):
    allowed = MAY_IMPORT.get(part, set()) | {part, "errors", "environment", "third_party", "__version__"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, owner in FILES.items()
        if owner == part
        for name in imports(path)
        if name.startswith("mrisr.") and part_of(name) not in allowed and "*" not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line():
    others = [path for path, part in FILES.items() if part != "cli"]
    assert not [path for path in others if any(name.startswith("mrisr.cli") for name in imports(path))]


@pytest.mark.parametrize("part", [*NUMPY_ONLY, "kernels", "diffusion"])
def test_third_parties(part):
    third = {"kernels": {"torch", "triton"}, "diffusion": {"torch"}}.get(part, {"numpy"})
    for path, owner in FILES.items():
        if owner == part:
            roots = {name.partition(".")[0] for name in imports(path)}
            assert roots <= STANDARD | third | {"mrisr"}, f"{path.relative_to(ROOT)}: {sorted(roots - STANDARD)}"


def test_triton_stays_in_the_kernels():
    users = {path for path in FILES if any(name.partition(".")[0] == "triton" for name in imports(path))}
    assert users <= set(KERNELS.rglob("*.py"))


def includes(folder: str) -> list[tuple[Path, str]]:
    files = [path for path in (ROOT / "csrc" / folder).rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    return [(path, name) for path in files for name in re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())]


def test_the_core_knows_neither_torch_nor_python():
    assert includes("core")
    banned = re.compile(r"^(torch|ATen|c10|Python\.h|pybind11|numpy)", re.IGNORECASE)
    assert not [(path.name, name) for path, name in includes("core") if banned.match(name)]
    assert not [(path.name, name) for path, name in includes("python") if re.match(r"^(torch|ATen|c10)", name)]
    assert not [
        (path.name, name) for path, name in includes("runtime") if re.match(r"^(Python\.h|pybind11|torch|ATen)", name)
    ]


def test_no_file_is_named_for_nothing():
    assert not [path for path in FILES if path.stem in {"utils", "util", "helpers", "common", "misc"}]


def modules_of(folder: Path) -> dict[str, ast.Module]:
    """The modules of a folder of the package, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(("mrisr", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = parsed(path)
    return found


def operators() -> dict[str, ast.Module]:
    return modules_of(PACKAGE / "ops")


def imported_from(tree: ast.AST, modules) -> set[str]:
    """Modules among `modules` that a tree imports, a package's own parts by their own names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
            found |= parts or {node.module} & set(modules)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(modules)
    return found


def in_circles(left: dict[str, set[str]]) -> list[str]:
    """What is left where modules that need nothing of the rest are taken away, again and again."""
    while ready := [name for name, needs in left.items() if not needs & set(left)]:
        for name in ready:
            del left[name]
    return sorted(left)


def test_operators_import_in_no_circle():
    modules = operators()
    assert not in_circles({name: imported_from(tree, modules) - {name} for name, tree in modules.items()})


def at_load(tree: ast.Module) -> ast.Module:
    """A module without its functions and what only a type checker reads."""

    def stays(node: ast.stmt) -> bool:
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        return not checked and not isinstance(node, (ast.FunctionDef, ast.ClassDef))

    return ast.Module([node for node in tree.body if stays(node)], [])


def test_no_module_is_loaded_in_a_circle():
    modules = modules_of(PACKAGE)
    assert not in_circles({name: imported_from(at_load(tree), modules) - {name} for name, tree in modules.items()})


def test_operators_import_late_only_what_is_heavy():
    """Inside functions: Triton's kernels, onnxscript, torch where asking must not import it; and modules by name."""
    modules = operators()
    for name, tree in modules.items():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            assert not imported_from(function, modules), f"{name}: {function.name} imports a neighbour"
