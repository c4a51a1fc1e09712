"""Write a file or a folder completely or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from espalier._errors import CheckpointError


def made(folder: Path) -> Path:
    """The folder, made with those above it where it was missing.

    Raises:
        CheckpointError: the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be made a folder: {_reason(error)}; give another one"
        ) from None
    return folder


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write a file so that it is there completely or not at all.

    Yields a temporary path in the same folder. When the block ends well the temporary file is flushed to the
    disk and renamed to `path`; when it raises, the temporary file is removed and what was at `path` is
    untouched.

    Raises:
        CheckpointError: the system refuses to write (disk full, no permission, no such folder).
    """
    target = file_target(path)
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: {_reason(error)}; {_untouched(target)}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Write a folder so that it is there completely or not at all.

    Args:
        path: the folder to make; an existing one is replaced as a whole.
        check: raises if the existing folder holds anything that must not go. Asked before the work begins
            and again right before the folder is replaced: others may have written into it meanwhile.

    Yields:
        A temporary folder beside it.

    Raises:
        CheckpointError: the folder exists and may not be replaced, or the system refuses to write.
    """
    target = folder_target(path)
    if target.exists():
        check(target)
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.tmp")
    replaced = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if target.exists():
            check(target)
            os.rename(target, replaced)
        os.rename(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        _put_back(replaced, target)
        raise CheckpointError(f"{path}: {_reason(error)}; {_untouched(target)}") from None
    finally:
        _put_back(replaced, target)  # an interrupt may come between the two renames
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def save_torch(value: object, path: Path) -> None:
    """`torch.save`, but what the system refuses is an OSError, not the RuntimeError that torch makes of it."""
    with open(path, "wb") as file:
        writer = _Writer(file)
        try:
            torch.save(value, writer)  # type: ignore[arg-type]
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise


class _Writer:
    """A file that remembers why it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def file_target(path: str | Path, read: Iterable[Path] = ()) -> Path:
    """Where a file of this name really goes: through links instead of replacing them.

    Args:
        path: the name of the file to write.
        read: files that are read meanwhile, and must stay.

    Raises:
        CheckpointError: no file can be written there, or it is one of those that are read.
    """
    target = _resolved(path)
    if target.is_dir():
        raise CheckpointError(f"{path}: is a folder, a file name was needed")
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{path}: is a device or a pipe, which must not be replaced; give a file name")
    if any(same_place(target, file) for file in read):
        raise CheckpointError(f"{path}: is the file that is read; give another name, so that it stays")
    return target


def folder_target(path: str | Path) -> Path:
    """Where a folder of this name really goes: through links instead of replacing them.

    Raises:
        CheckpointError: no folder can be written there.
    """
    target = _resolved(path)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{path}: is a file, but a folder is written; give the name of a folder")
    return target


def same_place(a: Path, b: Path) -> bool:
    """Whether two names lead to the same file or folder, or would."""
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them is not there
        return a.resolve() == b.resolve()


def _resolved(path: str | Path) -> Path:
    try:
        target = Path(path).resolve()
        if not target.parent.is_dir():
            raise CheckpointError(f"{path}: the folder {target.parent} does not exist; make it first")
        target.exists()  # raises for names that the file system cannot have
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path}: cannot be written ({reason})") from None
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: no permission to write into {target.parent}; give another place")
    return target


def _put_back(replaced: Path, target: Path) -> None:
    if replaced.exists() and not target.exists():
        os.rename(replaced, target)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({error.strerror})"
    return f"cannot be written ({error.strerror or error})"


def _untouched(target: Path) -> str:
    return "the one that was there is untouched" if target.exists() else "nothing was left behind"


def _sync(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    # A rename is durable once its folder is. Some systems cannot open folders and need no more than this.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
