"""Evidence: enough seeds of a study to decide, and the controls, computed seed by seed.

    collect(STUDIES["images"], range(20), Results(RESULTS / "images"))

The number of seeds is stated before (``SEEDS``), nothing is looked at in between, and every control
has as many as the verdict beside which it stands.
"""

import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kpnb import __version__
from kpnb._messages import one_of
from kpnb._progress import Progress
from kpnb.checkpoints import digest
from kpnb.learning import learning_distance
from kpnb.metrics import Metrics
from kpnb_book.place import EVIDENCE, seed_lock
from kpnb_book.store import Store
from kpnb_book.studies import measure
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.controls import random_labels_teacher
from kpnb_book.studies.curves import curve_columns
from kpnb_book.studies.foreground import rule_columns
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement, artefact, distance
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import KEY, NETWORK, SAMPLE, Results, Rows, Stale, differences
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.study import Study
from kpnb_book.studies.text import QuestionStudy, TextStudy
from kpnb_book.studies.training import Training, announce

METHOD = 1
"""Raise it when the numbers change though no setting does: stored evidence is stale then."""
PROFILE = "laptop"
SEEDS = range(20)
SHIFTS = range(1, 16)  # the samples whose regions judge a sample, so many places further on
SHARED = ("images", "clouds", "texts", "teacher")  # kinds of runs that all seeds have in common


Frames = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]
"""Of networks, samples and places, as in ``Rows``."""


class OneNetwork(NamedTuple):
    """A network whose rows are written: what it is of the ``study``, and for ``whole`` see
    ``rows_of``.
    """

    study: Study
    layer: str
    role: str
    training: Training
    seed: int
    whole: Study | None = None


@dataclass(frozen=True)
class Evidence:
    """What is collected: which study, and which networks of it beside student and baseline.

    name        of the folder of its tables
    kind        the study's class
    overrides   of its laptop profile
    controls    names in ``CONTROLS``
    seeds       how many, stated before any is computed
    official    whether the data are the paper's own, which a reader has to bring
    """

    name: str
    kind: type[Study]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[str, ...] = ("untrained", "equal-rate")
    seeds: range = SEEDS
    official: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """What the networks of a seed are."""
        return "baseline", "student", *self.controls

    @property
    def checked(self) -> tuple[str, ...]:
        """Those that are computed again to check the tables."""
        return "student", "baseline"

    @property
    def undecided(self) -> tuple[str, ...]:
        """Settings that have to be chosen before anything is counted, in words."""
        return ()

    def training(self, study: Study, role: str, layer: str, seed: int) -> Training:
        """The network of a ``role`` that is measured at ``layer``."""
        make = {"baseline": lambda study, layer, seed: study.baseline(seed), "student": student_of}
        return (make | CONTROLS)[role](study, layer, seed)

    def completed(self, plan: Plan, roles: Collection[str], seed: int) -> Plan:
        """``plan``, which measures the networks of these ``roles``, and what their rows take
        besides.
        """
        study = plan.study
        heads = [study.head(layer, seed) for layer in study.settings.layers if "student" in roles]
        return plan.also(*heads)

    def rows(self, one: OneNetwork) -> Frames:
        """The rows of one network, see ``rows_of``."""
        study, layer, role, training, seed, whole = one
        return rows_of(study, layer, role, training, seed, whole=whole)

    def study(self, store: Store | None = None, **overrides: Any) -> Study:
        """The study, at its laptop settings but for ``overrides``."""
        return self.kind(PROFILE, store=store, **{**self.overrides, **overrides})

    def origin(self, study: Study) -> dict[str, Any]:
        """What the tables belong to, in JSON's types."""
        return self.stated(study.settings) | {
            "samples": len(study.measured),
            "measured": digest(study.measured.config)[:20],
        }

    def stated(self, settings: Settings) -> dict[str, Any]:
        """The part of ``origin`` that is known without loading data. Device, folder and seeds are
        left out: no number depends on the first two, and seeds are rows of the tables.
        """
        values = asdict(settings)
        for name in ("device", "data_root", "seeds"):
            del values[name]
        study = {"name": self.name, "study": self.kind.__name__, "profile": PROFILE}
        return study | {"settings": values, "method": METHOD}

    def outdated(self, results: Results) -> list[str]:
        """Settings in which the tables differ from today's, in words; for pages, without the data.
        Empty when there are no tables.
        """
        theirs = results.origin
        if theirs is None:
            return []
        ours = self.stated(self.kind.resolve(PROFILE, **self.overrides))
        return differences({name: theirs.get(name) for name in ours}, ours)


