"""Draw the results and write them up: results/*.png, results/README.md, and the table of the README.

    python -m results.figures

Reads the JSON files of this folder and nothing else. A result that is not there is said to be missing.
"""

import re

from results.pages import (
    benchmarks,
    calibration_error,
    compared,
    directional_small,
    gpu,
    landscape,
    lenet5_mnist,
    minilm,
    minilm_layerwise,
    resnet_cifar,
    runtime,
    training,
    variants,
)
from results.pages._shared import HERE, load, made, markdown

README = HERE.parent / "README.md"
CHAPTERS = [
    lenet5_mnist.CHAPTER,
    *resnet_cifar.CHAPTERS,
    minilm.CHAPTER,
    *compared.CHAPTERS,
    *variants.CHAPTERS,
    *training.CHAPTERS,
    calibration_error.CHAPTER,
    minilm_layerwise.CHAPTER,
    directional_small.CHAPTER,
    *landscape.CHAPTERS,
    runtime.CHAPTER,
    benchmarks.CHAPTER,
    gpu.CHAPTER,
]


def write_up() -> str:
    """results/README.md."""
    parts = [
        "# Results",
        "<!-- Written by results/figures.py. -->",
        "Every number here was made by the command beside it and is stored, with each run, in the JSON file of the same "
        "name. The test split is read once per point and chooses nothing. `make figures` draws and writes this page anew.",
    ]
    for chapter in CHAPTERS:
        parts += [f"## {chapter.title}"]
        if chapter.name is None:
            parts += [chapter.section(None)]
        else:
            result = load(chapter.name)
            parts += ["Not run."] if result is None else [made(result), chapter.section(result)]
    return "\n\n".join(parts) + "\n"


def readme_table() -> str:
    """The one table of the README."""
    lenet, resnet, study = load("lenet5_mnist"), load("resnet20-prepared"), load("compared-resnet20")
    parts = []
    if lenet:
        head, *rows = lenet5_mnist.lenet_rows(lenet)
        parts.append(markdown([head, *(row for row in rows if row[0].startswith(("utopia", "safe")))]))
    if resnet:
        wanted = ("utopia", "safe (paper)", "effective", "*measured: 1 point")
        head, *rows = resnet_cifar.rule_rows(resnet)
        head = ["ResNet-20 on cifar10_jpeg", *head[1:]]
        parts.append(markdown([head, *(row for row in rows if row[0].startswith(wanted))]))
    if study:
        head, *rows = compared.accuracy_rows(study, compared.core(study))
        head = ["ResNet-20, three epochs from the trained network: accuracy %", *head[1:]]
        parts.append(markdown([head, *rows]))
    return "\n\n".join(parts)


def with_table(text: str) -> str:
    """The README with its table replaced."""
    return re.sub(
        r"(?<=<!-- results:begin -->\n).*?(?=<!-- results:end -->)",
        lambda _: f"\n{readme_table()}\n\n",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Draw everything that is there and write both pages."""
    for chapter in CHAPTERS:
        if chapter.figure is None or chapter.name is None:
            continue
        if (result := load(chapter.name)) is not None:
            chapter.figure(result)
    (HERE / "README.md").write_text(write_up())
    README.write_text(with_table(README.read_text()))


if __name__ == "__main__":
    main()
