"""How strong the laws of the comparison are: c of the paper's gRDA, penalties of classical RDA and of the lasso.

    ESPALIER_DATA=... python -m results.calibration [--network lenet5-mnist]

No test image is read. The rule, the same for every law: the strength with which the law by itself has the sparsity
asked for, in a pilot with seed 0. For the paper's law `espalier.train.calibration.calibrate` finds it; for RDA and lasso
a search does, on the zeros at nine tenths of the pilot, where a study settles the count. A pilot of LeNet5 is the whole
training; one of ResNet-20 is the training shrunk to one epoch, and a penalty is divided by how much longer the training
is, so that the sum of what is taken away stays. A c found for another sparsity serves where the sparsity that is
predicted of it for the whole training is nearer; a penalty is read off between two pilots where none of them is near.

Where the run with that strength is at chance on the validation split, the rule has failed. Then the strength is, of five
smaller ones, that whose whole run, settled at that sparsity, is best on the validation split.
"""

import argparse
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from espalier.methods import Threshold
from espalier.optim import AbstractPathLaw, Lasso, LinearLaw, PowerLaw
from espalier.train import Training, fit
from espalier.train.calibration import calibrate
from results._common import HERE, environment, once, write_json
from results.training import MODERN, dataset, paper, start

MU, SETTLE, NEAR, FLOOR = 0.51, 0.9, 0.1, 0.2  # below the floor an accuracy of ten classes is chance
FALLING = (0.9, 0.8, 0.7, 0.6, 0.5)
LAWS = ("grda", "rda", "lasso")
ASKED = {
    "lenet5-mnist": [(law, sparsity) for sparsity in (0.9, 0.95, 0.98) for law in LAWS],
    "resnet20-prepared": [*(("grda", s) for s in (0.9, 0.95, 0.98)), ("rda", 0.95), ("lasso", 0.95)],
}
PILOT = {"lenet5-mnist": 3, "resnet20-prepared": 1}
ROUNDS = {"lenet5-mnist": 4, "resnet20-prepared": 2}  # pilots after the first, at most
# Where these were too few: the nearest was a factor of two off.
MORE = {("resnet20-prepared", "grda", 0.9): 3, ("resnet20-prepared", "grda", 0.95): 3}
FIRST = {"rda": 1e-3, "lasso": 1e-4}  # where the search for a penalty begins


def law_of(word: str, strength: float) -> AbstractPathLaw:
    return {"grda": PowerLaw(strength, MU), "rda": LinearLaw(strength), "lasso": Lasso(strength)}[word]


def method(word: str, strength: float) -> Threshold:
    """As the words of a study build it."""
    return Threshold(law_of(word, strength), paper=word == "grda", momentum=word == "lasso", settle=SETTLE)


def training_of(network: str, word: str) -> Training:
    """The lasso takes the study's own rates; gRDA and RDA take the paper's, so that they differ in the law alone."""
    return MODERN[network] if word == "lasso" else paper(MODERN[network])


def pilot(network: str, word: str, strength: float, epochs: int, sparsity: float | None) -> dict[str, Any]:
    """One training without test data: its zeros at `SETTLE`, and its accuracy on the validation split at the end."""
    model, _ = start(network, 0)
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    seen = [0.0]

    def look(done: int, total: int, _: str) -> None:
        if done == round(SETTLE * total) - 1:  # the last step before the count is settled
            seen[0] = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)

    history = fit(
        model,
        dataset(network),
        replace(training_of(network, word), epochs=epochs),
        method=method(word, strength),
        sparsity=sparsity,
        progress=look,
    )
    return {"strength": strength, "sparsity": seen[0], "accuracy": history.last.accuracy}


def following(pilots: list[dict[str, Any]], wanted: float) -> float:
    """The next strength: in proportion to the density missed, a factor of four at most, inside what is known."""
    last = pilots[-1]
    density = max(1 - last["sparsity"], 1e-4)
    found = last["strength"] * min(max(density / wanted, 0.25), 4.0)
    too_small = [p["strength"] for p in pilots if 1 - p["sparsity"] > wanted]
    too_large = [p["strength"] for p in pilots if 1 - p["sparsity"] <= wanted]
    if too_small and too_large:
        low, high = max(too_small), min(too_large)
        return found if low < found < high else math.sqrt(low * high)
    return float(found)


def searched(network: str, word: str, sparsity: float) -> dict[str, Any]:
    """The strength of RDA or lasso whose pilot has the sparsity at `SETTLE`."""
    epochs, wanted = PILOT[network], 1 - sparsity
    stretch = MODERN[network].epochs / epochs
    pilots = [pilot(network, word, FIRST[word] * stretch, epochs, None)]
    while len(pilots) <= ROUNDS[network] and abs((1 - pilots[-1]["sparsity"]) / wanted - 1) > NEAR:
        pilots.append(pilot(network, word, following(pilots, wanted), epochs, None))
    best = min(pilots, key=lambda p: abs(math.log(max(1 - p["sparsity"], 1e-4) / wanted)))
    return {**best, "strength": best["strength"] / stretch, "pilots": pilots}


def between(found: dict[str, Any], stretch: float) -> dict[str, Any]:
    """The strength between the two nearest pilots, linear in logarithms, where both learn and none is near enough."""
    wanted, pilots = 1 - found["asked"], [p for p in found["pilots"] if p["accuracy"] >= FLOOR]
    weaker = [p for p in pilots if 1 - p["sparsity"] > wanted]
    stronger = [p for p in pilots if 1 - p["sparsity"] <= wanted]
    if "predicted" in found or abs((1 - found["sparsity"]) / wanted - 1) <= NEAR or not (weaker and stronger):
        return found
    low = max(weaker, key=lambda p: float(p["strength"]))
    high = min(stronger, key=lambda p: float(p["strength"]))
    ends = [math.log(1 - p["sparsity"]) for p in (low, high)]
    share = (ends[0] - math.log(wanted)) / (ends[0] - ends[1])
    strength = low["strength"] * (high["strength"] / low["strength"]) ** share
    return {**found, "rule": "between two pilots", "strength": strength / stretch}


