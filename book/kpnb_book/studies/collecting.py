"""Evidence, computed seed by seed: what is left to do, what is kept meanwhile, and whether tables
are still those of today's code.

    collect(STUDIES["images"], range(20), Results(RESULTS / "images"))
"""

import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from kpnb._messages import one_of
from kpnb._progress import Progress
from kpnb_book.place import EVIDENCE, seed_lock
from kpnb_book.store import Store
from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import KEY, Results, Rows, Stale
from kpnb_book.studies.rows import OneNetwork, addresses
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training, announce

SHARED = ("images", "clouds", "texts", "teacher")  # kinds of runs that all seeds have in common


def collect(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store | None = None,
    *,
    only: Collection[str] | None = None,
    renew: bool = False,
    **overrides: Any,
) -> list[int]:
    """Compute what the tables lack of the ``seeds``, and write each seed as soon as it is there.

    only    networks of these roles alone, as ["untrained"]
    renew   whether stale tables are removed first

    Returns the seeds that were computed; one that another process computes is left to it. A seed
    that was interrupted goes on where it stopped. Raises ``Stale`` when the tables belong to other
    settings or other code, ValueError while something is still to be chosen, and after the last
    seed ``FloatingPointError`` that names those whose baseline diverged.
    """
    if evidence.undecided:
        raise ValueError(f"still to be chosen: {', '.join(evidence.undecided)}")
    store = store or Store()
    study = evidence.study(store, **overrides)
    check(evidence, study, results, renew)
    todo = left(evidence, seeds, results, store, only)
    done, lost = [], []
    with Progress(len(todo), f"seeds of {evidence.name}", "seed", hidden=not todo) as bar:
        for number, seed in enumerate(todo, 1):
            start, what = time.perf_counter(), "is computed by another process"
            with of_one_seed(store, f"{evidence.name}-{seed}") as apart:
                # Another process may have written it in the meantime.
                roles = lacking(evidence, seed, results.networks(), only)
                if apart is not None:
                    what = "is done"
                if apart is not None and roles:
                    own = evidence.study(apart, **overrides)
                    try:
                        results.add(evidence.origin(own), seed_rows(evidence, own, seed, roles))
                        done.append(seed)
                    except FloatingPointError as error:  # the others need not wait for it
                        lost.append(str(error))
                        what = "is lost"
            bar.step()
            took = f"{time.perf_counter() - start:.0f} s, {number} of {len(todo)}"
            print(f"{evidence.name}: seed {seed} {what} ({took})", flush=True)
    if lost:
        raise FloatingPointError("; ".join(lost))
    return done