@dataclass(frozen=True)
class ImageEvidence(Evidence):
    """Besides the columns of all studies, samples have the metrics by other ``rules`` of what is
    foreground, and networks their points by epoch.
    """

    rules: tuple[str, ...] = ()

    def rows(self, one: OneNetwork) -> Frames:
        networks, samples, places = super().rows(one)
        study, training, layer = one.study, one.training, one.layer
        networks = networks.assign(**curve_columns(study, training, layer))
        more = rule_columns(study, training, layer, self.rules)
        return networks, samples.assign(**more), places


def at_equal_rate(study: Study, layer: str, seed: int) -> Training:
    """The student, trained with the baseline's rate."""
    student = study.student(layer, seed)
    return replace(student, schedule=replace(student.schedule, lr=study.settings.lr))


CONTROLS: dict[str, Callable[[Study, str, int], Training]] = {
    "untrained": lambda study, layer, seed: study.untrained_student(layer, seed),
    "pretrained": lambda study, layer, seed: study.student(layer, seed, teacher_epoch=0),
    "equal-rate": at_equal_rate,
    "random-labels": lambda study, layer, seed: study.student(
        layer, seed, teacher=random_labels_teacher(study)
    ),
}

ENOUGH = {"images": 112, "clouds": 112, "sentiment": 208, "questions": 160, "sst2": 480}
"""Measured samples, so many that each metric is defined for at least a hundred, of SST-2 for two
hundred: on seed 100, 92 of 160 sentences have a foreground point at some epoch in student and
baseline both, without which D and rho are undefined.
"""

OFFICIAL = ("untrained", "random-labels", "equal-rate")  # controls on the paper's own data
OF_TEXTS = ("untrained", "pretrained", "equal-rate")
"""Controls where the teacher starts from a pre-trained encoder: also the student of that, as it
came."""


def _clouds(network: str, seeds: range = SEEDS) -> Evidence:
    settings = {"network": network, "analysed": ENOUGH["clouds"]}
    return Evidence(network, CloudStudy, settings, seeds=seeds)


def _drawings(title: str, **changed: Any) -> Evidence:
    """An experiment: the embedded images with one setting ``changed``."""
    settings = {"analysed": ENOUGH["images"], **changed}
    return Evidence(f"images-{title}", ImageStudy, settings, (), range(5))


def _tiny_imagenet(
    network: str, title: str, controls: tuple[str, ...] = (), **more: Any
) -> Evidence:
    """Photographs; their masks are boxes. With ``controls`` as many seeds as other studies have."""
    settings = {
        "dataset": "tiny-20",
        "network": network,
        "layers": ("Conv", "FC1", "FC2"),
        "analysed": ENOUGH["images"],
        **more,
    }
    seeds = SEEDS if controls else range(5)
    name = f"tiny-imagenet-{title}"
    return ImageEvidence(name, ImageStudy, settings, controls, seeds, True, rules=("apart",))


def _sst2(name: str, controls: tuple[str, ...], seeds: range, **more: Any) -> Evidence:
    settings = {"dataset": "sst2", "analysed": ENOUGH["sst2"], **more}
    return Evidence(name, TextStudy, settings, controls, seeds, official=True)


