"""Write a file or a folder completely or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from espalier._errors import CheckpointError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write a file so that it is there completely or not at all.

    Yields a temporary path in the same folder. When the block ends well the temporary file is flushed to the
    disk and renamed to `path`; when it raises, the temporary file is removed and what was at `path` is
    untouched.

    Raises:
        CheckpointError: the system refuses to write (disk full, no permission, no such folder).
    """
    target = _target(Path(path))
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
def atomic_folder(path: str | Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Write a folder so that it is there completely or not at all.

    Args:
        path: the folder to make. An existing one is replaced only if it is empty or `replaceable` says so.
        replaceable: tells whether a folder that is not empty may go.

    Yields:
        A temporary folder beside it.

    Raises:
        CheckpointError: the folder exists and may not be replaced, or the system refuses to write.
    """
    target = Path(path).resolve()
    _check_parent(target)
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or replaceable(target))):
        raise CheckpointError(
            f"{path}: exists and was not written by Espalier; remove it or give another name"
        )
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.tmp")
    replaced = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if target.exists():
            os.rename(target, replaced)
        os.rename(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)
        raise CheckpointError(f"{path}: {_reason(error)}; {_untouched(target)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _target(path: Path) -> Path:
    target = path.resolve()  # write through a symbolic link instead of replacing it
    if target.is_dir():
        raise CheckpointError(f"{path}: is a folder, a file name was needed")
    _check_parent(target)
    return target


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: the folder {target.parent} does not exist; make it first")


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
    # A rename is durable once its folder is; some systems cannot open folders, and there it is enough as it
    # is.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
