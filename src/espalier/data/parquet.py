"""Image data sets as the Hugging Face hub stores them: parquet files with image bytes and a class label."""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier._errors import EspalierError, listing
from espalier.data._base import (
    IMAGENET,
    Augmentation,
    Dataset,
    Normalization,
    Options,
    data_folder,
    in_memory,
    split_rows,
)

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
_THREADS = 4


def parquet(folder: str | Path, options: Options | None = None, *, data: str | Path | None = None) -> Dataset:
    """Load a folder with `train*.parquet` and `test*.parquet` (or `validation*`), directly or under `data/`.

    Each file has a column `img` or `image` (a struct with the encoded `bytes`) and `label`. Default
    normalization: `IMAGENET` for color, none for gray. Augmentation: crop with padding 4 and mirror images
        for color, crop with
    padding 2 for gray. The data set is called by the folder's name.

    Args:
        folder: the folder, or its name inside the data folder.
        options: normalization, validation fraction, limit (only the images needed are decoded).
        data: the data folder; None takes `ESPALIER_DATA`.

    Raises:
        EspalierError: folder, files or columns missing, or images of different sizes.
    """
    options = options or Options()
    path = Path(folder)
    if not path.is_dir():
        path = data_folder(data) / folder
    train, test = _table(path, ("train",)), _table(path, ("test", "validation", "valid"))
    rows = split_rows(train.num_rows, test.num_rows, options)
    needed = torch.cat(rows[:2])
    images = decode([*_bytes(train, needed), *_bytes(test, rows[2])])
    labels = [torch.from_numpy(_labels(t)) for t in (train, test)]
    # Only the decoded images are kept, so the rows of the splits become positions among them.
    own, first = torch.arange(len(images)), len(rows[0])
    compact = (own[:first], own[first : len(needed)], own[: len(rows[2])])
    color = images.shape[1] == 3
    return in_memory(
        path.name,
        (images[: len(needed)], labels[0][needed]),
        (images[len(needed) :], labels[1][rows[2]]),
        compact,
        classes=_classes(train, labels[0]),
        source=f"parquet folder {path.name}",
        options=options,
        normalization=IMAGENET if color else Normalization(),
        augmentation=Augmentation(4, True) if color else Augmentation(2, False),
    )


def hub(name: str, options: Options | None = None) -> Dataset:
    """Load an image data set of the Hugging Face hub by name, with the package `datasets`.

    Args:
        name: for instance "uoft-cs/cifar10".
        options: as in `parquet`.

    Raises:
        EspalierError: `datasets` is not installed, or the data set cannot be had.
    """
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise EspalierError(
            f"hub data set {name!r} needs the package `datasets` (pip install datasets); without it download "
            f"the parquet "
            f"files and give their folder"
        ) from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen kinds
        raise EspalierError(
            f"hub data set {name!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "espalier" / name.replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    for split in found:
        found[split].to_parquet(folder / f"{split}.parquet")
    return parquet(folder, options)


def decode(encoded: Sequence[bytes]) -> Tensor:
    """Encoded images to uint8 (N, C, H, W); C is 1 if every image is gray, otherwise 3.

    Raises:
        EspalierError: an image is broken, or the sizes differ.
    """
    if not encoded:
        raise EspalierError("the data set has no images")
    with ThreadPoolExecutor(_THREADS) as pool:
        arrays = list(pool.map(_decode_one, encoded, chunksize=256))
    if len({a.shape[:2] for a in arrays}) > 1:
        some = listing(f"{a.shape[1]}x{a.shape[0]}" for a in {a.shape[:2]: a for a in arrays}.values())
        raise EspalierError(f"images of different sizes ({some}): resize them, or use an image folder")
    if len({a.ndim for a in arrays}) > 1:
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _decode_one(encoded: bytes) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except OSError as error:
        raise EspalierError(f"an image of the data set cannot be decoded: {error}") from None


def _table(folder: Path, prefixes: tuple[str, ...]) -> Any:
    """All files of the first split that exists, as one table."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise EspalierError("parquet data sets need pyarrow: pip install 'espalier[train]'") from None
    for prefix in prefixes:
        files = sorted([*folder.glob(f"{prefix}*.parquet"), *folder.glob(f"data/{prefix}*.parquet")])
        if files:
            try:
                return pa.concat_tables(pq.read_table(file) for file in files)
            except (pa.ArrowException, OSError) as error:
                raise EspalierError(
                    f"{folder} cannot be read as parquet: {str(error).splitlines()[0]}"
                ) from None
    raise EspalierError(
        f"{folder} has no {' or '.join(f'{p}*.parquet' for p in prefixes)}: give the folder of a Hugging "
        f"Face image data "
        f"set, or set ESPALIER_DATA or --data-root to the folder that holds it"
    )


def _column(table: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise EspalierError(
        f"parquet data need a column {' or '.join(names)}; found {listing(table.column_names)}"
    )


def _bytes(table: Any, rows: Tensor) -> list[bytes]:
    column = table.column(_column(table, IMAGE_COLUMNS)).take(rows.numpy())
    return [item["bytes"] if isinstance(item, dict) else item for item in column.to_pylist()]


def _labels(table: Any) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.array(table.column(_column(table, LABEL_COLUMNS)).to_numpy(), dtype=np.int64)


def _classes(table: Any, labels: Tensor) -> tuple[str, ...]:
    """Names from the schema's `huggingface` metadata where it has them."""
    info = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = info.get("info", {}).get("features", {}).get(_column(table, LABEL_COLUMNS), {})
    names = feature.get("names") or map(str, range(int(labels.max()) + 1))
    return tuple(names)
