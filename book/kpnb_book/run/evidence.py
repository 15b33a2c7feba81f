"""The commands that compute stored evidence: ``kpnb evidence``, and its check."""

import argparse
from pathlib import Path

from kpnb_book.run.errors import UsageError
from kpnb_book.run.parameters import read_assignments

Commands = argparse._SubParsersAction


def add(commands: Commands) -> None:
    """Add ``kpnb evidence`` to the commands."""
    example = "Example: kpnb evidence images --seeds 0-19; it goes on where it was interrupted"
    parser = commands.add_parser(
        "evidence",
        help="compute the seeds that verdicts rest on, into book/results",
        epilog=example,
    )
    parser.add_argument("study", help="images, pointnet, sentiment, ...")
    parser.add_argument("--seeds", default="0-19", help="as 0-19 or 3,5 (%(default)s)")
    parser.add_argument(
        "--forecast", action="store_true", help="say what is left to do and how long it takes"
    )
    parser.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the study, as data_root=FOLDER",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the tables (default: book/results)"
    )
    parser.set_defaults(do=run)


def run(options: argparse.Namespace) -> int:
    """``kpnb evidence``."""
    from kpnb_book.studies.evidence import STUDIES, collect, plan
    from kpnb_book.studies.plan import forecast
    from kpnb_book.studies.results import RESULTS, Results

    if options.study not in STUDIES:
        raise UsageError(f"no study {options.study!r}; known: {', '.join(STUDIES)}")
    evidence = STUDIES[options.study]
    seeds = several_seeds(options.seeds)
    overrides = read_assignments(options.parameters)
    results = Results((options.output or RESULTS) / evidence.name)
    try:
        if options.forecast:
            missing = [seed for seed in seeds if seed not in results.seeds()]
            study = evidence.study(**overrides)
            print(forecast([plan(evidence, study, missing)]))
            return 0
        done = collect(evidence, seeds, results, **overrides)
    except (ValueError, OSError) as error:
        raise UsageError(f"evidence of {evidence.name}: {error}") from error
    print(f"{len(done)} seeds computed, {len(results.seeds())} in {results.folder}")
    return 0


def several_seeds(text: str) -> list[int]:
    """Seeds from "0-19", "3,5" or both. Raises UsageError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"--seeds {text!r}: give numbers as 0-19 or 3,5")
        found += range(int(first), int(last or first) + 1)
    return found
