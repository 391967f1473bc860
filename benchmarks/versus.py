"""Another commit beside this checkout: its files in a folder of its own, run in turns with ours by the same scripts.

A run of the other commit imports its mrisr, not ours: `own(root)` in the child says so, or ends it.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from record import ROOT

STORE = "out/native"  # native cores of other commits
NATIVE = ("csrc/core", "csrc/python", "CMakeLists.txt", "setup.py")  # what the native core is built from


def commit_of(revision: str, root: Path = ROOT) -> str:
    """The full name of a commit; SystemExit where there is no such."""
    words = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{revision!r} is no commit of {root}; expected a name, tag or hash (git log)")
    return process.stdout.strip()


@contextmanager
def checkout_of(revision: str, root: Path = ROOT) -> Iterator[Path]:
    """A folder with the files of `revision` and its native core, gone afterwards. The core is built once (minutes) and
    kept in out/native by what it was built from; where that is what ours was built from, it is ours."""
    commit = commit_of(revision, root)
    with tempfile.TemporaryDirectory(prefix="mrisr-") as folder:
        archive = subprocess.run(["git", "-C", str(root), "archive", commit], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        there = Path(folder)
        same = subprocess.run(["git", "-C", str(root), "diff", "--quiet", commit, "--", *NATIVE], check=False)
        store = root / "mrisr" if same.returncode == 0 else root / STORE / _sources(commit, root)
        if not any(store.glob("_native*")) and store != root / "mrisr":
            _build(there, store)
        for path in (*store.glob("_native*"), store / "_build_info.py"):
            if path.exists():
                shutil.copy2(path, there / "mrisr")
        yield there


def _sources(commit: str, root: Path) -> str:
    """Names what the native core of a commit is built from, and the Python that it is built for."""
    words = ["git", "-C", str(root), "ls-tree", "-r", commit, "--", *NATIVE]
    listed = subprocess.run(words, check=True, capture_output=True).stdout
    return hashlib.sha256(listed + sys.implementation.cache_tag.encode()).hexdigest()[:16]


def _build(there: Path, folder: Path) -> None:
    words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(words, cwd=there, env={**os.environ, "MRISR_NATIVE": "1", "MRISR_CUDA": "0"}, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*(there / "mrisr").glob("_native*"), there / "mrisr" / "_build_info.py"):
        shutil.copy2(path, folder)


def with_bytecode(root: Path) -> None:
    """Compile a checkout's Python files beforehand, as installing does: else every import is a compilation."""
    for folder in ("mrisr", "kernels"):
        compileall.compile_dir(root / folder, quiet=2)


def own(root: str) -> None:
    """Have this process import mrisr and its kernels from `root`; SystemExit where another has been found."""
    import mrisr

    origin = Path(mrisr.__file__).resolve().parents[1]
    if origin != Path(root).resolve():
        raise SystemExit(f"expected mrisr from {root}, found it in {origin}")
    mrisr.__path__.append(str(root))  # where its kernels are


def run(root: Path, script: str, *words: str, environment: dict[str, str] | None = None) -> dict:
    """The answer of `script` (this checkout's, whatever is measured) in a process that imports mrisr from `root`.

    The script is given --root and --answer, and writes JSON there.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, script, *words, "--root", str(root), "--answer", str(answer)]
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        process = subprocess.run(
            command, env={**os.environ, **(environment or {}), "PYTHONPATH": paths}, cwd=folder, check=False
        )
        if process.returncode or not answer.exists():
            raise RuntimeError(f"{Path(script).name} {' '.join(words)} ended with {process.returncode} in {root}")
        return json.loads(answer.read_text(encoding="utf-8"))


def in_turns(roots: dict[str, Path], measure: Callable[[Path], dict], rounds: int) -> dict[str, list[dict]]:
    """measure(root) of each, A B A B: what else the machine does meets both."""
    results: dict[str, list[dict]] = {name: [] for name in roots}
    for _ in range(rounds):
        for name, root in roots.items():
            results[name].append(measure(root))
    return results
