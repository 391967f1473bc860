"""The files that one run writes: checked before the work starts, put in place together after it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from mrisr.errors import OutputError, to_do


class Outputs:
    """A set of output files that appear all together or not at all.

    Use it as a context manager. Entering checks every target (its directory exists and takes files, it is
    not a directory, it does not exist unless `force`, no two are the same, none is an input); :meth:`stage`
    gives the path to write to, in a hidden directory beside the target; :meth:`commit` moves everything into
    place. Whatever was not committed is deleted on leaving.

    Raises :class:`mrisr.errors.OutputError` from the checks and from :meth:`commit`.
    """

    def __init__(
        self,
        targets: dict[str, str | os.PathLike | None],
        *,
        force: bool = False,
        inputs: tuple[str | os.PathLike, ...] = (),
    ) -> None:
        self.targets = {name: Path(path) for name, path in targets.items() if path is not None}
        self.force = force
        self.inputs = [Path(path) for path in inputs]
        self._staging: dict[Path, Path] = {}

    def __enter__(self) -> Outputs:
        seen: dict[Path, str] = {}
        for name, path in self.targets.items():
            check_place(path, force=self.force)
            real = Path(os.path.realpath(path))
            if real in seen:
                raise OutputError(f"{path}: is both {seen[real]} and {name}; give each its own file")
            if any(real == Path(os.path.realpath(given)) for given in self.inputs):
                raise OutputError(f"{path}: is the input file; write to another file")
            seen[real] = name
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
        for parent, staging in self._staging.items():
            for staged in sorted(staging.iterdir()):
                target = parent / staged.name
                if target.exists() and not self.force:
                    raise OutputError(f"{target} appeared during the run; give --force to overwrite it")
        for parent, staging in self._staging.items():
            for staged in sorted(staging.iterdir()):
                try:
                    os.replace(staged, parent / staged.name)
                except OSError as error:
                    raise OutputError(
                        f"{parent / staged.name}: cannot be written ({error.strerror}); {to_do(error)}"
                    ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staged = dict(self._staging)
        self._staging.clear()
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OutputError, OSError)) and any(str(folder) in str(error) for folder in staged.values()):
            raise _of_target(error, staged) from error


def check_place(path: str | os.PathLike, *, force: bool = False) -> None:
    """OutputError that says why, where the file `path` cannot be written."""
    from mrisr.io.atomic import check_target

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