def lacking(
    evidence: Evidence,
    seed: int,
    known: Collection[tuple[int, str]],
    only: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Roles whose networks of a ``seed`` are not among the ``known`` ones (``Results.networks``);
    of these alone with ``only``.
    """
    for role in only or ():
        one_of("network", role, evidence.roles)
    wanted = [role for role in evidence.roles if only is None or role in only]
    return tuple(role for role in wanted if (seed, role) not in known)


def left(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store,
    only: Collection[str] | None = None,
) -> list[int]:
    """The ``seeds`` that the tables lack, and those whose networks should have been deleted, but
    the process was killed before that.
    """

    known = results.networks()

    def has_remains(seed: int) -> bool:
        folder = folder_of(store, f"{evidence.name}-{seed}")
        return folder.exists() and not lacking(evidence, seed, known)

    return [
        seed
        for seed in sorted(set(seeds))
        if lacking(evidence, seed, known, only) or has_remains(seed)
    ]


def plans(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store | None = None,
    only: Collection[str] | None = None,
    renew: bool = False,
    **overrides: Any,
) -> Iterator[Plan]:
    """What ``collect`` would do, seed by seed; nothing is removed. Raises ``Stale`` as it does."""
    store = store or Store()
    study = evidence.study(store, **overrides)
    known = results.networks()
    try:
        check(evidence, study, results)
    except Stale:
        if not renew:
            raise
        known = set()
    for seed in sorted(set(seeds)):
        if roles := lacking(evidence, seed, known, only):
            begun = folder_of(store, f"{evidence.name}-{seed}")
            own = evidence.study(Store(begun), **overrides) if begun.exists() else study
            yield plan(evidence, own, seed, roles)


def plan(evidence: Evidence, study: Study, seed: int, roles: Collection[str] | None = None) -> Plan:
    """What is trained and measured for a ``seed``."""
    chosen = list(networks(evidence, study, seed, roles))
    measured = Plan.measuring(study, [(each, layer) for layer, _, each in chosen])
    return evidence.completed(measured, {role for _, role, _ in chosen}, seed)


def networks(
    evidence: Evidence, study: Study, seed: int, roles: Collection[str] | None = None
) -> Iterator[tuple[str, str, Training]]:
    """Layer, role and training of each network of a ``seed``, of these ``roles`` (None: all)."""
    for role in evidence.roles:
        if roles is None or role in roles:
            for layer in study.settings.layers:
                yield layer, role, evidence.training(study, role, layer, seed)


def seed_rows(
    evidence: Evidence,
    study: Study,
    seed: int,
    roles: Collection[str] | None = None,
    whole: Study | None = None,
) -> Rows:
    """The rows of the networks of one ``seed``, of these ``roles`` (None: all); ``whole`` as in
    ``OneNetwork``.
    """
    planned = plan(evidence, study, seed, roles)
    diverged = finish(planned)
    found = []
    for chosen in networks(evidence, study, seed, roles):
        one = OneNetwork(study, *chosen, seed, whole)
        why = diverged.get(evidence.whole(one).address)
        found.append(evidence.diverged(one, why) if why else evidence.rows(one))
    return Rows(
        pd.concat([each.networks for each in found], ignore_index=True),
        pd.concat([each.samples for each in found], ignore_index=True),
        pd.concat([each.places for each in found], ignore_index=True),
    )


def finish(planned: Plan) -> dict[str, str]:
    """Train and measure what is planned; by address, why a training has none of its last epochs:
    its loss or its weights, or those of one that it requires, did not stay finite.
    """
    announce(planned.trainings)
    diverged: dict[str, str] = {}
    for address, training in planned.everything().items():
        lost = [diverged[each.address] for each in training.requires() if each.address in diverged]
        try:
            if not lost:
                training.finish()
        except FloatingPointError as error:
            lost = [str(error)]
        if lost:
            diverged[address] = lost[0]
    for measurement in planned.measurements:  # a baseline is measured at all layers in one call
        if measurement.training.address not in diverged:
            measurement.finish()
    return diverged


# ------------------------------------------------------------------------------- is it still so


def check(evidence: Evidence, study: Study, results: Results, renew: bool = False) -> None:
    """Raise ``Stale`` when the tables belong to other settings, or when today's code would train or
    measure any of their networks otherwise; or remove them, with ``renew``.

    Addresses are compared; nothing is computed, and no run is read.
    """
    try:
        results.check(evidence.origin(study))
        if results.origin is not None:
            compare_addresses(evidence, study, results)
    except Stale as error:
        if not renew:
            raise Stale(f"{error}. With --replace they are removed and computed anew") from error
        print(f"{error}: its tables are removed", flush=True)
        results.remove()


def compare_addresses(evidence: Evidence, study: Study, results: Results) -> None:
    """Raise ``Stale`` at the first network that has another address today."""
    stored = results.read().networks.set_index(KEY)
    for seed in results.seeds():
        for layer, role, training in networks(evidence, study, seed):
            if (seed, layer, role) not in stored.index:
                continue
            for what, ours in addresses(study, layer, training).items():
                theirs = stored[what].get((seed, layer, role)) if what in stored else "unknown"
                if theirs != ours:
                    raise Stale(
                        f"the evidence in {results.folder.name} is stale: {what} of the {role} at "
                        f"{layer}, seed {seed}, was {theirs}, is {ours}"
                    )


# ------------------------------------------------------------------------- what is kept meanwhile


def folder_of(store: Store, name: str) -> Path:
    """Where the networks of one seed are kept until its rows are written."""
    return store.root / EVIDENCE / name


@contextmanager
def of_one_seed(store: Store, name: str, anew: bool = False) -> Iterator[Store | None]:
    """A store for the networks of one seed, which is deleted in the end: hundreds of networks with
    their weights of every epoch would fill a disk. Data and teachers are those of ``store``.

    It stays when the work in it was interrupted, so that it can be taken up, unless all is to be
    computed ``anew``. None while another process works in it.
    """
    folder = folder_of(store, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(seed_lock(folder), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield None
        return
    try:
        if anew and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        for kind in SHARED:
            (store.root / kind).mkdir(exist_ok=True)
            link = folder / kind
            if link.is_symlink() and link.readlink() != store.root / kind:
                link.unlink()  # of a store that was moved or copied
            if not link.is_symlink():
                link.symlink_to(store.root / kind, target_is_directory=True)
        yield Store(folder)
        shutil.rmtree(folder)  # of links to folders only the links
    finally:
        lock.release()
