"""Running notebooks: real kernels, and the faults that happen."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kpnb_book.run import build
from kpnb_book.run.build import build_book
from kpnb_book.run.chapters import CHAPTERS, notebooks_of
from kpnb_book.run.command_line import main
from kpnb_book.run.errors import NotebookError, UsageError
from kpnb_book.run.kernel import DEFAULTS
from kpnb_book.run.notebooks import find_notebook, find_root, run_notebook

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = """profile = "laptop"  # size of the run
epochs = 3
lr = 0.1
seeds = [0]
data_root = None
shuffle = True"""


def write(path: Path, *sources: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a parameters cell and ``sources`` as its other cells."""
    cells = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        o.text for cell in cells for o in cell.get("outputs", []) if o.output_type == "stream"
    )


def repository(root: Path) -> Path:
    """A tiny clone: two notebooks, of which the first fails."""
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n- chapters:\n  - file: notebooks/10_first\n"
        "    sections:\n    - file: notebooks/11_second\n"
    )
    write(root / "notebooks" / "10_first.ipynb", "raise OSError('no such luck')")
    write(root / "notebooks" / "11_second.ipynb", "open('../second-ran', 'w').close()")
    return root


def test_parameter_that_does_not_fit_starts_no_kernel(tmp_path):
    mark = tmp_path / "kernel-was-here"
    path = write(tmp_path / "10_images.ipynb", f"open({str(mark)!r}, 'w').close()")
    with pytest.raises(UsageError, match=r"10_images\.ipynb: unknown parameter 'epoch'"):
        run_notebook(path, tmp_path / "out" / "10.ipynb", {"epoch": 5})
    with pytest.raises(UsageError, match=r"10_images\.ipynb: the executed copy would overwrite"):
        run_notebook(path, path.parent / "." / path.name)
    assert path.exists()
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_good_notebook(tmp_path, capfd):
    path = write(
        tmp_path / "notebooks" / "10_{good}.ipynb",  # papermill would put a parameter there
        "import os; print(epochs, lr, os.path.basename(os.getcwd()))",
        "import time\nopen(os.environ['KPNB_PROGRESS'], 'w').write('half done'); time.sleep(0.8)",
        "print(os.environ['IPYTHONDIR'])",
    )
    before, here, told = dict(os.environ), os.getcwd(), []
    output = tmp_path / "deep" / "out{1}" / "10_good.ipynb"
    seconds = run_notebook(path, output, {"epochs": 7}, tell=told.append)["seconds"]
    lines = printed(output).splitlines()
    assert lines[0] == "7 0.1 notebooks"
    assert not Path(lines[1]).exists()  # the kernel's folders were temporary
    assert (dict(os.environ), os.getcwd()) == (before, here)
    assert [p.name for p in output.parent.iterdir()] == ["10_good.ipynb"]
    assert seconds > 0.8
    assert told == ["half done"]
    assert capfd.readouterr() == ("", "")


def test_notebook_as_other_programs_write_it(tmp_path):
    """Without a kernel's name, without parameters, with commands to IPython."""
    path = tmp_path / "10_plain.ipynb"
    cells = [new_markdown_cell("# Plain"), new_code_cell("%matplotlib inline\nprint('ran')")]
    nbformat.write(new_notebook(cells=cells), path)
    output = tmp_path / "out" / path.name
    run_notebook(path, output)
    assert printed(output) == "ran\n"
    assert [cell.source for cell in nbformat.read(output, as_version=4).cells] == [
        cell.source for cell in cells
    ]


def test_papermill_does_not_doubt_parameters_that_we_have_checked(tmp_path, caplog):
    path = write(tmp_path / "10_eq.ipynb", "print(text, n)", parameters='text = "a=b"\nn = 1')
    run_notebook(path, tmp_path / "out" / path.name, {"text": "z", "n": 2})
    assert printed(tmp_path / "out" / path.name) == "z 2\n"
    assert caplog.text == ""
    logging.getLogger("papermill").warning("Something else")
    assert "Something else" in caplog.text


def test_environment_of_a_kernel(tmp_path, monkeypatch):
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # what `dask worker` chooses by itself
    names = [*DEFAULTS]
    path = write(
        tmp_path / "10_env.ipynb", f"import os\nprint(*(os.environ[name] for name in {names}))"
    )
    run_notebook(path, tmp_path / "out" / path.name)
    assert printed(tmp_path / "out" / path.name).split() == ["7", "1", str(2**30), str(2**25)]


