"""A whole experiment, trainings and entropies, through real faults: a rerun ends with the very bits
of a quiet run.

``test_store`` and ``test_distill`` have the faults of a single artefact and a single training. Here
processes of their own are struck in the middle of a training or of an entropy, and this process
runs the experiment again on what is left.
"""

import copy
import json
import logging  # noqa: F401 - for the scenes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models  # noqa: F401 - once, before any process forks

import kpnb._learner
import kpnb.features
from kpnb.entropy import entropy
from kpnb.losses import feature_at, softened_output
from kpnb.sampling import Stochastic
from kpnb.schedule import Schedule
from kpnb.units import ImageGrid
from kpnb_book.store import Store
from kpnb_book.studies import measure
from kpnb_book.studies import training as distill
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.training import taught
from tests.drawn import TINY, draw
from tests.models import images, small_net
from tests.test_distill import Points, mlp, same

REPOSITORY = Path(__file__).parents[1]
ENV = os.environ | {
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "book"))),
}


def work(root: Path) -> dict[str, Tensor]:
    """Teacher, student and the student's entropy at every epoch, in the store of ``root``: all that
    can be compared.
    """
    options = TINY | {
        "batch_size": 8,
        "device": "cpu",
        "dataset": "folder",
        "data_root": str(root.parent / "data"),
    }
    options |= {"rank": 4, "probes": 4, "noise": 12}  # several forward passes for each entropy
    study = ImageStudy("laptop", store=Store(root / "store"), **options)
    student = study.student("FC1")
    return student.state() | measure.entropies(study, student, "FC1") | {"seen": study.x}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.kill(os.getpid(), signal.SIGINT)


def fill_the_disk() -> None:
    def fsync(_file: int) -> None:  # where a disk that reserves space late says that it has none
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    os.fsync = fsync


FAULTS = {
    "killed": (kill, -signal.SIGKILL),
    "interrupted": (interrupt, 1),
    "full": (fill_the_disk, 1),
}
PLACES = {
    "training": (kpnb._learner, "student/*/epoch-001.json"),
    "entropy": (kpnb.features, "entropy/*/epoch-000.json"),
}


def strike(root: Path, place: str, fault: Callable[[], None]) -> None:
    """Work, and call ``fault`` at the second forward pass after the first artefact of ``place`` is
    finished.
    """
    module, finished = PLACES[place]
    passes, capture = [], module.capture

    def counted(*args, **how):
        if next((root / "store").glob(finished), None):
            passes.append(place)
            if len(passes) == 2:
                fault()
        return capture(*args, **how)

    module.capture = counted
    work(root)


def in_turn(*scenes: Callable[[], object]) -> list[int]:
    """Exit codes of the scenes, each in a process of its own."""
    codes = []
    for scene in scenes:
        if not (child := os.fork()):
            scene()
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


def stage(root: Path) -> None:
    """All faults at all places, in a process that has imported everything and started no thread."""
    torch.set_num_threads(1)
    scenes = {(place, fault): root / f"{place}-{fault}" for place in PLACES for fault in FAULTS}
    codes = in_turn(
        *(lambda a=a, f=folder: strike(f, a[0], FAULTS[a[1]][0]) for a, folder in scenes.items())
    )
    print(
        json.dumps({folder.name: code for folder, code in zip(scenes.values(), codes, strict=True)})
    )


def child(code: str, *arguments: object, **options) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        f"import sys; from tests.test_faults import *; {code}",
        *map(str, arguments),
    ]
    return subprocess.Popen(
        command, env=ENV, cwd=REPOSITORY, stdout=-1, stderr=-1, text=True, **options
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Sums depend on their order: results are compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def theatre(tmp_path_factory) -> tuple[Path, dict[str, int], str]:
    """A folder with the data and what every scene left behind, the exit codes, and what was
    said.
    """
    root = tmp_path_factory.mktemp("faults")
    draw(root / "data")
    out, said = child("stage(Path(sys.argv[1]))", root).communicate(timeout=600)
    assert out, said
    return root, json.loads(out), said


@pytest.fixture(scope="module")
def quiet(theatre) -> dict[str, Tensor]:
    """The undisturbed run."""
    torch.set_num_threads(1)
    return work(theatre[0] / "quiet")


def files(root: Path, pattern: str = "store/*/*/*.json") -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in root.glob(pattern) if path.name != "config.json"
    }


def assert_rerun_is_quiet(root: Path, quiet: dict[str, Tensor]) -> None:
    """A rerun computes what is missing, only that, and leaves nothing half-written."""
    before = files(root)
    assert same(work(root), quiet)
    assert before.items() <= files(root).items(), "a finished artefact was computed again"
    assert len(files(root)) == len(files(root.parent / "quiet"))
    assert not files(root, "store/*/*/*.tmp")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_struck_in_the_middle(theatre, quiet, place: str, fault: str):
    root, codes, said = theatre
    scene = root / f"{place}-{fault}"
    assert codes[scene.name] == FAULTS[fault][1], said
    done = {path.name for path in files(scene, "store/entropy/*/epoch-*.json")}
    assert done == ({"epoch-000.json"} if place == "entropy" else set())
    assert not files(scene, "store/*/*/*.tmp")
    if fault == "full":
        assert f"cannot write to the store {scene / 'store'} ({os.strerror(ENOSPC)})" in said
    assert_rerun_is_quiet(scene, quiet)


