"""The files that one run writes: checked before the work starts, put in place together after it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from mrisr.errors import OutputError, to_do
from mrisr.io.atomic import check_target

MAIN = "--output"  # the target that the others describe


class Outputs:
    """A set of output files that appear all together or not at all.

    Use it as a context manager. Entering checks every target (its directory exists and takes files, it is
    not a directory, it does not exist unless `force`, no two are the same, none is an input); :meth:`stage`
    gives the path to write to, in a hidden directory beside the target; :meth:`commit` moves everything into
    place, the target called "--output" last: what is there has all that belongs to it, even of a killed process.
    Whatever was not committed is deleted on leaving.

    Args:
        folder: a target that is a folder of files (a DICOM series); who gives it has checked it.
        remains: targets that a killed run may have left, which are replaced without `force`.

    Raises :class:`mrisr.errors.OutputError` from the checks and from :meth:`commit`.
    """

    def __init__(
        self,
        targets: dict[str, str | os.PathLike | None],
        *,
        force: bool = False,
        inputs: tuple[str | os.PathLike, ...] = (),
        folder: str | None = None,
        remains: tuple[str, ...] = (),
    ) -> None:
        self.targets = {name: Path(path) for name, path in targets.items() if path is not None}
        self.force = force
        self.inputs = [Path(path) for path in inputs]
        self.folder, self.remains = folder, remains
        self._staging: dict[Path, Path] = {}

    def __enter__(self) -> Outputs:
        name_of: dict[Path, str] = {}
        for name, path in self.targets.items():
            if name == self.folder:
                _hidden_directory(path).rmdir()
            else:
                check_place(path, force=self.force or name in self.remains)
            real = Path(os.path.realpath(path))
            if real in name_of:
                raise OutputError(f"{path}: is both {name_of[real]} and {name}; give each its own file")
            if any(real == Path(os.path.realpath(path_of_input)) for path_of_input in self.inputs):
                raise OutputError(f"{path}: is a file of the input; write to another file")
            name_of[real] = name
        return self

    def stage(self, name: str) -> Path:
        """Where to write output `name`: same file name, in a hidden directory beside its target."""
        target = self.targets[name]
        parent = target.parent
        if parent not in self._staging:
            self._staging[parent] = _hidden_directory(target)
        return self._staging[parent] / target.name

    def commit(self) -> None:
        """Move every staged file to its place (a .hdr/.img pair brings both its files)."""
        beside = {path: name for name, path in self.targets.items() if name != MAIN}
        moves = [
            (staged, parent / staged.name)
            for parent, staging in self._staging.items()
            for staged in sorted(staging.iterdir())
        ]
        moves.sort(key=lambda move: move[1] not in beside)  # stable
        for staged, target in moves:
            if self.force or beside.get(target) in self.remains or not target.exists():
                continue
            if not (staged.is_dir() and target.is_dir() and not any(target.iterdir())):
                raise OutputError(f"{target} appeared during the run; give --force to overwrite it")
        for staged, target in moves:  # never an old result beside a new sidecar
            if target not in beside and os.path.lexists(target):
                _move(target, staged.with_name(f".old-{staged.name}"))
        for staged, target in moves:
            _move(staged, target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staged = dict(self._staging)
        self._staging.clear()
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OutputError, OSError)) and any(str(folder) in str(error) for folder in staged.values()):
            raise _of_target(error, staged) from error


def _move(path: Path, target: Path) -> None:
    try:
        os.replace(path, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); {to_do(error)}") from error


def check_place(path: str | os.PathLike, *, force: bool = False) -> None:
    """OutputError that says why, where the file `path` cannot be written."""
    check_target(path, force=force)
    # Permissions do not tell everything (root, read-only mounts): making something there does.
    _hidden_directory(Path(path)).rmdir()


def _of_target(error: OutputError | OSError, staged: dict[Path, Path]) -> OutputError:
    """The error of a staged file as one of the file that the user has named."""
    if isinstance(error, OSError):
        text = f"{error.filename}: cannot be written ({error.strerror}); {to_do(error)}"
    else:
        text = str(error)
    for parent, folder in staged.items():
        text = text.replace(f"{folder}{os.sep}", "" if parent == Path() else f"{parent}{os.sep}")
    return OutputError(text)


def _hidden_directory(target: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".mrisr-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); {to_do(error)}") from error
