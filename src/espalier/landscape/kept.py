"""Eigenpairs on disk: products are dear, so a command that was interrupted, or the next one, takes them from there."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from espalier._errors import EspalierError
from espalier.checkpoint import save_checkpoint
from espalier.checkpoint.atomic import made
from espalier.landscape.operators import AbstractOperator
from espalier.landscape.records import Records
from espalier.landscape.spectrum import Eigenpairs
from espalier.processes import from_main, is_main
from espalier.train.state import differences

NAME = "eigenpairs.safetensors"
_SOME = 1000  # entries of a vector by which it is known again
_SAME = 1e-2  # of their length


def eigenpairs_once(
    folder: Path | None,
    spec: Mapping[str, Any],
    operator: AbstractOperator,
    make: Callable[[AbstractOperator], Eigenpairs],
) -> Eigenpairs:
    """The eigenpairs kept in a folder, or made now and kept.

    Until all of them have converged the products are kept instead, one vector each: an iteration that was interrupted,
    or may take more products now, goes on where it stopped.

    Args:
        folder: made if need be; None keeps nothing.
        spec: what they are of (plain values); a folder with other ones is refused.
        operator: whose eigenpairs; says where their vectors shall be.
        make: computes them from the operator it is given.

    Raises:
        EspalierError: the folder holds eigenpairs of something else (names what differs), or a file is broken.
    """
    if folder is None:
        return make(operator)
    wanted = json.loads(json.dumps(spec))
    pairs = from_main(lambda: _read(folder, wanted))
    if pairs is None:
        products = folder / "products"
        Records(products, wanted)  # refuses products of something else
        pairs = make(_Kept(operator, products))
        if is_main() and all(pairs.converged):
            _write(folder, wanted, pairs)
            shutil.rmtree(products)
    return replace(pairs, vectors=pairs.vectors.to(operator.device))


class _Kept(AbstractOperator):
    """An operator whose products are on disk in the order they are asked for.

    An iteration that starts again asks for the same ones in the same order. Some entries of each vector are kept beside
    its product; where another vector is asked for, the product is made anew.
    """

    def __init__(self, operator: AbstractOperator, folder: Path) -> None:
        self._operator, self._folder = operator, folder
        self.dimension, self.dtype, self.device = operator.dimension, operator.dtype, operator.device
        self.products, self.progress = 0, None

    def _product(self, v: Tensor) -> Tensor:
        path = self._folder / f"{self.products}.safetensors"
        some = v[:: max(1, self.dimension // _SOME)].double().cpu()
        kept = from_main(lambda: _read_product(path, some))
        if kept is not None:
            if self._operator.progress is not None:
                self._operator.progress()
            return kept.to(self.device)
        found = self._operator @ v
        if is_main():
            save_checkpoint(path, {"product": found.cpu(), "vector": some}, {})
        return found


def _read_product(path: Path, some: Tensor) -> Tensor | None:
    """The product on disk, if it is there and with this vector, but for rounding."""
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        return None
    same = float((kept["vector"] - some).norm()) <= _SAME * float(some.norm())
    return kept["product"] if same else None


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
    made(folder)
    rest = {key: getattr(pairs, key) for key in ("tolerance", "products", "dimension", "which")}
    tensors = {
        "values": pairs.values,
        "vectors": pairs.vectors.cpu().contiguous(),
        "residuals": pairs.residuals,
    }
    save_checkpoint(folder / NAME, tensors, {"spec": json.dumps(spec), "rest": json.dumps(rest)})
