"""A run on disk: `state.pt` (to resume), `log.jsonl` (to read) and, where it failed, `failed.json`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError, Failed, first_line
from espalier.checkpoint.atomic import atomic, made, save_torch
from espalier.train.history import Epoch

STATE, LOG, FAILED = "state.pt", "log.jsonl", "failed.json"


def digest_of(spec: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name a spec; independent of the order of its keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits that name tensors: names, dtypes, shapes and every byte."""
    state = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name},{tensor.dtype},{tuple(tensor.shape)};".encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state.pt`: complete under its name, or not at all."""
    made(folder)
    with atomic(folder / STATE) as temporary:
        save_torch(state, temporary)


def load_state(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last complete state of the same run, or None where there is none yet.

    Raises:
        EspalierError: the folder belongs to another run (names what differs), or the file is broken.
        Failed: the run failed before.
    """
    if not (folder / STATE).exists():
        return None
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        before = state["spec"]
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise EspalierError(
            f"{folder / STATE} cannot be read ({first_line(error)}): remove it to start again"
        ) from error
    differing = differences(before, spec)
    if differing:
        raise EspalierError(
            f"{folder} holds another run: {'; '.join(differing)}. "
            "Use another folder, or remove this one to start again"
        )
    if (folder / FAILED).exists():
        reason = json.loads((folder / FAILED).read_text())["reason"]
        raise Failed(
            f"the run in {folder} failed: {reason}. Use another folder, or remove this one to start again"
        )
    return dict(state)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two specs, field by field: "lr was 0.1 and is 0.05"."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key, "default"), now.get(key, "default")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b)
        elif a != b:
            found.append(f"{key} was {a} and is {b}")
    return found


def write_log(folder: Path, epochs: Sequence[Epoch]) -> None:
    """Write `log.jsonl` anew, one line per epoch: after a resume no line is double or missing."""
    with atomic(folder / LOG) as temporary:
        Path(temporary).write_text("".join(json.dumps(e.record()) + "\n" for e in epochs))


def mark_failed(folder: Path, epoch: int, reason: str) -> None:
    """Write `failed.json`; the last good state stays beside it."""
    made(folder)
    with atomic(folder / FAILED) as temporary:
        Path(temporary).write_text(json.dumps({"epoch": epoch, "reason": reason}) + "\n")
