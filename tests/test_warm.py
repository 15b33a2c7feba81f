"""Forked kernels beside started ones: nothing tells them apart but the time, and none is left
behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.provisioning import KernelProvisionerFactory

from kpnb_book.run.notebooks import NotebookError, run_notebook
from kpnb_book.run.warm import warm
from tests.test_runner import printed, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

STATE = """
import json, os, random, signal, sys, threading
early = "torch" in sys.modules
names = sorted(name for name in globals() if not name.startswith("_"))
import matplotlib, numpy, torch
print(json.dumps({
    "names": names, "folder": os.getcwd(), "path": sys.path, "main": __name__, "arguments":
    len(sys.argv), "environment": {k: v for k, v in os.environ.items() if k not in VARY}, "backend":
    matplotlib.rcParams["backend"], "threads": torch.get_num_threads(), "spin":
    os.environ["GOMP_SPINCOUNT"], "leader": os.getpgid(0) == os.getsid(0) == os.getpid(), "alive":
    threading.active_count(), "interrupt": repr(signal.getsignal(signal.SIGINT)), "child":
    repr(signal.getsignal(signal.SIGCHLD)), "parent": int(os.environ["JPY_PARENT_PID"]) ==
    os.getppid(), "input": os.readlink("/proc/self/fd/0"),
}))
print(early, random.random(), numpy.random.random(), torch.rand(()).item())
""".replace(
    "VARY",
    repr({"KPNB_PROGRESS", "KPNB_WARM", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JPY_PARENT_PID"}),
)
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


@pytest.fixture(scope="module", autouse=True)
def server():
    with warm():
        yield


def outputs(path: Path) -> list[list[str]]:
    cells = nbformat.read(path, as_version=4).cells
    return [sorted(output.get("data", {})) for cell in cells for output in cell.get("outputs", [])]


def test_a_forked_kernel_is_as_good_as_a_started_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, states, others, shown = write(tmp_path / "10_state.ipynb", STATE, FIGURE), [], [], []
    with warm():
        for how in ("forked", "forked too", "started"):
            if how == "started":
                KernelProvisionerFactory.instance().default_provisioner_name = "local-provisioner"
            run_notebook(path, copy := tmp_path / how / path.name)
            state, other = printed(copy).splitlines()
            states, others, shown = (
                [*states, json.loads(state)],
                [*others, other.split()],
                [*shown, outputs(copy)],
            )
    assert [state.pop("input") for state in states[:2]] == [os.devnull] * 2
    del states[2]["input"]
    assert states[0] == states[1] == states[2]
    assert shown[0] == shown[1] == shown[2]
    assert any("image/png" in kinds for kinds in shown[0])
    assert [early for early, *_ in others] == ["True", "True", "False"]
    assert len({number for _, *numbers in others for number in numbers}) == 9, (
        "two kernels draw the same numbers"
    )


def test_what_one_kernel_does_another_does_not_see(tmp_path):
    spoil = "import os, torch\ntorch.manual_seed(1)\ntorch.relu = None\nos.environ['SPOILT'] = 'yes'\nleft = 1"
    look = (
        "import os, torch\nprint(torch.relu is None, 'SPOILT' in os.environ, 'left' in globals())"
    )
    run_notebook(write(tmp_path / "10_spoil.ipynb", spoil), tmp_path / "out" / "10_spoil.ipynb")
    run_notebook(write(tmp_path / "11_look.ipynb", look), tmp_path / "out" / "11_look.ipynb")
    assert printed(tmp_path / "out" / "11_look.ipynb").split() == ["False"] * 3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import time; time.sleep(600)", "cell 2 .import time; .*: CellTimeoutError"),
        ("import os; os._exit(1)", "cell 2 .import os; .*: DeadKernelError"),
        ("import os; os.kill(os.getpid(), 9)", "cell 2 .import os; .*: DeadKernelError"),
    ],
    ids=["hangs", "exits", "is killed"],
)
def test_kernel_that_does_not_answer(tmp_path, source, says):
    with pytest.raises(NotebookError, match=f"12_stuck.ipynb failed in {says}"):
        run_notebook(
            write(tmp_path / "12_stuck.ipynb", source),
            tmp_path / "out" / "12_stuck.ipynb",
            timeout=2,
        )


def test_a_server_that_is_gone_is_an_error(tmp_path):
    path = write(tmp_path / "10_any.ipynb", "print(1)")
    with warm():
        (server,) = children(os.getpid(), "kpnb_book.run.warm")[-1:]
        os.kill(server, signal.SIGKILL)
        with pytest.raises(NotebookError, match="its start: Connection"):
            run_notebook(path, tmp_path / "out" / "10_any.ipynb")


def children(parent: int, command: str = "") -> list[int]:
    """Processes that ``parent`` has started and that run, with this in their command line, oldest
    first.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ppid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if ppid == parent and command in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return sorted(found)


def test_nothing_is_left_of_a_build_that_is_killed(tmp_path):
    mark = tmp_path / "kernel"
    path = write(
        tmp_path / "10_wait.ipynb",
        f"import os, time\nprint(os.getpid(), file=open({str(mark)!r}, 'w'))\ntime.sleep(600)",
    )
    script = "import sys; from pathlib import Path; from kpnb_book.run.warm import warm; from kpnb_book.run.notebooks import run_notebook\n"
    script += (
        f"with warm(): run_notebook(Path({str(path)!r}), Path({str(tmp_path / 'out.ipynb')!r}))"
    )
    builder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    wait_for(lambda: mark.exists() and mark.read_text().strip())
    kernel, servers = int(mark.read_text()), children(builder.pid, "kpnb_book.run.warm")
    assert len(servers) == 1
    assert kernel in children(servers[0])
    builder.kill()
    builder.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (kernel, *servers)))


def wait_for(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
