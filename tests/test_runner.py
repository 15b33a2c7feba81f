"""Running notebooks: real kernels, and the faults that happen."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from kpnb_book.__main__ import main
from kpnb_book.run import build
from kpnb_book.run import notebooks as runner
from kpnb_book.run.build import build_book, notebooks_of
from kpnb_book.run.commands import parse_parameters
from kpnb_book.run.notebooks import NotebookError, UsageError, check_parameters, run_notebook

PARAMETERS = 'profile = "laptop"  # size of the run\nepochs = 3\nlr = 0.1\nseeds = [0]\ndata_root = None\nshuffle = True'


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


@pytest.fixture
def marking(tmp_path: Path) -> tuple[Path, Path]:
    """A notebook whose kernel leaves a file behind, and that file."""
    mark = tmp_path / "kernel-was-here"
    return write(tmp_path / "10_images.ipynb", f"open({str(mark)!r}, 'w').close()"), mark


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"epoch": 5}, "unknown parameter 'epoch'; did you mean 'epochs'"),
        ({"epochs": "5"}, "'epochs' takes int, as in 3, not str '5'"),
        ({"epochs": True}, "'epochs' takes int, as in 3, not bool True"),
        ({"lr": "fast"}, "'lr' takes float, as in 0.1, not str 'fast'"),
        ({"seeds": 1}, r"'seeds' takes list, as in \[0\], not int 1"),
        ({"shuffle": 1}, "'shuffle' takes bool, as in True, not int 1"),
    ],
)
def test_parameter_that_does_not_fit_starts_no_kernel(marking, parameters, says, tmp_path):
    path, mark = marking
    with pytest.raises(UsageError, match=says) as caught:
        run_notebook(path, tmp_path / "out" / "10.ipynb", parameters)
    assert "10_images.ipynb" in str(caught.value)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_parameters_that_fit(marking):
    check_parameters(
        marking[0], {"lr": 1, "seeds": [1, 2], "data_root": "somewhere", "shuffle": False}
    )


def test_good_notebook(tmp_path, capsys):
    path = write(
        tmp_path / "notebooks" / "10_good.ipynb",
        "import os; print(epochs, lr, os.path.basename(os.getcwd()))",
        "open(os.environ['KPNB_PROGRESS'], 'w').write('half done')\nprint(os.environ['IPYTHONDIR'])",
    )
    before, here = dict(os.environ), os.getcwd()
    output = tmp_path / "deep" / "down" / "10_good.ipynb"
    seconds = run_notebook(path, output, {"epochs": 7}, label="[1/1] 10_good")["seconds"]
    lines = printed(output).splitlines()
    assert lines[0] == "7 0.1 notebooks"
    assert not Path(lines[1]).exists()  # the kernel's folders were temporary
    assert (dict(os.environ), os.getcwd()) == (before, here)
    assert [p.name for p in output.parent.iterdir()] == ["10_good.ipynb"]
    assert seconds > 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["[1/1] 10_good ...", f"[1/1] 10_good  {seconds:.1f} s"]


def test_source_is_not_overwritten(marking):
    path, mark = marking
    with pytest.raises(UsageError, match=r"10_images\.ipynb: the executed copy would overwrite"):
        run_notebook(path, path.parent / "." / path.name)
    assert path.exists()
    assert not mark.exists()


def test_without_parameters_no_cell_is_added(tmp_path):
    path = write(tmp_path / "10_plain.ipynb", "print(epochs)")
    output = tmp_path / "out" / "10_plain.ipynb"
    run_notebook(path, output)
    cells = nbformat.read(output, as_version=4).cells
    assert [cell.source for cell in cells] == [PARAMETERS, "print(epochs)"]


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
    ("source", "says"),
    [
        ("import time; time.sleep(600)", "cell 2 .import time; .*: CellTimeoutError"),
        ("import os; os._exit(1)", "cell 2 .import os; .*: DeadKernelError"),
    ],
    ids=["hangs", "dies"],
)
def test_kernel_that_does_not_answer(tmp_path, source, says):
    output = tmp_path / "out" / "12_stuck.ipynb"
    with pytest.raises(NotebookError, match=f"12_stuck.ipynb failed in {says}"):
        run_notebook(write(tmp_path / "12_stuck.ipynb", source), output, timeout=2)
    assert not output.exists()


def test_file_that_is_no_notebook(tmp_path):
    path = tmp_path / "13_torn.ipynb"
    path.write_text('{"cells": [')
    with pytest.raises(NotebookError, match=r"13_torn\.ipynb is not a readable Python notebook"):
        run_notebook(path, tmp_path / "out.ipynb")


def repository(root: Path) -> Path:
    """A tiny clone: two notebooks, of which the first fails."""
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n- chapters:\n  - file: notebooks/10_first\n"
        "    sections:\n    - file: notebooks/11_second\n"
    )
    write(root / "notebooks" / "10_first.ipynb", "raise OSError('no such luck')")
    write(root / "notebooks" / "11_second.ipynb", "open('../second-ran', 'w').close()")
    return root


def test_build_stops_at_the_first_failure(tmp_path):
    root = repository(tmp_path)
    with pytest.raises(
        NotebookError, match=r"10_first\.ipynb failed in cell 2 .*OSError: no such luck"
    ):
        build_book("laptop", root)
    assert not (root / "second-ran").exists()
    assert not (root / "book" / "_build").exists()


def test_what_has_not_changed_is_not_executed_again(tmp_path, monkeypatch):
    root = repository(tmp_path)
    monkeypatch.setattr(build, "_build_pages", lambda root: root)

    def runs(profile="laptop", **how) -> str:
        (root / "ran").write_text("")
        build.build_book(profile, root, **how)
        return "".join(sorted((root / "ran").read_text()))

    for name in "12":
        source = f"with open('../ran', 'a') as file: file.write('{name}')"
        write(root / "notebooks" / {"1": "10_first.ipynb", "2": "11_second.ipynb"}[name], source)
    assert runs() == "12"
    assert runs() == ""
    assert runs(only=["10"]) == "1"  # asked for by name
    write(root / "notebooks" / "11_second.ipynb", source + "  # changed")
    assert runs() == "2"
    (root / "book" / "_executed" / "10_first.ipynb").unlink()
    assert runs() == "1"
    assert runs("smoke") == "12"
    (root / "book" / "paper_tables.csv").write_text("changed")
    assert runs("smoke") == "12"
    write(root / "notebooks" / "10_first.ipynb", "raise OSError")
    for _ in range(2):  # a failure is not remembered as done
        with pytest.raises(NotebookError):
            runs("smoke")


def test_build_checks_every_notebook_first(tmp_path):
    root = repository(tmp_path)
    (root / "notebooks" / "11_second.ipynb").unlink()
    with pytest.raises(
        NotebookError, match=r"lists notebooks/11_second\.ipynb, which does not exist"
    ):
        build_book("smoke", root)
    assert not (root / "book").exists()


def test_notebooks_by_number_name_and_path(tmp_path, monkeypatch):
    root = repository(tmp_path)
    first = root / "notebooks" / "10_first.ipynb"
    assert notebooks_of(root) == [first, root / "notebooks" / "11_second.ipynb"]
    for name in ("10", "10_first", "10_first.ipynb", "notebooks/10_first.ipynb", str(first)):
        assert runner.find_notebook(name, root) == first
    with pytest.raises(UsageError, match="did you mean '10_first'"):
        runner.find_notebook("10_frist", root)
    monkeypatch.chdir(root / "notebooks")
    assert runner.find_root() == root


def test_parameters_on_the_command_line():
    read = parse_parameters(
        ["lr=1e-3", "seeds=[0, 1]", "layers=[Conv, FC1]", "layer=FC2", "on=true", "root=null"]
    )
    assert read == {
        "lr": 1e-3,
        "seeds": [0, 1],
        "layers": ["Conv", "FC1"],
        "layer": "FC2",
        "on": True,
        "root": None,
    }
    for bad in ("epochs", "=3", "a b=1", "x=[1"):
        with pytest.raises(UsageError, match="-p "):
            parse_parameters([bad])


def test_command_line(tmp_path, monkeypatch, capsys):
    root = repository(tmp_path)
    monkeypatch.chdir(root)
    assert main(["list"]) == 0
    assert 'profile = "laptop"             size of the run' in capsys.readouterr().out
    assert main(["run", "11", "-p", "epochs=1", "--output", "mine"]) == 0
    assert (root / "mine" / "11_second.ipynb").exists()
    assert main(["run", "11", "-p", "epoch=1"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert main(["run", "99"]) == 2
    assert main(["run", "10"]) == 1
    assert "OSError: no such luck" in capsys.readouterr().err
    (copy,) = root.glob("reruns/10_first-*/*.ipynb")
    assert copy.name == "10_first.failed.ipynb"


def said_on_stderr(root: Path) -> tuple[int, str]:
    """Exit code of running the second notebook in an empty home, and what came out besides."""
    home = root / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "kpnb", "run", "11", "--output", "out"]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stderr


def test_runs_in_an_empty_home(tmp_path):
    assert said_on_stderr(repository(tmp_path)) == (0, "")


def test_kernel_that_is_slow_at_its_end_is_quiet_about_being_interrupted_but_not_about_faults(
    tmp_path,
):
    """papermill asks last what language the kernel speaks, and then interrupts it, done with the
    answer or not.
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
    root = repository(tmp_path)
    write(root / "notebooks" / "11_second.ipynb", slow, "get_ipython().kernel.log.error('a fault')")
    code, said = said_on_stderr(root)
    assert code == 0
    assert said.splitlines() == ["[IPKernelApp] ERROR | a fault"]
