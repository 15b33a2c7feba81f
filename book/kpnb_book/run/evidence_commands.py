"""The commands of stored evidence: ``kpnb evidence`` computes it, ``kpnb evidence-check`` computes
some of it again.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpnb_book.run.commands import at_least_one
from kpnb_book.run.errors import UsageError, unknown
from kpnb_book.run.parameters import add_parameters, read_assignments

if TYPE_CHECKING:
    from kpnb_book.studies.evidence import Evidence
    from kpnb_book.studies.results import Results

Commands = argparse._SubParsersAction
ELSEWHERE = {
    "profile": "evidence is computed with the laptop's settings; -p changes single ones",
    "seeds": "give --seeds 0-19",
    "store": "the environment variable KPNB_STORE says where runs are kept",
}
"""What is no setting of a study here, and what to do instead."""


def add(commands: Commands) -> None:
    """Add the commands to those of ``kpnb``."""
    example = "Example: kpnb evidence images --seeds 0-19; it goes on where it was interrupted"
    parser = commands.add_parser(
        "evidence",
        help="compute the seeds that verdicts rest on, into book/results",
        epilog=example,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="images, pointnet, sst2, ...")
    parser.add_argument("--seeds", help="as 0-19 or 3,5 (default: all that were stated before)")
    parser.add_argument(
        "--only", metavar="ROLES", help="these networks alone, as untrained or student,baseline"
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="remove tables that belong to other settings or code, and begin anew",
    )
    parser.add_argument(
        "--forecast", action="store_true", help="say what is left to do and how long it takes"
    )
    _add_places(parser)
    parser.set_defaults(do=run)
    _add_check(commands)
    _add_choose(commands)


def _add_check(commands: Commands) -> None:
    parser = commands.add_parser(
        "evidence-check",
        help="compute one seed of each study again, and compare with book/results",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all that have tables")
    parser.add_argument("--seed", type=int, help="default: the lowest of the tables")
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=1,
        metavar="N",
        help="studies at a time (%(default)s)",
    )
    _add_places(parser)
    parser.set_defaults(do=run_check)


def _add_choose(commands: Commands) -> None:
    parser = commands.add_parser(
        "choose",
        help="find rate and weight of distillation losses by held-out accuracy",
        epilog="Example: kpnb choose at rkd; what is tried is kept in book/results/losses",
    )
    parser.add_argument("names", nargs="*", metavar="LOSS", help="default: all without a choice")
    _add_places(parser)
    parser.set_defaults(do=run_choose)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Where the data are, and the tables."""
    add_parameters(parser, "a setting of the study, as data_root=FOLDER")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the tables (default: book/results)"
    )


def run(options: argparse.Namespace) -> int:
    """``kpnb evidence``: one study after the other."""
    chosen = [study_of(name) for name in options.names]
    for evidence in chosen:
        try:
            _run_one(evidence, options)
        except (ValueError, OSError, FloatingPointError) as error:
            raise UsageError(f"evidence of {evidence.name}: {error}") from error
    return 0


def _run_one(evidence: "Evidence", options: argparse.Namespace) -> None:
    from kpnb_book.studies.collecting import collect, plans
    from kpnb_book.studies.forecast import forecast

    results = results_of(evidence, options.output)
    seeds = evidence.seeds if options.seeds is None else several_seeds(options.seeds)
    overrides = settings_of(options.parameters)
    only = None if options.only is None else options.only.split(",")
    if options.forecast:
        print(evidence.name)
        todo = plans(evidence, seeds, results, only=only, renew=options.replace, **overrides)
        print(forecast(todo))
        return
    done = collect(evidence, seeds, results, only=only, renew=options.replace, **overrides)
    print(f"{len(done)} seeds computed, {len(results.seeds())} in {results.folder}")


