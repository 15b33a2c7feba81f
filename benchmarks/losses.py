"""The same students by another implementation of their losses: held-out accuracy.

    pip install --no-deps torchdistill==1.1.5
    python -m benchmarks.losses --output benchmarks/results/losses-two-cores.txt

A small problem, the embedded pictograms at 32 pixels: one teacher, and for each loss and seed two
students that differ in nothing but whose function is minimised, ours or torchdistill's. Rates and
weights are those of the chapter on losses. Theirs is brought to our unit where a constant tells the
two apart: they leave T^2 out of KD, average RKD over a sample's pairs and triples with itself as
well, and PKT over the whole table. Beyond that SP and PKT are other functions in 1.1.5
(``book/losses.md``). Wanted: means over the seeds within 2 percentage points.
"""

import argparse
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import mean

from torch import Tensor

from benchmarks.__main__ import Tee, machine
from kpnb.losses import LOSSES
from kpnb_book.store import Store
from kpnb_book.studies import losses
from kpnb_book.studies.images import ImageStudy

SEEDS = range(300, 303)  # of no other part of the project
LAYER = "FC1"
PROBLEM = {"size": 32, "hidden": 128, "layers": LAYER, "epochs": 8, "teacher_epochs": 8}
PROBLEM |= {"teacher_samples": 4000, "share": 1000, "test_samples": 1000, "head_epochs": 5}
WANTED = 0.02

Function = Callable[[Tensor, Tensor], Tensor]


def another() -> dict[str, Function]:
    """torchdistill's functions of ``(student, teacher)``, by our names."""
    from torchdistill.losses import mid_level

    ends = {"student_module_path": "f", "student_module_io": "output"}
    ends |= {"teacher_module_path": "f", "teacher_module_io": "output"}
    paths = {"student_output_path": "f", "teacher_output_path": "f"}
    pair = {side: {"io": "output", "path": "f"} for side in ("student", "teacher")}
    temperature = LOSSES["soft_targets"].parameters()["temperature"]
    weights = LOSSES["rkd"].parameters()

    kd = mid_level.KDLoss(**ends, temperature=temperature, beta=1.0)
    attention = mid_level.ATLoss({"pair": pair}, mode="code")
    distances = mid_level.RKDLoss(**paths, dist_factor=1.0, angle_factor=0.0, reduction="mean")
    angles = mid_level.RKDLoss(**paths, dist_factor=0.0, angle_factor=1.0, reduction="mean")
    similarity = mid_level.SPKDLoss(**paths, reduction="batchmean")
    neighbours = mid_level.PKTLoss(**ends)

    def relational(student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs, size = put_out(student), put_out(teacher), len(student)
        pairs = distances(ours, theirs) * size / (size - 1)
        triples = angles(ours, theirs) * size**2 / ((size - 1) * (size - 2))
        return weights["distance"] * pairs + weights["angle"] * triples

    return {
        "soft_targets": lambda s, t: temperature**2 * kd(put_out(s), put_out(t)),
        "at": lambda s, t: attention(put_out(s), put_out(t)),
        "rkd": relational,
        "sp": lambda s, t: similarity(put_out(s), put_out(t)),
        "pkt": lambda s, t: len(s) * neighbours(put_out(s), put_out(t)),
    }


def put_out(value: Tensor) -> dict[str, dict[str, Tensor]]:
    """What torchdistill's losses read: outputs by the path of their module, here "f"."""
    return {"f": {"output": value}}


def accuracies(study: ImageStudy, loss: str, name: str) -> list[float]:
    """Held-out accuracy of the students of a loss, a value a seed; they are trained as ``loss`` is,
    by the function that goes by ``name`` in ``LOSSES``.
    """
    way, found = losses.way_of(loss), []
    for seed in SEEDS:
        learned = losses.student(study, name, LAYER, seed, way=way)
        found.append(losses.with_head(study, name, LAYER, learned, way).accuracy)
    return found


def run(store: Store) -> None:
    """Print a row for each loss."""
    study = ImageStudy("laptop", store=store, **PROBLEM)
    baselines = [study.baseline(seed).accuracy for seed in SEEDS]
    print(f"\nHeld-out accuracy, %, mean over {len(SEEDS)} seeds: the same students by another")
    print(f"implementation. Teacher {study.teacher().accuracy:.1%}, baseline {mean(baselines):.1%}")
    print(f"\n{'loss':14}{'ours':>7}{'theirs':>8}{'apart':>8}   within {100 * WANTED:g} points")
    for loss, function in another().items():
        LOSSES[f"torchdistill {loss}"] = replace(LOSSES[loss], function=function)
        ours, theirs = (
            mean(accuracies(study, loss, name)) for name in (loss, f"torchdistill {loss}")
        )
        apart = ours - theirs
        said = "yes" if abs(apart) <= WANTED else "no"
        print(f"{loss:14}{100 * ours:7.1f}{100 * theirs:8.1f}{100 * apart:+8.1f}   {said}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to keep what is printed")
    given = parser.parse_args()
    with redirect_stdout(Tee()) as said:
        print(machine())
        run(Store())
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(said.getvalue(), "utf8")


if __name__ == "__main__":
    main()
