"""Who may import whom, and what names are made of. Read from the source, so that lazy imports count and nothing needs
to be importable."""

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
    "adapt": {"io", "infer", "nn", "diffusion", "ops", "physics", "weights", "volume", "grid"},
    "corrections": {"io", "infer", "physics", "volume", "grid"},
    "models": {"infer", "weights", "nn"},
    "api": {"adapt", "io", "infer", "models", "weights", "volume", "grid", "corrections"},
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


# What a value has gone through says nothing about what it is: `found` may be a path, a header or a difference.
PARTICIPLES = frozenset(
    {"asked", "begun", "caught", "chosen", "found", "given", "gone", "got", "held", "kept", "known", "lost", "made"}
    | {"met", "moved", "named", "said", "seen", "shown", "stated", "taken", "told", "turned", "unshaded", "wanted"}
)
# What stands in files: the evaluation's method `@stated`, a checkpoint's fields.
OF_FILES = {("evaluate/methods.py", "stated"), ("train/checkpoint.py", "chosen"), ("train/run.py", "chosen")}


def names_in(tree: ast.Module) -> set[str]:
    """Variables, arguments, attributes, functions and classes that a module names."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def test_names_are_nouns():
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        for name in sorted(names_in(parsed(path)))
        if name.strip("_") in PARTICIPLES and not any(path.match(f"mrisr/{of}") and name == n for of, n in OF_FILES)
    ]
    assert not wrong, "name the thing, not what happened to it:\n" + "\n".join(wrong)


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


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The modules of the package, by name; kernels/ is mrisr.kernels."""
    found = {}
    for path, part in FILES.items():
        folder, root = (KERNELS, "mrisr.kernels") if part == "kernels" else (PACKAGE, "mrisr")
        name = ".".join((root, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = parsed(path)
    return found


def own_imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a tree imports, a package's own parts by their own names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules())
            found |= parts or {node.module} & set(modules())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(modules())
    return found


def in_circles(left: dict[str, set[str]]) -> list[str]:
    """What is left where modules that need nothing of the rest are taken away, again and again."""
    while ready := [name for name, needs in left.items() if not needs & set(left)]:
        for name in ready:
            del left[name]
    return sorted(left)


def test_no_module_imports_in_a_circle():
    """Neither when it is loaded nor inside a function. All see the root package, which has the version."""
    assert not in_circles({name: own_imports(tree) - {name, "mrisr"} for name, tree in modules().items()})


def at_load(tree: ast.Module) -> ast.Module:
    """A module without its functions and what only a type checker reads."""

    def stays(node: ast.stmt) -> bool:
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        return not checked and not isinstance(node, (ast.FunctionDef, ast.ClassDef))

    return ast.Module([node for node in tree.body if stays(node)], [])


def with_packages(name: str) -> set[str]:
    """A module and the packages that it lies in, which are loaded before it."""
    parts = name.split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts) + 1)}


@functools.cache
def loads(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """(our modules, other people's packages) that a module imports when it is loaded."""
    tree, roots = at_load(modules()[name]), set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        roots |= {imported.partition(".")[0] for imported in names}
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("third_party."):
            roots.add(node.func.attr)  # mrisr/third_party.py imports the package of that name
    ours = {each for other in own_imports(tree) for each in with_packages(other)}
    return frozenset(ours), frozenset(roots - STANDARD - {"mrisr"})


@functools.cache
def third_parties(name: str) -> frozenset[str]:
    """Other people's packages that are loaded with a module, by whichever of ours."""
    loaded, waiting = set(), with_packages(name)
    while waiting:
        one = waiting.pop()
        loaded.add(one)
        waiting |= loads(one)[0] - loaded
    return frozenset().union(*(loads(one)[1] for one in loaded))


BUILT = {"_native", "_build_info"}  # modules that are not there where nothing was built


def test_late_imports_keep_other_peoples_packages_out():
    """An import of ours inside a function is there for what comes with it: what the file itself does not load."""
    wrong = []
    for name, tree in modules().items():
        functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
        late = (node for f in functions for node in ast.walk(f) if isinstance(node, (ast.Import, ast.ImportFrom)))
        for node in late:
            targets = own_imports(node)
            brought = set().union(*map(third_parties, targets)) - third_parties(name)
            if targets and not brought and not {alias.name for alias in node.names} & BUILT:
                wrong.append(f"{name}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong, "import them at the top of the file:\n" + "\n".join(sorted(set(wrong)))