def test_notebook_that_raises_leaves_no_copy(tmp_path):
    path = write(tmp_path / "11_bad.ipynb", "good = 1", "# why not\nx = good / 0", "print('after')")
    output = tmp_path / "out" / "11_bad.ipynb"
    output.parent.mkdir()
    output.write_text("an older copy")
    with pytest.raises(NotebookError) as caught:
        run_notebook(path, output)
    says = str(caught.value)
    assert says.startswith(
        "11_bad.ipynb failed in cell 3 (# why not): ZeroDivisionError: division by zero"
    )
    assert [p.name for p in output.parent.iterdir()] == ["11_bad.failed.ipynb"]
    assert str(output.parent / "11_bad.failed.ipynb") in says


@pytest.mark.parametrize(
    ("source", "timeout", "says"),
    [
        ("import time; time.sleep(600)", 2, "cell 2 .import time; .*: CellTimeoutError"),
        ("import os; os._exit(1)", 60, "cell 2 .import os; .*: DeadKernelError"),
        ("import os; os.kill(os.getpid(), 9)", 60, "cell 2 .import os; .*: DeadKernelError"),
    ],
    ids=["hangs", "exits", "is killed"],
)
def test_kernel_that_does_not_answer(tmp_path, source, timeout, says):
    output = tmp_path / "out" / "12_stuck.ipynb"
    with pytest.raises(NotebookError, match=f"12_stuck.ipynb failed in {says}"):
        run_notebook(write(tmp_path / "12_stuck.ipynb", source), output, timeout=timeout)
    assert not output.exists()


def test_file_that_is_no_notebook(tmp_path):
    path = tmp_path / "13_torn.ipynb"
    path.write_text('{"cells": [')
    with pytest.raises(NotebookError, match=r"13_torn\.ipynb is not a readable Python notebook"):
        run_notebook(path, tmp_path / "out.ipynb")


