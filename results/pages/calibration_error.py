"""How near `calibrate` comes to the sparsity asked for."""

from typing import Any

from results.pages._shared import Chapter, markdown, percent


def section(result: dict[str, Any]) -> str:
    """The section of the results page."""
    rows = [
        [
            "training",
            "asked %",
            "predicted %",
            "reached %",
            "density: reached / asked",
            "between low and high",
            "accuracy %",
            "pilots at chance",
        ]
    ]
    for row in result["rows"]:
        predicted, reached, accuracy = row["predicted"], row["reached"], row["accuracy"]
        density = (1 - reached["mean"]) / (1 - row["asked"])
        rows.append(
            [
                row["training"],
                f"{100 * row['asked']:g}",
                percent(predicted["mean"], 1),
                f"{percent(reached['mean'], 1)} ± {percent(reached['sd'], 1)} (n = {reached['n']})",
                f"{density:.2f}",
                f"{row['inside']} of {reached['n']}",
                percent(accuracy["mean"], 1),
                f"{row['chance']} of {row['pilots']}",
            ]
        )
    epochs = {training["epochs"] for training in result["trainings"].values()}
    pilots = {training["pilot epochs"] for training in result["trainings"].values()}
    return f"""The digits_cnn for {epochs.pop()} epochs; c from pilots of {max(pilots)} epochs, or {min(pilots)} where the row says so. Low and high
are what `calibrate` gives for a trend that stops and one that goes on. Accuracies are on the validation split.

{markdown(rows)}"""


CHAPTER = Chapter("How near calibrate comes to the sparsity asked for", "calibration_error", section)
