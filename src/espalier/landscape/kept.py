"""Eigenpairs on disk: products are dear, so a command that was interrupted, or the next one, takes them from there."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from espalier._errors import EspalierError
from espalier.checkpoint import save_checkpoint
from espalier.landscape.processes import from_main, is_main
from espalier.landscape.spectrum import Eigenpairs
from espalier.train.state import differences

NAME = "eigenpairs.safetensors"


def eigenpairs_once(
    folder: Path | None, spec: Mapping[str, Any], make: Callable[[], Eigenpairs], device: torch.device
) -> Eigenpairs:
    """The eigenpairs kept in a folder, or made now and kept.

    Args:
        folder: made if need be; None keeps nothing.
        spec: what they are of (plain values); a folder with other ones is refused.
        make: computes them.
        device: where their vectors shall be.

    Raises:
        EspalierError: the folder holds eigenpairs of something else (names what differs), or a file is broken.
    """
    if folder is None:
        return make()
    wanted = json.loads(json.dumps(spec))
    pairs = from_main(lambda: _read(folder, wanted))
    if pairs is None:
        pairs = make()
        if is_main():
            _write(folder, wanted, pairs)
    return replace(pairs, vectors=pairs.vectors.to(device))


def _read(folder: Path, wanted: dict[str, Any]) -> Eigenpairs | None:
    if folder.exists() and not folder.is_dir():
        raise EspalierError(f"{folder} is a file; eigenpairs are kept in a folder")
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            before, rest = json.loads(metadata["spec"]), json.loads(metadata["rest"])
            values, vectors, residuals = (file.get_tensor(key) for key in ("values", "vectors", "residuals"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise EspalierError(f"{path} cannot be read ({error}): remove it to compute it again") from None
    if differing := differences(before, wanted):
        raise EspalierError(
            f"{folder} holds eigenpairs of something else: {'; '.join(differing[:3])}. Use another folder, or "
            "remove this one to start again"
        )
    return Eigenpairs(values, vectors, residuals, **rest)


def _write(folder: Path, spec: dict[str, Any], pairs: Eigenpairs) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rest = {key: getattr(pairs, key) for key in ("tolerance", "products", "dimension", "which")}
    tensors = {
        "values": pairs.values,
        "vectors": pairs.vectors.cpu().contiguous(),
        "residuals": pairs.residuals,
    }
    save_checkpoint(folder / NAME, tensors, {"spec": json.dumps(spec), "rest": json.dumps(rest)})