def run_check(options: argparse.Namespace) -> int:
    """``kpnb evidence-check``; 1 when something differs."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    overrides = settings_of(options.parameters)
    names = dict.fromkeys(options.names or _with_tables(options.output, overrides))
    chosen = [study_of(name) for name in names]
    if not chosen:
        print("there are no tables to check")
        return 0
    # The longest first, so that none is left alone at the end.
    chosen.sort(key=lambda each: seconds_of(results_of(each, options.output)), reverse=True)
    # Processes of their own, so that each has the threads that the tables were computed with.
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        tasks = {
            each.name: pool.submit(check_one, each, options.output, options.seed, overrides)
            for each in chosen
        }
        agree = {}
        for name in names:
            agree[name], said = tasks[name].result()
            print(said, flush=True)
    print(_summary(agree))
    return int(not all(agree.values()))


def _summary(agree: Mapping[str, bool]) -> str:
    """Which studies agree with their tables, and which do not."""
    said = f"{sum(agree.values())} of {len(agree)} studies agree with their tables"
    for word, wanted in (("agree", True), ("do not", False)):
        names = [name for name, agrees in agree.items() if agrees is wanted]
        said += f"; {word}: {', '.join(names)}" if names else ""
    return said


def run_choose(options: argparse.Namespace) -> int:
    """``kpnb choose``."""
    from kpnb_book.studies.choose import TABLE, choose, differing

    table = TABLE if options.output is None else options.output / TABLE.parent.name / TABLE.name
    try:
        choose(options.names, table, **read_assignments(options.parameters))
    except (ValueError, OSError, FloatingPointError) as error:
        raise UsageError(str(error)) from error
    print(f"What was tried is in {table}")
    for words in differing(table):
        print(f"to be written into studies/losses.py: {words}")
    return 0


def _with_tables(folder: Path | None, overrides: Mapping[str, Any]) -> list[str]:
    """The studies that have tables; without those whose data are not here."""
    from kpnb_book.studies.catalogue import every

    names = []
    for each in every().values():
        if results_of(each, folder).origin is None:
            continue
        if each.official and "data_root" not in overrides:
            print(f"{each.name}: left out, name it with -p data_root=FOLDER to check it")
        else:
            names.append(each.name)
    return names


def check_one(
    evidence: "Evidence", folder: Path | None, seed: int | None, overrides: Mapping[str, Any]
) -> tuple[bool, str]:
    """Whether a study agrees with its tables, and what there is to say."""
    from kpnb_book.studies.again import again

    try:
        found = again(evidence, results_of(evidence, folder), seed=seed, **overrides)
    except (ValueError, OSError, FloatingPointError) as error:
        return False, f"{evidence.name}: {error}"
    return not found.differing, str(found)


def settings_of(assignments: Sequence[str]) -> dict[str, Any]:
    """Settings of a study from NAME=VALUE. Raises UsageError for what the command has another
    option for, or gives itself.
    """
    found = read_assignments(assignments)
    for name, remedy in ELSEWHERE.items():
        if name in found:
            raise UsageError(f"-p {name}=...: {remedy}")
    return found


def study_of(name: str) -> "Evidence":
    """The study of that name. Raises UsageError when there is none."""
    from kpnb_book.studies.catalogue import every

    if name not in every():
        raise UsageError(unknown("study", name, every()))
    return every()[name]


def results_of(evidence: "Evidence", folder: Path | None) -> "Results":
    """Its tables in ``folder`` (default: the book's)."""
    from kpnb_book.studies.results import RESULTS, Results

    return Results((folder or RESULTS) / evidence.name)


def seconds_of(results: "Results") -> float:
    """What a network of the tables took in the mean; 0 without tables."""
    return results.read().networks["seconds"].mean() if results.origin is not None else 0.0


def several_seeds(text: str) -> list[int]:
    """Seeds from "0-19", "3,5" or both. Raises UsageError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"--seeds {text!r}: give numbers as 0-19 or 3,5")
        if dash and int(last) < int(first):
            raise UsageError(f"--seeds {text!r}: there is none from {first} to {last}")
        found += range(int(first), int(last or first) + 1)
    return found
