"""The engine: what workers get, what waits for what, and the faults that end workers, kernels and
the program itself.
"""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask
import pandas as pd
import psutil
import pytest
from distributed import Client

from kpnb_book.run import engine
from kpnb_book.run.command_line import main
from kpnb_book.run.engine import Task, environments, in_order
from kpnb_book.run.errors import NotebookError, UsageError
from tests.test_runner import write
from tests.test_sweep import HEAD, RESULTS, grid, ran, root

__all__ = ["root"]


def work(
    text: str, folder: Path, together: int, *, tell: Callable[[str], None], scratch: str
) -> str:
    """In place of a notebook: note when it begins and ends, wait until so many have begun
    ``together``, and fail where the text says so.
    """
    noted = folder / "noted"
    with noted.open("a") as file:
        file.write(f"{text} begins {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    wait_for(lambda: noted.read_text().count("begins") >= together)
    tell(f"doing {text}")
    if "fails" in text:
        raise NotebookError(f"{text} has failed")
    with noted.open("a") as file:
        file.write(f"{text} ends\n")
    return text.upper()


def task(text: str, folder: Path, *after: str, together: int = 0) -> Task:
    arguments = {"text": text, "folder": folder, "together": together}
    return Task(text, f"label of {text}", work, arguments, folder / f"{text}.log", after)


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_workers_share_cores_and_gpus_as_the_user_wants(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert environments(1) == [{}]  # a single one has everything
    found = environments(3)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["5", "GPU-7", "5"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU, says the user
    assert environments(2) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_tasks_that_come_after_others(tmp_path):
    a, b, c = task("a", tmp_path), task("b", tmp_path, "a"), task("c", tmp_path, "b", "elsewhere")
    assert in_order([c, b, a]) == [a, b, c]
    assert in_order([b, c]) == [b, c]  # a is done already
    d = task("d", tmp_path)
    assert in_order([d, a, b, c]) == [a, b, d, c]  # first those for which most wait
    e = replace(task("e", tmp_path), long=True)
    assert in_order([d, c, e]) == [e, d, c]
    with pytest.raises(NotebookError, match="these wait for each other: a, b"):
        in_order([c, task("a", tmp_path, "b"), b][1:])


def test_no_worker_is_idle_while_a_task_could_begin(tmp_path):
    """One worker is held until all other tasks have begun, those that come after others too."""
    short = [task(name, tmp_path) for name in "bcde"]
    later = [task(name, tmp_path, before) for name, before in (("f", "b"), ("g", "f"), ("h", "g"))]
    tasks = [task("a", tmp_path, together=8), *short, *later]
    with engine.cluster(2) as client:
        outcomes = engine.run(client, tasks)
    assert {name: one.value for name, one in outcomes.items()} == {n: n.upper() for n in "abcdefgh"}


def variables() -> dict[str, str]:
    """The environment, without what Dask notes about itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("__DASK")}


def is_deaf(address: str) -> bool:
    """Whether nothing is answered to somebody on this machine who has no key."""
    host, port = address.removeprefix("tls://").split(":")
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            anyone.wrap_socket(plain) as secret,
        ):
            return secret.recv(1) == b""
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error)


def test_local_workers_and_what_is_shown(tmp_path, monkeypatch, capsys):
    """One GPU each, a failure that cancels nothing, what kernels say, a cluster that nobody else
    speaks to, and nothing left behind.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    before = variables()
    (tmp_path / "b.log").write_text("said by a library\n")
    tasks = [
        task("a fails", tmp_path, together=2),
        task("b", tmp_path, together=3),
        task("c", tmp_path, "a fails"),
    ]
    with engine.cluster(2) as client:
        outcomes = engine.run(client, tasks, done=1)
        assert engine.run(client, [task("d", tmp_path)])["d"].value == "D"
        assert is_deaf(client.scheduler.address)
    assert [outcomes[one.name].failed for one in tasks] == ["a fails has failed", "", ""]
    assert [outcomes[one.name].value for one in tasks] == [None, "B", "C"]
    begun = [line.split(" begins ") for line in (tmp_path / "noted").read_text().splitlines()][:3]
    assert [name for name, _ in begun[2:]] == ["c"]
    assert {gpu for _, gpu in begun[:2]} == {"5", "7"}
    shown = capsys.readouterr()
    assert "[2/4] label of a fails ...\n" in shown.out
    assert re.search(r"^\[2/4\] label of a fails  \d", shown.out, re.M)  # seconds
    assert "[4/4] label of c ..." in shown.out
    assert "\nlabel of d ..." in shown.out
    assert shown.err == "said by a library\n"
    assert [*(tmp_path / "tmp").iterdir()] == []
    assert variables() == before


def test_a_terminal_shows_what_kernels_are_doing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = []

    def text() -> str:
        shown.append(capsys.readouterr().out)
        return "".join(shown)

    with engine.Display([task("a", tmp_path), task("b", tmp_path)]) as display:
        display.hear("a", "")
        display.hear("a", "epoch 3")
        wait_for(lambda: re.search(r"\r\x1b\[K\[1/2\] label of a  \d+ s  epoch 3", text()))
        display.end("a", "")
    assert "[1/2] label of a ...\n" in text()
    assert text().endswith(" s\n\r\x1b[K")


def test_scheduler_that_is_not_there(root, capsys):
    file = grid(root)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(["sweep", str(file), "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    with pytest.raises(UsageError), engine.cluster(-1):
        pass


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["status"], ["sweep", "none.yaml"]])
def test_what_answers_at_once_does_without_pytorch(root, arguments):
    script = "import sys; from kpnb_book.run.command_line import main\n"
    script += f"try: main({arguments!r})\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'distributed', 'papermill'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


BUSY = """import os, time
open("../pids", "a").write(f"{os.getpid()}\\n")
end = time.monotonic() + 120  # should the test fail before it lets them go
while not os.path.exists("../go") and time.monotonic() < end: time.sleep(0.05)"""


def heeding_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(root: Path, *options: str, runs: int = 2) -> subprocess.Popen:
    """A sweep of so many ``runs``, each of which waits for a file ``go``, in a process of its own,
    after the first of them has begun.
    """
    write(root / "notebooks" / "10_mini.ipynb", RESULTS, BUSY, parameters=HEAD)
    file = grid(root, grid={"n": [*range(1, runs + 1)]})
    command = [sys.executable, "-m", "kpnb_book", "sweep", str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    (root / "tmp").mkdir()
    # What a shell has put in the background ignores Ctrl-C, and so would what it starts.
    process = subprocess.Popen(
        [*command, *options],
        cwd=root,
        preexec_fn=heeding_ctrl_c,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(root / "tmp")},
        **pipes,
    )
    wait_for(lambda: (root / "pids").exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def family(root: Path, process: subprocess.Popen) -> list[psutil.Process]:
    """All processes of a sweep: workers, their helpers, and the kernels that have begun."""
    found = psutil.Process(process.pid).children(recursive=True)
    pids = {one.pid for one in found}
    assert {int(pid) for pid in (root / "pids").read_text().split()} <= pids
    return found


def gone(processes: list[psutil.Process]) -> bool:
    """Whether these have ended; one that nobody has waited for is a zombie."""
    there = [one for one in processes if one.is_running()]
    return all(one.status() == psutil.STATUS_ZOMBIE for one in there)


def test_killed_sweep_leaves_nothing_and_goes_on_to_the_same_table(root, dask_cluster):
    killed = start(root)
    processes = family(root, killed)
    killed.kill()  # -9
    killed.communicate()
    wait_for(lambda: gone(processes), 10)
    assert not (root / "reruns" / "mini" / "results.csv").exists()
    assert not [*(root / "reruns" / "mini").glob("*/10_mini.ipynb")]
    (root / "go").touch()
    assert main(["sweep", "mini.yaml", "--scheduler", dask_cluster]) == 0
    assert ran(root) == ["1a", "1a", "2a"]
    results = pd.read_csv(root / "reruns" / "mini" / "results.csv")
    assert results[["n", "square", "word"]].values.tolist() == [[1, 1, "yes"], [2, 4, "yes"]]


def test_ctrl_c_ends_everything(root):
    """In a terminal all processes get it, kernels excepted."""
    process = start(root)
    processes = family(root, process)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 130, said
    assert "interrupted: what is finished is kept" in said
    assert "Traceback" not in said
    wait_for(lambda: gone(processes), 10)
    assert ran(root) == ["1a"]


def test_ctrl_c_leaves_what_has_begun_to_a_cluster_of_others(root, dask_cluster):
    """What has not begun is not begun; what has is finished when the next sweep looks."""
    process = start(root, "--scheduler", dask_cluster, runs=3)
    wait_for(lambda: len((root / "pids").read_text().split()) == 2)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    with Client(dask_cluster) as client:  # nothing waits there for a free worker
        assert len(client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler.tasks])) <= 2
    (root / "go").touch()
    finished = root / "reruns" / "mini"
    wait_for(lambda: len([*finished.glob("*/10_mini.json")]) == 2)
    assert ran(root) == ["1a", "2a"]
    assert main(["sweep", "mini.yaml", "--scheduler", dask_cluster]) == 0
    assert ran(root) == ["1a", "2a", "3a"]


def test_a_run_whose_worker_is_lost_goes_to_another_one(root, dask_cluster):
    sweeping = start(root, "--scheduler", dask_cluster)
    wait_for(lambda: len((root / "pids").read_text().split()) == 2)
    with Client(dask_cluster) as client:
        psutil.Process(min(client.run(os.getpid).values())).kill()
    (root / "go").touch()
    said = sweeping.communicate(timeout=120)[0]
    assert sweeping.returncode == 0, said
    assert len(ran(root)) == 2 + 1
    assert pd.read_csv(root / "reruns" / "mini" / "results.csv")["n"].tolist() == [1, 2]


def test_a_lost_scheduler_is_a_failure_and_no_riddle(tmp_path):
    with engine.cluster(1) as client:

        def lose() -> None:
            wait_for((tmp_path / "noted").exists)
            client.cluster.close()

        lost = threading.Thread(target=lose)
        lost.start()
        outcomes = engine.run(client, [task("a", tmp_path, together=9)])
        lost.join()
    assert "cancelled" in outcomes["a"].failed
