"""How the demonstration is shown: the reports of its steps, one after the other."""

from pathlib import Path
from typing import TYPE_CHECKING

from espalier.report import finetune as stages
from espalier.report import inspection as amounts
from espalier.report.page import Page, write_page
from espalier.report.text import dump, percent, size

if TYPE_CHECKING:
    from espalier.finetuning import Finetuned
    from espalier.inspection import Inspection
    from espalier.pruned_file import PrunedFile


def as_json(found: "Inspection", tuned: "Finetuned", small: "PrunedFile") -> str:
    """The three records as one JSON object."""
    return dump({"inspect": found.to_dict(), "finetune": tuned.to_dict(), "prune": small.to_dict()})


def as_text(found: "Inspection", tuned: "Finetuned", small: "PrunedFile", folder: Path) -> str:
    """The table, and where the files are."""
    return "\n".join(
        [
            "how far, from the weights alone (espalier inspect)",
            amounts.amounts_text(found),
            "",
            f"pruned to {percent(tuned.sparsity)} and fine-tuned one epoch (espalier finetune), on the test split",
            stages.stages_text(tuned.stages),
            "",
            f"{folder / 'dense.safetensors'}   {size(small.bytes_before)}",
            f"{folder / 'small.safetensors'}   {size(small.bytes_after)}, "
            f"{percent(small.bytes_after / small.bytes_before)} of it; espalier unpack gives the dense form back",
            f"{folder / 'report.html'}   the same with plots",
        ]
    )


def write_html(found: "Inspection", tuned: "Finetuned", small: "PrunedFile", path: Path) -> None:
    """One page with everything."""
    first, second = amounts.page(found), stages.page(tuned, str(path.parent / "tuned.safetensors"))
    write_page(
        Page(
            title="From a trained network to a small file",
            subtitle=f"digits; {size(small.bytes_before)} dense, {size(small.bytes_after)} packed",
            cards=[*first.cards, *second.cards],
            sections=[*second.sections, *first.sections],
        ),
        path,
    )
