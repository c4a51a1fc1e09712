"""How a bench is shown."""

from typing import TYPE_CHECKING

from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from espalier.runtime.bench import Bench, Row


def as_json(result: "Bench") -> str:
    """The whole bench as one JSON object."""
    return dump(result.to_dict())


def as_text(result: "Bench") -> str:
    """The table, what remains of the layers, reasons, and what to deploy."""
    machine = result.machine
    data = any(row.evaluation is not None for row in result.rows)
    heads = [
        "way",
        *(f"batch {batch}: ms (median, spread)" for batch in result.batches),
        "times dense",
        "file",
        "peak memory",
        "difference",
        *(["accuracy", "agreement"] if data else []),
    ]
    dense = result.rows[0]
    rows = [_cells(row, dense, result.batches, data) for row in result.rows]
    reasons = [
        f"{row.name}, batch {', '.join(str(b) for b, found in row.reasons.items() if found == why)}: not run: {why}"
        for row in result.rows
        for why in dict.fromkeys(row.reasons.values())
    ]
    zeros = [
        f"{row.name}: all zeros survive"
        if not row.lost_zeros
        else f"{row.name}: {row.lost_zeros:,} zeros are lost"
        for row in result.rows
        if row.lost_zeros is not None
    ]
    measured = [
        f"{row.name}: accuracy on {e.n:,} examples; 95 % interval {percent(e.interval[0], 2)} to "
        f"{percent(e.interval[1], 2)}"
        for row in result.rows[:1]
        if (e := row.evaluation) is not None
    ]
    doubtful = [f"batch {batch}: {why}" for batch, found in result.doubts.items() for why in found]
    layers = [
        [
            x.name,
            "×".join(map(str, x.shape)),
            f"{x.dense_macs:,}",
            f"{x.macs:,}",
            _share(x.macs, x.dense_macs),
            x.reason,
        ]
        for x in result.layers
    ]
    if layers:
        whole, rest = (sum(getattr(x, name) for x in result.layers) for name in ("dense_macs", "macs"))
        layers.append(["all", "", f"{whole:,}", f"{rest:,}", _share(rest, whole), ""])
    return "\n".join(
        [
            f"{machine.processor}, {machine.vectors}, torch {machine.torch}, {machine.threads} "
            f"thread{'' if machine.threads == 1 else 's'}; {percent(result.sparsity)} zeros in the layers below",
            "",
            table(heads, rows, numeric=tuple(range(1, len(heads)))),
            *(f"note: {row.name}: {row.note}" for row in result.rows if row.note),
            *(f"note: {line}" for line in [*measured, *zeros, *reasons]),
            *(f"doubt: {line}" for line in doubtful),
            "",
            table(
                (
                    "layer",
                    "weight",
                    "dense MACs",
                    "nonzero MACs",
                    "remain",
                    f"decision at batch {result.batches[0]}",
                ),
                layers,
                numeric=(2, 3, 4),
            ),
            "",
            result.verdict,
        ]
    )


def _cells(row: "Row", dense: "Row", batches: tuple[int, ...], data: bool) -> list[str]:
    times = [
        f"{t.minimum * 1e3:.3g} ({t.median * 1e3:.3g}, {percent(t.spread, 0)})"
        if (t := row.timings.get(b))
        else "not run"
        for b in batches
    ]
    factors = [
        f"{dense.timings[b].minimum / row.timings[b].minimum:.2f}" if b in row.timings else "–"
        for b in batches
    ]
    return [
        row.name,
        *times,
        " / ".join(factors),
        "–" if row.bytes is None else size(row.bytes),
        "–" if row.memory is None else size(row.memory),
        "–" if row.difference is None else f"{row.difference:.1e}",
        *(
            [
                percent(row.evaluation.accuracy, 2) if row.evaluation else "–",
                percent(row.similarity.agreement, 2) if row.similarity else "–",
            ]
            if data
            else []
        ),
    ]


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "–"