def calibrated(network: str, sparsity: float) -> dict[str, Any]:
    """c of the paper's law."""
    model, _ = start(network, 0)
    found = calibrate(
        model,
        dataset(network),
        training_of(network, "grda"),
        sparsity,
        mu=MU,
        pilot_epochs=PILOT[network],
        rounds=MORE.get((network, "grda", sparsity), ROUNDS[network]),
        scope="paper",
    )
    pilots = [{"strength": p.law.c, "sparsity": p.sparsity, "accuracy": p.accuracy} for p in found.pilots]
    best = next(p for p in pilots if p["strength"] == found.law.c)
    return {**best, "predicted": found.predicted, "pilots": pilots}


def settled(network: str, word: str, sparsity: float, reach: float) -> dict[str, Any]:
    """The best strength below one that stays at chance: whole runs, settled, judged on the validation split."""
    epochs = MODERN[network].epochs
    tries = [pilot(network, word, reach * share, epochs, sparsity) for share in FALLING]
    best = max(tries, key=lambda p: float(p["accuracy"]))
    return {"strength": best["strength"], "settled": tries}


def calibration(network: str, word: str, sparsity: float) -> dict[str, Any]:
    """What is used, and how it was found."""
    reached = calibrated(network, sparsity) if word == "grda" else searched(network, word, sparsity)
    chosen = {"rule": "reaches the sparsity", **reached}
    if reached["accuracy"] < FLOOR:
        chosen = {
            **chosen,
            "rule": "best on validation, settled",
            **settled(network, word, sparsity, reached["strength"]),
        }
    return {
        "command": f"python -m results.calibration --network {network}",
        "environment": environment(),
        "training": training_of(network, word).spec(),
        "asked": sparsity,
        "method": repr(method(word, chosen["strength"])),
        **chosen,
    }


def fading(network: str) -> dict[str, Any]:
    """Why a threshold that is strong from the first steps stops LeNet5, and whether four times the epochs help."""
    inputs = torch.cat(list(dataset(network).validation.inputs(500)))[:1000]
    return {
        "command": f"python -m results.calibration --network {network}",
        "environment": environment(),
        "runs": [{"c": c, "steps": spread(network, c, inputs)} for c in (0.0, 0.01, 0.015, 0.02, 0.03)],
        "longer": [{"epochs": 12, **pilot(network, "grda", c, 12, None)} for c in (0.01, 0.015)],
    }


def spread(network: str, c: float, inputs: torch.Tensor) -> list[dict[str, float]]:
    """Standard deviation of each logit over inputs, mean of the logits, at steps of the first of three epochs."""
    model, _ = start(network, 0)
    found: list[dict[str, float]] = []
    training = replace(paper(MODERN[network]), schedule="constant", epochs=1)

    def look(done: int, total: int, _: str) -> None:
        if done in (1, 25, 50, 100, 200, 300, 400):
            zeros = sum(int((p == 0).sum()) for p in model.parameters())
            share = zeros / sum(p.numel() for p in model.parameters())
            found.append({"step": done, "spread": logits(model, inputs), "zeros": share})

    fit(model, dataset(network), training, method=method("grda", c), progress=look)
    return found


def logits(model: nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(inputs).std(dim=0).mean())


def collect() -> dict[str, Any]:
    """Everything that is there, for the page."""
    folder = HERE / "points" / "training"
    laws = []
    for network, asked in ASKED.items():
        paths = {a: folder / network / f"calibration-{a[0]}-{a[1]:g}.json" for a in asked}
        there = {a: once(path, dict) for a, path in paths.items() if path.exists()}
        for word, sparsity in there:
            rivals = [f for (other, _), f in there.items() if other == word and "settled" not in f]
            stretch = MODERN[network].epochs / PILOT[network]
            found = between(nearest(there[word, sparsity], rivals), stretch)
            kept = {k: found[k] for k in ("strength", "rule", "accuracy", "pilots")}
            kept["sparsity"] = found.get("predicted", found["sparsity"])
            laws.append({"network": network, "law": word, "asked": sparsity, **kept})
    path = folder / "lenet5-mnist" / "calibration-fading.json"
    fading = {"fading": once(path, dict)} if path.exists() else {}
    return {"command": "python -m results.calibration", "environment": environment(), "laws": laws, **fading}


def nearest(found: dict[str, Any], rivals: list[dict[str, Any]]) -> dict[str, Any]:
    """The calibration itself, or that for another sparsity where what it predicts for the whole run is nearer."""
    if "settled" in found or "predicted" not in found:
        return found
    wanted = 1 - found["asked"]
    return min([found, *rivals], key=lambda f: abs(math.log((1 - f["predicted"]) / wanted)))


def main() -> None:
    """Every calibration that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=tuple(ASKED), action="append")
    for network in parser.parse_args().network or ASKED:
        folder = HERE / "points" / "training" / network
        for word, sparsity in ASKED[network]:
            make = partial(calibration, network, word, sparsity)
            found = once(folder / f"calibration-{word}-{sparsity:g}.json", make)
            print(word, sparsity, found["strength"], found["rule"], found["sparsity"], flush=True)
        if network == "lenet5-mnist":
            once(folder / "calibration-fading.json", partial(fading, network))
    write_json(HERE / "training-calibration.json", collect())


if __name__ == "__main__":
    main()
