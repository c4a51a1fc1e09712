"""A folder that keeps every finished point, so that a loop killed anywhere goes on where it stopped."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier._errors import EspalierError
from espalier.checkpoint.atomic import atomic, made
from espalier.processes import from_main, is_main
from espalier.train.state import differences

SPEC, POINTS = "spec.json", "points.jsonl"


class Records:
    """Numbered records of one measurement, on disk as they are made.

    `spec.json` says what is measured; `points.jsonl` gets one line a record, flushed and synced. A line that a
    kill left half written is dropped at the next start. Of several processes the main one reads and writes.

    Args:
        folder: made if need be; None keeps the records in memory only.
        spec: what is measured (plain values); a folder of another spec is refused.

    Raises:
        EspalierError: the folder holds another measurement (names what differs), or a file is broken.
    """

    def __init__(self, folder: Path | None, spec: Mapping[str, Any]) -> None:
        self.folder, self._done = folder, dict[int, dict[str, Any]]()
        if folder is None:
            return
        self._done = from_main(lambda: _opened(folder, json.loads(json.dumps(spec))))

    def __len__(self) -> int:
        return len(self._done)

    def get(self, index: int) -> dict[str, Any] | None:
        """The record of that number, if it is done."""
        return self._done.get(index)

    def add(self, index: int, record: dict[str, Any]) -> None:
        """Keep a record; it is on the disk when this returns."""
        self._done[index] = record
        if self.folder is None or not is_main():
            return
        with open(self.folder / POINTS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"index": index, **_plain(record)}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _opened(folder: Path, spec: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What a folder holds of this measurement; the folder is made if need be."""
    if folder.exists() and not folder.is_dir():
        raise EspalierError(f"{folder} is a file; the points are kept in a folder")
    made(folder)
    _check_spec(folder, spec)
    return _read(folder / POINTS)


def _check_spec(folder: Path, spec: dict[str, Any]) -> None:
    path = folder / SPEC
    if not path.exists():
        if (folder / POINTS).exists():
            raise EspalierError(f"{folder} holds points but no {SPEC}: use another folder")
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EspalierError(f"{path} cannot be read ({error}): use another folder") from None
    if differing := differences(before, spec):
        raise EspalierError(
            f"{folder} holds another measurement: {'; '.join(differing[:3])}. Use another folder, or remove this "
            "one to start again"
        )


def _read(path: Path) -> dict[int, dict[str, Any]]:
    """The records of complete lines; a last line without its end is cut off."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with atomic(path) as temporary:
            temporary.write_text(whole, encoding="utf-8")
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            found[int(record.pop("index"))] = record
        except (ValueError, KeyError, AttributeError, TypeError):
            raise EspalierError(
                f"{path} is broken in line {number}; remove that line to measure it again"
            ) from None
    return found


def _plain(value: Any) -> Any:
    """A number that is not finite, which JSON does not know, becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