def test_kernel_that_is_slow_at_its_end_is_quiet_about_it_but_not_about_faults(tmp_path):
    """papermill asks last what language the kernel speaks, and then ends it, done with the answer
    or not. What its process says otherwise is kept.
    """
    slow = """
import time
handlers = get_ipython().kernel.shell_handlers
answer = handlers["kernel_info_request"]
async def answer_and_dawdle(*message):
    await answer(*message)
    time.sleep(5)
handlers["kernel_info_request"] = answer_and_dawdle
"""
    path = write(tmp_path / "10_slow.ipynb", slow, "get_ipython().kernel.log.error('a fault')")
    run_notebook(path, tmp_path / "out" / path.name)
    log = tmp_path / "out" / "10_slow.log"
    assert log.read_text().splitlines() == ["[IPKernelApp] ERROR | a fault"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere long names leave only ports")
@pytest.mark.parametrize("name", ["s", "s" * 100])
def test_a_kernel_takes_no_port_that_somebody_else_may_take_first(tmp_path, name):
    scratch = tmp_path / name
    scratch.mkdir()
    path = write(tmp_path / "10_sockets.ipynb", SOCKETS)
    output = tmp_path / "out" / path.name
    run_notebook(path, output, scratch=str(scratch))
    assert printed(output).splitlines() == ["ipc"] * 5  # iopub, shell, control, stdin, heartbeat
    assert not [*scratch.iterdir()]


SOCKETS = """
import json
from ipykernel.connect import get_connection_file
found = json.load(open(get_connection_file()))
for name in found:
    if name.endswith("_port"):
        print(found["transport"])
"""


def test_build_stops_at_the_first_failure(tmp_path, dask_cluster):
    """What has not begun by then is left out, and no page is made."""
    root = repository(tmp_path)
    numbers = range(12, 20)
    with (root / "_toc.yml").open("a") as toc:
        toc.writelines(f"    - file: notebooks/{n}_more\n" for n in numbers)
    for n in numbers:
        write(root / "notebooks" / f"{n}_more.ipynb", "open('../ran', 'a').write('x')")
    with pytest.raises(
        NotebookError, match=r"10_first\.ipynb failed in cell 2 .*OSError: no such luck"
    ):
        build_book("laptop", root, scheduler=dask_cluster)
    assert not (root / "ran").exists() or len((root / "ran").read_text()) < 4
    assert not (root / "book" / "_build").exists()


def test_what_has_not_changed_is_not_executed_again(tmp_path, monkeypatch, dask_cluster):
    root = repository(tmp_path)
    monkeypatch.setattr(build, "build_pages", lambda root: root)

    def runs(profile="laptop", **how) -> str:
        (root / "ran").write_text("")
        build.build_book(profile, root, **how, scheduler=dask_cluster)
        return "".join(sorted((root / "ran").read_text()))

    for name in "12":
        source = f"with open('../ran', 'a') as file: file.write('{name}')"
        write(root / "notebooks" / {"1": "10_first.ipynb", "2": "11_second.ipynb"}[name], source)
    with pytest.raises(
        UsageError, match=r"others 1 have never been executed \(11_second, .* run 10"
    ):
        runs(only=["10"])
    assert (root / "ran").read_text() == ""
    assert runs() == "12"
    with monkeypatch.context() as without:
        without.setattr(build.engine, "cluster", None)  # which is not needed
        assert runs() == ""
    assert runs(only=["10"]) == "1"  # asked for by name
    second = root / "notebooks" / "11_second.ipynb"
    write(second, source + "  # changed")
    assert runs() == "2"
    (root / "book" / "_executed" / "10_first.ipynb").write_text("{ torn")
    assert runs() == "1"
    assert runs("smoke") == "12"
    write(root / "notebooks" / "10_first.ipynb", "raise OSError")
    for _ in range(2):  # a failure is not remembered as done
        with pytest.raises(NotebookError):
            runs("smoke")
    assert not (root / "book" / "_executed" / "10_first.ipynb").exists()


def test_build_checks_every_notebook_first(tmp_path):
    root = repository(tmp_path)
    (root / "notebooks" / "11_second.ipynb").unlink()
    with pytest.raises(
        NotebookError, match=r"lists notebooks/11_second\.ipynb, which does not exist"
    ):
        build_book("smoke", root)
    write(root / "notebooks" / "11_second.ipynb", parameters="profile = 3")
    with pytest.raises(UsageError, match=r"11_second\.ipynb: parameter 'profile' takes int"):
        build_book("smoke", root)
    assert not (root / "book").exists()


def test_a_build_in_the_papers_size_leaves_small_pages_as_they_are(tmp_path, monkeypatch):
    root = repository(tmp_path)
    toc = (root / "_toc.yml").read_text().replace("11_second", "05_your_own")
    (root / "_toc.yml").write_text(toc)
    write(root / "notebooks" / "05_your_own.ipynb")
    asked = {}
    monkeypatch.setattr(build, "build_pages", lambda root: root)
    monkeypatch.setattr(
        build, "_execute", lambda tasks, *_: asked.update({t.name: t.arguments for t in tasks})
    )
    for profile, small in (("paper", {}), ("smoke", {"profile": "smoke"})):
        build_book(profile, root)
        assert asked["10_first"]["parameters"] == {"profile": profile}
        assert asked["05_your_own"]["parameters"] == small


def test_table_of_chapters_names_the_notebooks_of_the_book_without_a_cycle():
    names = [path.stem for path in notebooks_of(ROOT)]
    assert set(CHAPTERS) == set(names) == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    done: set[str] = set()
    while names:
        free = [name for name in names if done.issuperset(CHAPTERS[name].after)]
        assert free, f"{names} wait for each other"
        done.update(free)
        names = [name for name in names if name not in free]


def test_notebooks_by_number_name_and_path(tmp_path, monkeypatch):
    root = repository(tmp_path)
    first = root / "notebooks" / "10_first.ipynb"
    assert notebooks_of(root) == [first, root / "notebooks" / "11_second.ipynb"]
    for name in ("10", "10_first", "10_first.ipynb", "notebooks/10_first.ipynb", str(first)):
        assert find_notebook(name, root) == first
    with pytest.raises(UsageError, match="did you mean '10_first'"):
        find_notebook("10_frist", root)
    monkeypatch.chdir(root / "notebooks")
    assert find_root() == root


def test_command_line(tmp_path, monkeypatch, capsys, dask_cluster):
    root = repository(tmp_path)
    monkeypatch.chdir(root)
    there = ["--scheduler", dask_cluster]
    assert main(["run", "11", "-p", "epochs=1", "--output", "mine", *there]) == 0
    assert (root / "mine" / "11_second.ipynb").exists()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "11_second ..."
    assert shown[1].startswith("11_second  ")
    assert shown[1].endswith(" s")
    assert main(["run", "11", "-p", "epoch=1"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert main(["run", "99"]) == 2
    assert main(["run", "10", *there]) == 1
    assert "OSError: no such luck" in capsys.readouterr().err
    (copy,) = root.glob("reruns/10_first-*/*.ipynb")
    assert copy.name == "10_first.failed.ipynb"
    (root / "file").touch()
    for output in ("file", "file/below"):
        assert main(["run", "11", "--output", output]) == 2
        assert f"{root / 'file'} is a file, not a folder" in capsys.readouterr().err


def test_runs_in_an_empty_home(tmp_path):
    """With nothing said but the result, and nothing left in the temporary folder."""
    root = repository(tmp_path)
    home, temporary = root / "home", root / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "kpnb_book", "run", "11", "--output", "out"]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (root / "second-ran").exists()
    assert [*temporary.iterdir()] == []