_ALL = [
    ImageEvidence("images", ImageStudy, {"analysed": ENOUGH["images"]}, rules=("box", "apart")),
    _tiny_imagenet("vgg11_bn", "vgg11", OFFICIAL),
    _tiny_imagenet("alexnet", "alexnet"),
    _tiny_imagenet("vgg16_bn", "vgg16"),
    _tiny_imagenet("vgg19_bn", "vgg19"),
    _tiny_imagenet("vgg11_bn", "larger-teacher", teacher_network="vgg16_bn"),
    _drawings("small-share", share=500),
    _drawings("weak-teacher", teacher_samples=2000),
    _clouds("pointnet"),
    _clouds("pointnet2"),
    _clouds("dgcnn", range(10)),
    _clouds("pointconv", range(10)),
    Evidence("sentiment", TextStudy, {"analysed": ENOUGH["sentiment"]}, OF_TEXTS),
    _sst2("sst2", OFFICIAL, SEEDS),
    _sst2("sst2-six-layers", (), range(5), depth="all"),
    Evidence("questions", QuestionStudy, {"analysed": ENOUGH["questions"]}, OF_TEXTS),
]
STUDIES = {each.name: each for each in _ALL}


def networks(
    evidence: Evidence, study: Study, seed: int, roles: Collection[str] | None = None
) -> Iterator[tuple[str, str, Training]]:
    """Layer, role and training of each network of a ``seed``, of these ``roles`` (None: all)."""
    for role in evidence.roles:
        if roles is None or role in roles:
            for layer in study.settings.layers:
                yield layer, role, evidence.training(study, role, layer, seed)


def student_of(study: Study, layer: str, seed: int) -> Training:
    """The student of a layer."""
    return study.student(layer, seed)


def plan(evidence: Evidence, study: Study, seed: int, roles: Collection[str] | None = None) -> Plan:
    """What is trained and measured for a ``seed``."""
    chosen = list(networks(evidence, study, seed, roles))
    measured = Plan.measuring(study, [(each, layer) for layer, _, each in chosen])
    return evidence.completed(measured, {role for _, role, _ in chosen}, seed)


def collect(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store | None = None,
    *,
    only: str | None = None,
    renew: bool = False,
    **overrides: Any,
) -> list[int]:
    """Compute what the tables lack of the ``seeds``, and write each seed as soon as it is there.

    only    networks of one role alone, as "untrained"
    renew   whether stale tables are removed first

    Returns the seeds that were computed; one that another process computes is left to it. A seed
    that was interrupted goes on where it stopped. Raises ``Stale`` when the tables belong to other
    settings or other code, and ValueError while something is still to be chosen.
    """
    if evidence.undecided:
        raise ValueError(f"still to be chosen: {', '.join(evidence.undecided)}")
    store = store or Store()
    study = evidence.study(store, **overrides)
    check(evidence, study, results, renew)
    todo = left(evidence, seeds, results, store, only)
    done = []
    with Progress(len(todo), f"seeds of {evidence.name}", "seed", hidden=not todo) as bar:
        for number, seed in enumerate(todo, 1):
            start = time.perf_counter()
            with of_one_seed(store, f"{evidence.name}-{seed}") as apart:
                # Another process may have written it in the meantime.
                roles = lacking(evidence, seed, results, only)
                if apart is not None and roles:
                    own = evidence.study(apart, **overrides)
                    results.add(evidence.origin(own), seed_rows(evidence, own, seed, roles))
                    done.append(seed)
            bar.step()
            what = "is computed by another process" if apart is None else "is done"
            took = f"{time.perf_counter() - start:.0f} s, {number} of {len(todo)}"
            print(f"{evidence.name}: seed {seed} {what} ({took})", flush=True)
    return done


def lacking(
    evidence: Evidence, seed: int, results: Results, only: str | None = None
) -> tuple[str, ...]:
    """Roles whose networks the tables lack of a ``seed``; of one role alone with ``only``."""
    if only is not None:
        one_of("network", only, evidence.roles)
    known = results.networks()
    wanted = evidence.roles if only is None else (only,)
    return tuple(role for role in wanted if (seed, role) not in known)


def left(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store,
    only: str | None = None,
) -> list[int]:
    """The ``seeds`` that the tables lack, and those whose networks should have been deleted, but
    the process was killed before that.
    """

    def has_remains(seed: int) -> bool:
        folder = folder_of(store, f"{evidence.name}-{seed}")
        return folder.exists() and not lacking(evidence, seed, results)

    return [
        seed
        for seed in sorted(set(seeds))
        if lacking(evidence, seed, results, only) or has_remains(seed)
    ]


