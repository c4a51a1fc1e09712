"""How an export is shown."""

from typing import TYPE_CHECKING

from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from espalier.export import Converted, Exported


def as_json(result: "Exported", source_bytes: int) -> str:
    """The whole record as one JSON object."""
    return dump(result.to_dict() | {"source_bytes": source_bytes})


def as_text(result: "Exported", source_bytes: int) -> str:
    """Sizes, the check, the tensors, and what one should be told."""
    apart = result.difference
    sizes = f"{result.path}: {size(result.bytes)}; the same network with dense weights: {size(result.dense_bytes)}"
    return "\n".join(
        [
            f"{sizes} ({percent(result.bytes / result.dense_bytes)}); the source: {size(source_bytes)}",
            f"onnxruntime beside the module, batches of {' and '.join(map(str, apart.rows))}: largest difference "
            f"{apart.absolute:.2g} absolute, {apart.relative:.2g} of the largest output (allowed {apart.tolerance:g})",
            f"opset {result.opset}; inputs {_axes(result.inputs)}; outputs {_axes(result.outputs)}",
            "",
            table(
                ("tensor", "shape", "zeros", "dense", "stored", "as"),
                [
                    (
                        tensor.name,
                        "×".join(map(str, tensor.shape)),
                        percent(tensor.zeros / tensor.entries),
                        size(tensor.dense_bytes),
                        size(tensor.bytes),
                        "sparse" if tensor.sparse else "dense",
                    )
                    for tensor in result.tensors
                    if len(tensor.shape) > 1
                ],
                numeric=(2, 3, 4),
            ),
            *(["", *(f"note: {note}" for note in result.notes)] if result.notes else []),
        ]
    )


def converted_json(result: "Converted") -> str:
    """The record as one JSON object."""
    return dump(result.to_dict())


def converted_text(result: "Converted") -> str:
    """One line, and what one should be told."""
    return "\n".join(
        [
            f"{result.path}: {size(result.bytes)}, from {size(result.source_bytes)}; "
            f"the tensors take {size(result.dense_bytes)} when dense",
            *(f"note: {note}" for note in result.notes),
        ]
    )


def _axes(values: "dict[str, tuple[int | str, ...]]") -> str:
    return ", ".join(f"{name} ({', '.join(map(str, sizes))})" for name, sizes in values.items())
