"""What the package is made of, then and now: files, lines, imports, circles, and functions that return what they make.

    python experiments/house.py [COMMIT ...] [--record]

One column a commit (the default: before the house was rearranged, when infer still was one mutable job, and HEAD), one
row a count, over all of mrisr/ and kernels/ and for infer, ops and csrc/runtime alone. Read from the sources of each
commit; nothing is run. Writes house.json and house.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import record
import versus

COMMITS = {"37a909a": "before", "e85ff0a": "operators in folders", "HEAD": "now"}
LONG_FILE, LONG_FUNCTION = 400, 60  # lines


def tables(root: Path) -> dict[str, dict[str, float]]:
    """Part -> count -> number, of the sources below `root`."""
    modules = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files(root)}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files(root)}
    found = {}
    for part, prefix in (("mrisr and kernels", ""), ("mrisr.infer", "mrisr.infer"), ("mrisr.ops", "mrisr.ops")):
        chosen = {n: t for n, t in modules.items() if n == prefix or n.startswith(f"{prefix}." if prefix else "")}
        found[part] = counts(chosen, lines, modules)
    runtime = [p for p in sorted((root / "csrc" / "runtime").rglob("*")) if p.suffix in (".h", ".cpp")]
    long = [len(p.read_text(encoding="utf-8").splitlines()) for p in runtime]
    found["csrc/runtime"] = {
        "files": len(long),
        "lines": sum(long),
        f"files over {LONG_FILE} lines": sum(n > LONG_FILE for n in long),
    }
    return found


def files(root: Path) -> Iterator[tuple[str, Path]]:
    """(module, file) of the package; kernels/ is mrisr.kernels."""
    for folder, name in (("mrisr", "mrisr"), ("kernels", "mrisr.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            yield ".".join((name, *parts)).removesuffix(".__init__"), path


def counts(chosen: dict[str, ast.Module], lines: dict[str, int], modules: dict[str, ast.Module]) -> dict[str, float]:
    functions = [f for tree in chosen.values() for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    edges = {name: imported(tree, modules) - {name, "mrisr"} for name, tree in chosen.items()}
    loaded = {name: imported(at_load(tree), modules) - {name} for name, tree in chosen.items()}
    late = [imported(f, modules) for f in functions]
    return {
        "files": len(chosen),
        "lines": sum(lines[name] for name in chosen),
        f"files over {LONG_FILE} lines": sum(lines[name] > LONG_FILE for name in chosen),
        "longest file": max(lines[name] for name in chosen),
        "imports between modules": sum(map(len, edges.values())),
        "of these inside functions": sum(map(len, late)),
        "modules in circles when loaded": len(in_circles({n: e & set(chosen) for n, e in loaded.items()})),
        "modules in circles of all imports": len(in_circles({n: e & set(chosen) for n, e in edges.items()})),
        "functions": len(functions),
        f"functions over {LONG_FUNCTION} lines": sum(f.end_lineno - f.lineno >= LONG_FUNCTION for f in functions),
        "functions that return nothing": sum(not returns(f) for f in functions),
        "return statements": sum(isinstance(n, ast.Return) for tree in chosen.values() for n in ast.walk(tree)),
        "attributes written from outside": sum(writes_of_others(f) for f in functions),
    }


def imported(tree: ast.AST, modules: dict[str, ast.Module]) -> set[str]:
    """Modules of the package that a tree imports, a package's own modules by their own names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
            found |= parts or {node.module} & set(modules)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(modules)
    return found


def at_load(tree: ast.Module) -> ast.Module:
    """A module without its functions, classes and what only a type checker reads."""

    def stays(node: ast.stmt) -> bool:
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        return not checked and not isinstance(node, (ast.FunctionDef, ast.ClassDef))

    return ast.Module([node for node in tree.body if stays(node)], [])


def in_circles(edges: dict[str, set[str]]) -> set[str]:
    """Modules from which a way of imports leads back to them."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), list(edges[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += edges.get(name, ())
        return seen

    return {name for name in edges if name in reached(name)}


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions and classes within it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)


def returns(function: ast.FunctionDef) -> bool:
    """Whether it gives a value back, or yields some; properties of a protocol whose body is ... count as doing so."""
    nodes = list(own_nodes(function))
    stub = any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and n.value.value is ... for n in nodes)
    return stub or any(
        (isinstance(n, ast.Return) and n.value is not None) or isinstance(n, (ast.Yield, ast.YieldFrom)) for n in nodes
    )


def writes_of_others(function: ast.FunctionDef) -> int:
    """Assignments to an attribute of an argument other than self: what a stage writes into what it was given."""
    given = {a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    given -= {"self", "cls"}
    written = 0
    for node in own_nodes(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) else ():
            for part in target.elts if isinstance(target, ast.Tuple) else (target,):
                written += isinstance(part, ast.Attribute) and getattr(part.value, "id", None) in given
    return written


def page(columns: list[dict]) -> str:
    """The counts as Markdown."""
    heads = [f"{c['name']} ({c['commit'][:7]})" for c in columns]
    lines = [
        "# The house, before and after",
        "",
        "Counted in the sources by `experiments/house.py`. Imports of the root package (its version) are not counted. "
        "An attribute written from outside is one that a function assigns to an argument other than self.",
    ]
    for part in columns[0]["parts"]:
        lines += ["", f"## {part}", "", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
        for count in columns[0]["parts"][part]:
            lines.append(f"| {count} | {' | '.join(str(c['parts'][part][count]) for c in columns)} |")
    return "\n".join(lines) + "\n"


def column(revision: str, name: str) -> dict:
    commit = versus.commit_of(revision)
    with tempfile.TemporaryDirectory() as folder:
        words = ["git", "-C", str(record.ROOT), "archive", commit, "mrisr", "kernels", "csrc"]
        archive = subprocess.run(words, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        return {"name": name, "commit": commit, "parts": tables(Path(folder))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT")
    record.add_place(parser)
    options = parser.parse_args()
    columns = [column(c, COMMITS.get(c, c)) for c in options.commits or COMMITS]
    record.write("house", {"columns": columns}, options.results)
    text = page(json.loads((options.results / "house.json").read_text())["columns"])
    (options.results / "house.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