def plans(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store | None = None,
    only: str | None = None,
    **overrides: Any,
) -> Iterator[Plan]:
    """What ``collect`` would do, seed by seed. Raises ``Stale`` as it does."""
    store = store or Store()
    study = evidence.study(store, **overrides)
    check(evidence, study, results)
    for seed in sorted(set(seeds)):
        if roles := lacking(evidence, seed, results, only):
            begun = folder_of(store, f"{evidence.name}-{seed}")
            own = evidence.study(Store(begun), **overrides) if begun.exists() else study
            yield plan(evidence, own, seed, roles)


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


def addresses(study: Study, layer: str, training: Training) -> dict[str, str]:
    """What determines a network and its entropies, as the store addresses them."""
    measured = Measurement(study, training, (layer,)).run(layer)
    return {"training": training.address, "measurement": measured.address}


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
            if not (folder / kind).is_symlink():
                (folder / kind).symlink_to(store.root / kind, target_is_directory=True)
        yield Store(folder)
        shutil.rmtree(folder)  # of links to folders only the links
    finally:
        lock.release()


def seed_rows(
    evidence: Evidence,
    study: Study,
    seed: int,
    roles: Collection[str] | None = None,
    whole: Study | None = None,
) -> Rows:
    """The rows of the networks of one ``seed``, of these ``roles`` (None: all); ``whole`` as in
    ``rows_of``.
    """
    planned = plan(evidence, study, seed, roles)
    announce(planned.trainings)
    for measurement in planned.measurements:  # a baseline is measured at all layers in one call
        measurement.finish()
    chosen = networks(evidence, study, seed, roles)
    found = [evidence.rows(OneNetwork(study, *each, seed, whole)) for each in chosen]
    return Rows(*(pd.concat(part, ignore_index=True) for part in zip(*found, strict=True)))


def rows_of(
    study: Study,
    layer: str,
    name: str,
    training: Training,
    seed: int,
    *,
    whole: Study | None = None,
) -> Frames:
    """Frames of one network: its own row, those of the samples, that of the cells.

    whole   the study whose first measured samples are those of ``study``, for the regions of other
            samples; None: the study itself
    """
    measured = Measurement(study, training, (layer,)).values()[layer]
    path = distance(study, training, layer)
    found = measure.six(study, measured["entropy"], path)
    where = {"seed": seed, "layer": layer, "network": name}
    network = where | scores(study, layer, name, training, seed)
    network |= addresses(study, layer, training) | provenance(study, layer, training)
    network["path"] = path[-1].item()
    network["linearity"] = measured["linearity"][-1].nanmean().item()

    shorter = shorter_path(study, layer, name, seed)
    columns = sample_columns(study, found, measured["entropy"], path, shorter)
    columns |= place_columns(whole or study, found)
    samples = pd.DataFrame({"sample": range(len(found.n_fg))} | columns)
    return (
        pd.DataFrame([network])[[*KEY, *NETWORK]],
        samples.assign(**where)[[*KEY, "sample", *SAMPLE]],
        place_row(study, where, found),
    )


def shorter_path(study: Study, layer: str, name: str, seed: int) -> float | None:
    """Length of the shorter path of student and baseline; None for another network."""
    if name not in ("student", "baseline"):
        return None
    pair = study.student(layer, seed), study.baseline(seed)
    return min(distance(study, training, layer)[-1].item() for training in pair)


def scores(study: Study, layer: str, name: str, training: Training, seed: int) -> dict[str, float]:
    """Held-out accuracy, of a student with its head, and feature error, where there is one."""
    whole = {"student": study.head(layer, seed), "baseline": training}.get(name)
    return {
        "accuracy": math.nan if whole is None else study.scores(whole)["accuracy"],
        "feature_error": training.log[-1].get("test_feature_error", math.nan),
    }


