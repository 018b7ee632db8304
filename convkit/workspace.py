"""Where results come into being: a private folder beside the destination, renamed when complete.

Nothing appears under the name the user asked for before it is whole and verified; a process that
is killed leaves a folder `.convkit-...` that the next run removes.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from convkit.artifact import MANIFEST_SUFFIX
from convkit.errors import ResourceError, UsageError

_PREFIX = ".convkit-"
_UNLOCKED_PREFIX = ".convkit_new-"
_REJECTED = ".rejected"
_BESIDE = (".data", ".Modelfile", ".sensitivity.json", ".sensitivity.svg")

_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
)
"""A place that may not be written, or is none: a file where a folder was due, /proc, a name of a
thousand letters."""


@dataclass(frozen=True)
class Workspace:
    """A private folder for one run, and the destination it publishes to."""

    folder: Path
    destination: Path
    force: bool = False

    def room(self, name: str) -> Path:
        """An empty folder of its own for one step's result."""
        room = self.folder / name
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        return room

    def publish(self, result: Path) -> None:
        """Moves a finished result, with all that lies beside it, to the destination.

        What stood there before is moved aside first and deleted last; the result's own file comes
        last, so that under the final name there is either nothing or a whole result.

        Raises:
            UsageError: another process wrote the destination meanwhile, and `force` is not set.
        """
        with _one_at_a_time(self.destination.parent):
            if self.destination.exists() and not self.force:
                raise _exists(self.destination)
            self._move_in(result)

    def _move_in(self, result: Path) -> None:
        beside = (path for path in result.parent.iterdir() if path.name.startswith(result.name))
        companions = sorted(path for path in beside if path != result)
        aside = self.room("replaced")
        for old in (self.destination, *companions_of(self.destination)):
            if old.exists() or old.is_symlink():
                old.rename(aside / old.name)
        for path in (*companions, result):
            _flush(path)
            path.rename(self.destination.parent / path.name)

    def reject(self, result: Path) -> Path:
        """Keeps a result that failed verification for inspection; returns where it lies."""
        kept = self.destination.parent / _REJECTED
        kept.mkdir(exist_ok=True)
        for path in sorted(result.parent.iterdir()):
            target = kept / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.rename(target)
        return kept / result.name


@contextmanager
def workspace(destination: Path, *, force: bool) -> Iterator[Workspace]:
    """A workspace beside `destination`, gone when the block ends however it ends.

    Raises:
        UsageError: the destination exists and `force` is not set.
        ResourceError: the folder cannot be written, or the disk is full.
    """
    if destination.exists() and not force:
        raise _exists(destination)
    if destination.is_dir() and not manifest_of(destination).exists():
        raise UsageError(
            f"{destination} is a folder that convkit did not make, so it is not replaced.",
            hint=f"Write into it:  -o {destination / 'NAME'}",
        )
    with _disk_errors(destination), _parents_of(destination):
        _remove_abandoned(destination.parent)
        folder, lock = _locked_folder(destination.parent)
        try:
            yield Workspace(folder, destination, force)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


@contextmanager
def _parents_of(destination: Path) -> Iterator[None]:
    """Makes the folders above a destination; those it made go again if the block fails."""
    made = [folder for folder in destination.parents if not folder.exists()]
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: something else was written meanwhile
            for folder in made:
                folder.rmdir()
        raise


def manifest_of(destination: Path) -> Path:
    """Where the manifest of an artifact at `destination` lies."""
    return destination.with_name(destination.name + MANIFEST_SUFFIX)


def _exists(destination: Path) -> UsageError:
    return UsageError(
        f"{destination} exists already.",
        hint="Replace it:  --force      or write elsewhere:  -o PATH",
    )


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one process at a time publish into a folder: files of two results never mix."""
    descriptor = None
    with suppress(ImportError, OSError):  # Windows, and file systems without locks
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def companions_of(destination: Path) -> tuple[Path, ...]:
    """Files that belong to an artifact at `destination`: data, Modelfile, ranking and manifest."""
    beside = (destination.with_name(destination.name + ending) for ending in _BESIDE)
    return (*beside, manifest_of(destination))


@contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """Turns "no space" and "may not write" from any depth into a ResourceError."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"The disk that holds {destination.parent} is full.",
                why="The unfinished result was removed; nothing else was touched.",
                hint="Free some space, or choose another place:  -o PATH",
            ) from cause
        if cause.errno in _UNWRITABLE and _is_about(cause, destination):
            raise ResourceError(
                f"{destination} cannot be written.",
                why=str(cause),
                hint="Choose a place you may write to:  -o PATH",
            ) from cause
        raise


def _is_about(error: OSError, destination: Path) -> bool:
    """Whether the path in a system's error is the destination, above it, or in its folder."""
    if error.filename is None:
        return True
    path = Path(os.fsdecode(error.filename))
    return path in destination.parents or destination.parent in path.parents


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a failure, or what caused it, was a disk without space.

    Frameworks wrap the system's error in types of their own and keep only its text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder, locked for as long as this process lives where the system has locks.

    It gets its final name only once locked, so a neighbour never takes it for an abandoned one.
    """
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=parent))
    folder = parent / unlocked.name.replace(_UNLOCKED_PREFIX, _PREFIX, 1)
    lock = None
    with suppress(ImportError):  # Windows has no fcntl: abandoned folders stay
        import fcntl

        lock = os.open(unlocked / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(folder)
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    """Removes workspaces whose process is gone: their lock can be taken."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def _flush(path: Path) -> None:
    """Makes a file's bytes durable before its name is."""
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file():
                _flush(inner)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
