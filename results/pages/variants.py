"""What separates target gRDA from ST-3, and which options of it help: the study of variants."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from results._common import summary
from results.pages._shared import Chapter, Table, markdown, percent
from results.pages.compared import OURS, cell, found, labels

Rows = Sequence[dict[str, Any]]


def variants(result: dict[str, Any]) -> list[str]:
    """The forms of target gRDA first, in the order of the study."""
    named = list(dict.fromkeys(row["label"] for row in result["rows"]))
    return sorted(named, key=lambda label: not label.startswith(OURS))


def taught(result: dict[str, Any]) -> bool:
    """Whether the study is of runs with a teacher."""
    return all(row["teacher"] for row in result["rows"])


def rows_of(result: dict[str, Any]) -> Table:
    """Accuracy on the validation and on the test split; with a teacher the training loss, at one sparsity the ramp."""
    rows, teacher, least = result["rows"], taught(result), min(result["sparsities"])
    head = [
        "validation / test accuracy % (runs)",
        *(f"{percent(s, 0)} % zeros" for s in result["sparsities"]),
    ]
    if teacher:
        head.append(f"training loss of each epoch, {percent(least, 0)} % zeros")
    one = len(result["sparsities"]) == 1
    if one:
        head.append("zeros after each epoch %")
    table = [head]
    for label in variants(result):
        cells = [both(found(rows, label, s, teacher)) for s in result["sparsities"]]
        last = found(rows, label, least, teacher)
        table.append([label, *cells, *([losses(last)] if teacher else []), *([ramp(last)] if one else [])])
    return table


def losses(row: dict[str, Any] | None) -> str:
    if row is None or not row["n"]:
        return "–"
    return ", ".join(f"{loss:.2f}" for loss in row["by_epoch"]["train_loss"][1:])


def ramp(row: dict[str, Any] | None) -> str:
    if row is None or not row["n"]:
        return "–"
    return ", ".join(percent(sparsity) for sparsity in row["by_epoch"]["sparsity"][1:])


def both(row: dict[str, Any] | None) -> str:
    said = cell(row)
    return said if row is None or not row["n"] else f"{percent(row['validation'])} / {said}"


def chosen(result: dict[str, Any], sparsity: float) -> dict[str, Any] | None:
    """The form of target gRDA that is best on the validation split."""
    teacher = taught(result)
    forms = [label for label in labels(result, teacher) if label.startswith(OURS)]
    ours = [found(result["rows"], label, sparsity, teacher) for label in forms]
    done = [row for row in ours if row is not None and row["n"]]
    return max(done, key=lambda row: float(row["validation"]), default=None)


def gained(result: dict[str, Any], sparsity: float) -> str:
    """What the form that validation chooses gains on the test split over the default, paired by seed."""
    best, default = chosen(result, sparsity), found(result["rows"], OURS, sparsity, taught(result))
    at = f"at {percent(sparsity, 0)} %"
    if best is None or default is None or not default["n"]:
        return f"{at} nothing has run"
    if best is default:
        return f"{at} the default"
    pairs = [best["by_seed"][s] - a for s, a in default["by_seed"].items() if s in best["by_seed"]]
    if not pairs:
        return f"{at} {best['label']}"
    gain = summary(pairs)
    ends = f"95 % interval {percent(gain['low'])} to {percent(gain['high'])}, " if "low" in gain else ""
    return (
        f"{at} {best['label']}, by {percent(gain['mean'])} points of test accuracy ({ends}n = {len(pairs)})"
    )


LENET5 = (
    "ST-3 differs from target gRDA in that it rescales its units, ends its ramp at half of the run and leaves the mask "
    "open to the end; here each is taken alone.",
    "The default ended its ramp at 0.9 until this study; `end` and `rescale` are options of `target-grda`. With batch "
    "norm rescaling costs where labels teach: see ResNet-20 above. The steep ramp (power 6), which gains on a trained "
    "ResNet-20, is a risk from scratch: in one seed it outran the network, which never left chance at 95 %.",
)
RESNET20 = (
    "At 98 % zeros the paper's law, its c calibrated, was ahead of target gRDA. It differs in its training (no momentum, no "
    "decay, another schedule), in the shape and the end of its ramp, and in thresholding norms and biases. Each alone.",
    "It is the shape: the paper's threshold has almost all of its zeros after one epoch of three, the cubic ramp takes two. "
    "A steep ramp (`end: 0.9, schedule: 6`: 1 - (1 - p)^6 instead of the cube) closes the gap; the table of all methods above "
    "has it at every sparsity, and gradual magnitude with the same ramp. The paper's training, an earlier end, half the rate "
    "or no decay do not help the cubic ramp, nor do thresholded norms and biases help the paper's law. The cubic ramp stays "
    "the default: validation does not prefer the steep one at 90 %, and from scratch it is a risk (LeNet5, above).",
)
TAUGHT = (
    "With a teacher target gRDA gains less than other methods do. A soft threshold takes as much from each weight that it "
    "keeps as from those that it prunes, all along the ramp, which moves the function away from the one that is to be "
    "kept; rescaling gives each unit back the l1 norm that was taken. Taken alone: rescaling, the end of the ramp, the "
    "rate.",
    "The losses are means over an epoch, towards teacher and labels: of each pair that differs in it alone, the rescaled one "
    "fits better. STR, whose soft threshold gives pruned weights no gradient, fits as well without: what grows back under "
    "the teacher's larger gradients may be the other part. What is left to gradual magnitude we have not explained. At 98 % "
    "the two rescaled forms lose every weight of a layer and end at chance, and the same two without it do not.",
)


def section(said_before: str, said_after: str, result: dict[str, Any]) -> str:
    said = "; ".join(gained(result, s) for s in result["sparsities"])
    return "\n\n".join(
        [
            f"{result['title']}: {result['runs']} of {result['runs'] + result['missing']} runs done. {said_before} "
            'Ramps of target gRDA end at 0.7 of the run; "to 0.9": at nine tenths, "to 0.5": at half.',
            f"**Forms of target gRDA that the validation split prefers:** {said}.",
            markdown(rows_of(result)),
            f"Bold: not told from the best test accuracy at that sparsity. {said_after}",
        ]
    )


CHAPTERS = [
    Chapter(f"What target gRDA lacks, {title}", f"compared-{name}", partial(section, *texts))
    for name, title, texts in (
        ("lenet5-variants", "LeNet5 on MNIST", LENET5),
        ("resnet20-variants", "ResNet-20 at 98 % zeros", RESNET20),
        ("resnet20-taught", "ResNet-20 with a teacher", TAUGHT),
    )
]