def provenance(study: Study, layer: str, training: Training) -> dict[str, Any]:
    """Where a network was trained and measured, with what, when, and how long it took."""
    measured = Measurement(study, training, (layer,))
    seconds = sum(entry.get("seconds", 0.0) for entry in training.log)
    for epoch in measured.numbers:
        sidecar = measured.run(layer).path / f"{artefact(epoch)}.json"
        seconds += json.loads(sidecar.read_text("utf8"))["seconds"]
    return {
        "seconds": round(seconds, 1),
        "machine": machine(study.settings.device),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def versions() -> str:
    """Of the packages on which the numbers depend."""
    return f"torch {torch.__version__}, kpnb {__version__}"


def machine(device: str = "cpu") -> str:
    """What the processor is called, and how many threads it has; before it the GPU, if one is
    used.
    """
    threads = torch.get_num_threads()
    found = f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}"
    is_gpu = torch.device(device).type == "cuda"
    return f"{torch.cuda.get_device_name(device)}, {found}" if is_gpu else found


def sample_columns(
    study: Study, found: Metrics, entropy: Tensor, path: Tensor, shorter: float | None
) -> dict[str, list[float]]:
    """The columns of ``SAMPLE`` that a sample's own regions give, ``N`` values each, from a
    network's ``entropy [M + 1, N, n]`` and ``path [M + 1]``; ``shorter`` is the length of the
    shorter path of a pair, if there is one.
    """
    values = {
        "n_fg": found.n_fg,
        "n_bg": found.n_bg,
        "lambda": found.ratio,
        "d": found.distance,
        "share": found.distance / path[-1],
        "d_equal": distance_within(study, entropy, path, shorter),
        "rho": found.rho,
    }
    return {name: value.tolist() for name, value in values.items()}


def place_columns(study: Study, found: Metrics) -> dict[str, list[float]]:
    """The columns of ``SAMPLE`` that the regions of other samples give; undefined where the
    sample's own numbers are.
    """
    undefined = found.n_fg.isnan()
    names = ("place_n_fg", "place_n_bg", "place_lambda")
    counts = place_counts(study, found.points[-1])
    return {
        name: count.where(~undefined, torch.nan).tolist()
        for name, count in zip(names, counts, strict=True)
    }


def distance_within(study: Study, entropy: Tensor, path: Tensor, length: float | None) -> Tensor:
    """Weight distance ``[N]`` at which each sample has the most foreground points (Eq. 8), among
    the epochs up to which the network has gone at most ``length``; NaN without one.
    """
    epochs = 0 if length is None else int((path <= length * (1 + 1e-9)).sum())
    if epochs < 2:  # the untrained network alone is no path
        return torch.full((entropy.shape[1],), torch.nan, dtype=path.dtype)
    return learning_distance(measure.points(study, entropy[:epochs]).n_fg, path[:epochs])


def place_counts(study: Study, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a liking for a place alone gives: foreground and background points and lambda, ``[N]``
    each, of the same ``points [N, n]`` judged by the regions of other samples, mean over
    ``SHIFTS``; they may be those of the first measured samples only.

    The points stay as they are: the level that decides is still that of the sample's own
    background.
    """
    on, off, ratio = [], [], []
    for shift in SHIFTS:
        foreground, background = (each[: len(points)] for each in study.other_regions(shift))
        inside = (points & foreground).sum(-1).double()
        outside = (points & background).sum(-1).double()
        on.append(inside)
        off.append(outside)
        ratio.append(inside / (inside + outside))
    return tuple(torch.stack(part).nanmean(0) for part in (on, off, ratio))


def place_row(study: Study, where: Mapping[str, Any], found: Metrics) -> pd.DataFrame:
    """In how many samples each cell of a grid is a knowledge point; no row for other units."""
    if not isinstance(study, ImageStudy):
        return pd.DataFrame(columns=KEY)
    counts = found.points[-1].sum(0).tolist()
    cells = {f"cell{number}": count for number, count in enumerate(counts)}
    return pd.DataFrame([{**where, **cells}])


def processor() -> str:
    """What the processor is called."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