def test_a_clock_set_back_changes_nothing(theatre, quiet, monkeypatch):
    """What is stored comes from the future, and from two different days of it."""
    root, _, _ = theatre
    scene = root / "clock"
    shutil.copytree(root / "quiet", scene)
    for path in files(scene, "store/entropy/*/epoch-001.*"):
        path.unlink()
    for number, path in enumerate(sorted(scene.rglob("*"), reverse=True)):
        os.utime(path, (4e9 - 86400 * (number % 2),) * 2)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert_rerun_is_quiet(scene, quiet)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)


def swap(one: Path, two: Path) -> None:
    """Exchange two artefacts, their JSON parts too."""
    for suffix in (".safetensors", ".json"):
        a, b = one.with_suffix(suffix), two.with_suffix(suffix)
        mine = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(mine)


DAMAGES = {
    "weights flipped": lambda of: (flip(of("student", 1)), of("entropy", 1).unlink()),
    "weights cut off": lambda of: os.truncate(of("student", 2), 999),
    "entropy flipped": lambda of: flip(of("entropy", 1)),
    "entropy cut off": lambda of: os.truncate(of("entropy", 0), 0),
    "epochs swapped": lambda of: swap(of("entropy", 1), of("entropy", 2)),
    "networks swapped": lambda of: swap(of("student", 2), of("teacher", 2)),
    "images flipped": lambda of: [
        flip(path) for path in of("student", 0).parents[2].glob("images/*/*.safetensors")
    ],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_mended(theatre, quiet, tmp_path: Path, damage: str, caplog):
    root, _, _ = theatre
    shutil.copytree(root / "quiet", tmp_path / "scene")
    (tmp_path / "data").symlink_to(root / "data")

    def find(kind: str, epoch: int) -> Path:
        return next((tmp_path / "scene/store").glob(f"{kind}/*/epoch-{epoch:03d}.safetensors"))

    DAMAGES[damage](find)
    assert same(work(tmp_path / "scene"), quiet)
    assert "is damaged: it is computed again" in caplog.text
    caplog.clear()
    assert same(work(tmp_path / "scene"), quiet)
    assert not caplog.records


STAY = "strike(Path(sys.argv[1]), 'entropy', lambda: (print('here', flush=True), time.sleep(300)))"
GO_ON = "logging.basicConfig(level=logging.INFO); work(Path(sys.argv[1]))"


def test_one_of_two_is_killed_while_the_other_waits(theatre, quiet):
    """Both want the same run; who holds its lock dies in the middle of an entropy, and the other
    takes over.
    """
    scene = theatre[0] / "rivals"
    with child(STAY, scene) as first:
        assert first.stdout.readline() == "here\n", first.stderr.read()
        with child(GO_ON, scene) as second:
            said = next((line for line in second.stderr if "waiting" in line), "nothing")
            first.kill()
            assert "waiting for another process that computes entropy/" in said
            assert first.wait(600) == -signal.SIGKILL
            assert second.wait(600) == 0, second.stderr.read()
    assert_rerun_is_quiet(scene, quiet)


def read_only(root: Path) -> None:
    """Work, as somebody who cannot write there."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if not os.geteuid():  # permissions do not bind root
        os.setgid(65534)
        os.setuid(65534)
    assert not os.access(root / "store", os.W_OK)
    work(root)


def test_a_read_only_store_gives_its_results_and_names_what_it_cannot_take(theatre, quiet):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        whole, part = scenes = [Path(folder) / "whole", Path(folder) / "part"]
        shutil.copytree(theatre[0] / "data", Path(folder) / "data")
        for scene in scenes:
            shutil.copytree(theatre[0] / "quiet", scene)
        next(part.glob("store/entropy/*/epoch-002.json")).unlink()
        before = files(whole, "**/*")
        code = "print(in_turn(*(lambda s=s: read_only(Path(s)) for s in sys.argv[1:])))"
        out, said = child(code, *scenes).communicate(timeout=600)
        assert json.loads(out) == [0, 1], said
        assert files(whole, "**/*") == before
        assert f"cannot write to the store {part / 'store'}" in said
        assert "set KPNB_STORE to another folder" in said
        for path in Path(folder).rglob("*/"):
            path.chmod(0o755)


# ------------------------------------------------------------------------------------ out of memory


class Memory(nn.Module):
    """Room for so many rows after ``spared`` passes; says so as CUDA does, or lets the CPU's
    allocator say it.
    """

    def __init__(self, rows: int, cuda: bool | str = True, spared: int = 0) -> None:
        super().__init__()
        self.rows, self.cuda, self.spared, self.seen = rows, cuda, spared, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.rows and len(self.seen) > self.spared:
            if isinstance(self.cuda, str):
                raise RuntimeError(self.cuda)
            if self.cuda:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            torch.empty(2**60)
        return x


def halvings(caplog) -> list[int]:
    return [
        record.args[1] for record in caplog.records if "does not fit into memory" in record.message
    ]


WORDS = [  # of the driver, of a library of CUDA, and of convolutions
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "GET was unable to find an engine to execute this computation",
]
CARDS = ["CUDA", "CPU", "driver", "cuBLAS", "cuDNN"]


@pytest.mark.parametrize("cuda", [True, False, *WORDS], ids=CARDS)
def test_entropy_halves_a_batch_that_does_not_fit(cuda: bool, caplog):
    model, x = small_net().double(), images(11)
    whole = entropy(model, x, ["5", "8"], units=ImageGrid(4))
    memory = Memory(3, cuda)
    small = entropy(nn.Sequential(memory, *model), x, ["6", "9"], units=ImageGrid(4))
    for one, two in zip(whole.values(), small.values(), strict=True):
        for name, value in one.tensors().items():
            torch.testing.assert_close(two.tensors()[name], value, rtol=1e-9, atol=1e-9)
    assert halvings(caplog) == [16, 8, 4, 2]
    assert sum(rows > 3 for rows in memory.seen) == 4, "a size that failed was tried again"


def test_the_stochastic_learner_halves_too(caplog):
    model, x = nn.Sequential(Memory(8), *small_net()).float(), images(2, dtype=torch.float32)
    found = entropy(model, x, "9", units=ImageGrid(4), solver=Stochastic(steps=2, samples=16))
    assert found.entropy.isfinite().all()
    assert halvings(caplog) == [16, 8]


def test_a_single_row_that_does_not_fit_is_an_error_and_other_errors_are_not_mistaken(caplog):
    with pytest.raises(MemoryError, match=r"entropy .* does not fit into memory with 1 rows"):
        entropy(nn.Sequential(Memory(0), *small_net()).double(), images(), "9", units=ImageGrid(4))
    assert halvings(caplog) == [16, 8, 4, 2, 1]
    caplog.clear()
    with pytest.raises(RuntimeError, match="shape"):
        entropy(
            nn.Sequential(nn.Flatten(), nn.Linear(7, 3)).double(), images(), "1", units=ImageGrid(4)
        )
    assert not halvings(caplog)


@pytest.mark.parametrize("adamw", [False, True], ids=["SGD", "AdamW"])
def test_training_sums_the_gradients_of_parts_that_fit(tmp_path: Path, adamw: bool, caplog):
    """Memory runs out after the first step of an epoch, which starts again from the same weights
    and momentum.
    """
    data, teacher = Points(49, dtype=torch.float64), nn.Sequential(nn.Linear(5, 8)).double()
    schedule = Schedule(epochs=2, batch_size=16, adamw=adamw)
    layers, trainings = (nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 8), nn.Linear(8, 3)), []
    for name, memory in (("quiet", Memory(99)), ("small", Memory(4, spared=6))):
        store, model = Store(tmp_path / name), nn.Sequential(memory, *layers).double()
        student = taught(store, model, data, schedule, feature_at("3", "0"), teacher, test=data)
        output = taught(store, model, data, schedule, softened_output(), mlp(1).double(), test=data)
        trainings.append((student.finish(), output.finish()))
    assert halvings(caplog) == [8, 4] * 2
    for quiet, small in zip(*trainings, strict=True):
        for epoch in range(3):
            torch.testing.assert_close(
                small.state(epoch), quiet.state(epoch), rtol=1e-10, atol=1e-12
            )
        assert [entry["loss"] for entry in small.log] == pytest.approx(
            [e["loss"] for e in quiet.log], nan_ok=True
        )


def test_a_teacher_that_does_not_fit_answers_in_parts(tmp_path: Path, caplog):
    data, schedule, states = Points(20, dtype=torch.float64), Schedule(epochs=1, batch_size=16), []
    torch.manual_seed(0)
    layer = nn.Linear(5, 8)
    for rows in (99, 5):
        teacher = nn.Sequential(Memory(rows), layer).double()
        model, store = nn.Sequential(copy.deepcopy(layer)).double(), Store(tmp_path / str(rows))
        states.append(taught(store, model, data, schedule, feature_at("0", "1"), teacher).state())
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12)
    assert halvings(caplog) == [8, 4]


def test_batch_statistics_need_the_whole_batch_unless_they_are_frozen(tmp_path: Path, caplog):
    data, schedule = Points(40), Schedule(epochs=1, batch_size=16)
    model = nn.Sequential(Memory(4), nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(
        MemoryError, match=r"a batch of baseline/.* needs it whole: choose a smaller batch_size"
    ):
        distill.baseline(Store(tmp_path), model, data, schedule).finish()
    assert next(tmp_path.glob("baseline/*/epoch-000.json"))
    assert not halvings(caplog)
    above = distill.head(Store(tmp_path), model, "3", data, schedule).finish()
    assert halvings(caplog) == [8, 4]
    assert same(
        {k: v for k, v in above.state(0).items() if k[0] < "4"},
        {k: v for k, v in above.state().items() if k[0] < "4"},
    )
