"""What the settings of the closed form change in the six metrics of a study.

    python -m benchmarks.metrics images
    python -m benchmarks.metrics sst2 -p data_root=/data/SST-2 --settings 4,2,4 8,8,12

Student and baseline of one seed, which is none of the stored evidence's, are trained as that
evidence trains them, and measured at every epoch with each setting: rank, probes and noise, first
the study's own. For each metric stands how far student minus baseline moves from what the
reference gives, 32 + 32 directions and 40 draws of noise; and, where the study has tables, how many
per cent that is of the standard deviation over their seeds. Noise that moves the difference of one
seed by a tenth of what seeds differ by widens an interval over seeds by half a per cent.
"""

import argparse
import time
from collections.abc import Sequence

import pandas as pd

import kpnb
from kpnb.metrics import NAMES
from kpnb.stats import compare
from kpnb_book.run.parameters import add_parameters, read_assignments
from kpnb_book.studies import measure
from kpnb_book.studies.evidence import STUDIES, Evidence
from kpnb_book.studies.results import RESULTS, Results
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training
from kpnb_book.studies.verdicts import by_seed

SEED = 100  # that settings are chosen with
REFERENCE = kpnb.ClosedForm(rank=32, probes=32, noise=40)
NOISE_SEED = 50  # the reference draws other noise than the settings that are judged by it


def difference(
    study: Study, layer: str, pair: Sequence[Training], solver: kpnb.ClosedForm, noise_seed: int = 0
) -> tuple[dict[str, float], float]:
    """Student minus baseline by metric, and CPU seconds for a sample and epoch."""
    start = time.process_time()
    how = {"noise_seed": noise_seed, "solver": solver}
    sides = [measure.metrics(study, training, layer, **how) for training in pair]
    seconds = time.process_time() - start
    count = sum(training.epochs + 1 for training in pair) * len(study.measured)
    return {name: found.value for name, found in compare(*sides).items()}, seconds / count


def spread(evidence: Evidence, layer: str) -> pd.Series | None:
    """Standard deviation over the stored seeds of student minus baseline at a ``layer``, by metric;
    None while there are fewer than two seeds.
    """
    results = Results(RESULTS / evidence.name)
    if results.origin is None:
        return None
    samples = results.read().samples
    seeds = by_seed(samples[samples["layer"] == layer])
    return seeds.std() if len(seeds) > 1 else None


def moved(
    study: Study, layer: str, settings: Sequence[kpnb.ClosedForm], seed: int = SEED
) -> tuple[pd.Series, pd.DataFrame]:
    """Student minus baseline by the reference; and a row for each of the ``settings``: how far it
    is from that, and ``milliseconds`` for a sample and epoch.
    """
    pair = (study.student(layer, seed).finish(), study.baseline(seed).finish())
    reference, _ = difference(study, layer, pair, REFERENCE, NOISE_SEED)
    rows = {}
    for solver in settings:
        found, seconds = difference(study, layer, pair, solver)
        errors = {name: found[name] - reference[name] for name in NAMES}
        title = f"{solver.rank} + {solver.probes}, {solver.noise}"
        rows[title] = errors | {"milliseconds": 1000 * seconds}
    return pd.Series(reference), pd.DataFrame.from_dict(rows, orient="index")


def show(study: Study, evidence: Evidence, settings: Sequence[kpnb.ClosedForm]) -> None:
    """Print a table for each layer."""
    for layer in study.settings.layers:
        reference, errors = moved(study, layer, settings)
        print(f"\n{evidence.name}, {layer}, seed {SEED}, {len(study.measured)} samples")
        print(f"  {'':24s}" + "".join(f"{name:>10s}" for name in NAMES) + "   ms a sample")
        print(line("student - baseline", reference[list(NAMES)], "10.4f"))
        sizes = spread(evidence, layer)
        for title, row in errors.iterrows():
            ms = f"{row['milliseconds']:14.1f}"
            print(line(f"moved by {title}", row[list(NAMES)], "+10.4f") + ms)
            if sizes is not None:
                print(line("  % of spread of seeds", 100 * row / sizes, "+10.1f"))


def line(title: str, row: pd.Series, how: str) -> str:
    """A line of the table."""
    return f"  {title:24s}" + "".join(f"{row[name]:{how}}" for name in NAMES)


def setting(text: str) -> kpnb.ClosedForm:
    """ "4,2,4" as a closed form; ``ValueError`` for anything else."""
    rank, probes, noise = map(int, text.split(","))
    return kpnb.ClosedForm(rank=rank, probes=probes, noise=noise)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    add_parameters(parser, "a setting of the study, as data_root=FOLDER")
    parser.add_argument(
        "--settings",
        nargs="+",
        type=setting,
        default=[kpnb.ClosedForm.draft(), kpnb.ClosedForm()],
        metavar="RANK,PROBES,NOISE",
        help="besides the study's own (default: the draft and the default)",
    )
    given = parser.parse_args()
    evidence = STUDIES[given.name]
    study = evidence.study(**read_assignments(given.parameters))
    show(study, evidence, [measure.solver_of(study.settings), *given.settings])


if __name__ == "__main__":
    main()
