"""What several test files share."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.bars import Bar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub; read when it is imported

# Every epoch of a training is written through to the disk, hundreds of times in some tests; in
# memory that takes no time.
MEMORY = Path("/dev/shm")


def _holds_tests(folder: Path) -> bool:
    """Whether there is room for all temporary files, and what is compiled there can be run."""
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return False
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC and shutil.disk_usage(folder).free > 4 << 30


if "PYTEST_DEBUG_TEMPROOT" not in os.environ:  # as in the workers, who have it from here
    folder = tempfile.mkdtemp(prefix="kpnb-tests-", dir=MEMORY if _holds_tests(MEMORY) else None)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
    # in the end, and not test by test: clusters and servers that go on stand in folders of others
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

# Workers take a file at a time, in this order, so that what a file's tests share is made once. The
# longest come first: none of them is begun when the other workers have nothing left.
LONGEST = (
    "test_pages.py",
    "test_engine.py",
    "test_jupyterlab.py",
    "test_runner.py",
    "test_sweep.py",
    "test_origin.py",  # which has a cluster too
    "test_faults.py",
    "test_evidence.py",
    "test_entropy.py",
    "test_study.py",
    "test_transformer.py",
    "test_evidence_page.py",
    "test_your_own.py",
    "test_repository.py",
    "test_loss_page.py",
    "test_loss_study.py",
    "test_architectures.py",
    "test_benchmarks.py",
    "test_experiments.py",
    "test_controls.py",
    "test_official.py",
    "test_distill.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    size = {path: path.stat().st_size for path in {item.path for item in items}}

    def order(item: pytest.Item) -> tuple[int, int, str]:
        """Behind those that are named, large files before small ones."""
        return place.get(item.path.name, len(place)), -size[item.path], item.path.name

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """What all imports have made stays to the end: collections of garbage need not look at it."""
    gc.collect()
    gc.freeze()


def give_up(reason: str) -> None:
    """Skip where a browser or npm may be missing; CI has to have them."""
    if os.environ.get("CI"):
        pytest.fail(f"CI tests the pages, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A browser for the tests of one file: while it is open, nobody else can run an event loop."""
    from kpnb_book.run.browser import BrowserError, open_browser

    try:
        with open_browser() as browser:
            yield browser
    except BrowserError as error:
        give_up(str(error))


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Dask cluster that is there already: two workers of one thread."""
    import dask
    from distributed import LocalCluster

    folder = str(tmp_path_factory.mktemp("dask"))
    quiet = {"dashboard_address": ":0", "silence_logs": 50, "local_directory": folder}
    settings = {"temporary-directory": folder}
    # it waits most of the time, which by its own settings takes an eighth of a core
    settings |= {"distributed.worker.profile.enabled": False}
    settings |= {"distributed.admin.tick.interval": "1s"}
    settings |= {"distributed.admin.system-monitor.interval": "5s"}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, **quiet) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture(scope="session", autouse=True)
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What PyTorch compiles goes where pytest tidies up, not beside it."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> "list[Bar]":
    """The bars of progress that are there to be seen."""
    from tests.bars import watched

    return watched(monkeypatch)
