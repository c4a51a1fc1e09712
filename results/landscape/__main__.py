"""What lies around and between trained and pruned networks.

    ESPALIER_DATA=... python -m results.landscape [--network lenet5-mnist] [--part ways]

Two questions. Do gRDA and SGD, from one start on the same batches, end in one valley ("Directional Pruning of Deep Neural
Networks") - and does a control of two SGD runs, which differ in the order of the data alone, look any different? What
does pruning by magnitude and at random do to a network, at equal cosine ("What Makes a Good Prune?")?

  networks   accuracies of the networks, which are trained here and kept in points/landscape/<network>/
  ways       straight lines and trained Bezier curves between SGD, gRDA and the control
  functions  agreement, divergence, logit cosine, CKA
  curvature  leading eigenpairs, and the share of the differences in the leading eigenspace
  plane      through SGD, the control and gRDA
  family     t-SNE of predictions, accuracy against cosine
  slice      radial slice: origin, start, end
  around     filter-normalized planes of L1 and random pruning at equal cosine
  density    how many eigenvalues lie above any line, by stochastic Lanczos quadrature
  repeats    lines and shares again from other starts (LeNet5 only)

LeNet5 starts from scratch, ResNet-20 from the prepared checkpoint; 3 epochs each, as in the studies. Test images are
reported and choose nothing. Every piece is one artefact: kill the script anywhere and start it again.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from results._common import HERE, environment, once, write_json
from results.landscape import after_pruning, between, networks
from results.landscape.networks import Case, Make, case, slug

PARTS: dict[str, Callable[[Case], dict[str, Make]]] = {
    "networks": networks.measured,
    "functions": between.functions,
    "ways": between.ways,
    "curvature": between.curvature,
    "plane": between.plane,
    "family": after_pruning.family,
    "slice": after_pruning.slice_,
    "around": after_pruning.around,
    "density": between.spectra,
    "repeats": between.repeats,
}
NETWORKS = ("lenet5-mnist", "resnet20-prepared")


def collect(case: Case, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Every piece of the parts asked for, made now where it is missing, and every other one that is there."""
    found: dict[str, Any] = {}
    for part, pieces in PARTS.items():
        for name, make in pieces(case).items():
            path = case.folder / part / f"{slug(name)}.json"
            if part in parts and not path.exists():
                print(f"{case.name}: {part}: {name}", flush=True)
            if part in parts or path.exists():
                found.setdefault(part, {})[name] = once(path, make)
    return found


def main() -> None:
    """Everything asked for; the summary is written after each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--part", choices=tuple(PARTS), action="append")
    arguments = parser.parse_args()
    for name in arguments.network or NETWORKS:
        here = case(name)
        for part in arguments.part or PARTS:
            found = collect(here, [part])
            write_json(
                HERE / f"landscape-{name}.json",
                {
                    "command": f"python -m results.landscape --network {name}",
                    "environment": environment(),
                    "training": here.training.spec(),
                    "tuning": here.tuning.spec(),
                    "sizes": asdict(here.sizes),
                    "parts": found,
                },
            )


if __name__ == "__main__":
    main()
