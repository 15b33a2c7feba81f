"""Looking after the store, help and completion."""

import io
import os
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from kpnb_book.run import plans, sweep
from kpnb_book.run.command_line import main, parser
from kpnb_book.run.notebooks import find_notebook
from kpnb_book.run.parameters import check_parameters, read_assignments
from kpnb_book.run.store_commands import folders
from kpnb_book.store import Run, Store
from kpnb_book.studies import forecast
from kpnb_book.studies.catalogue import every
from kpnb_book.studies.collecting import of_one_seed

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    return Store()


def add(store: Store, kind: str, n: int, artefacts: int = 1) -> Run:
    run = store.run(kind, {"n": n})
    for i in range(artefacts):
        run.get(f"epoch-{i}", lambda: ({"x": torch.zeros(1000)}, {}))
    return run


def test_status_counts_what_is_complete(store, capsys):
    add(store, "teacher", 1, artefacts=3)
    half = add(store, "student", 1, artefacts=2)
    (half.path / "epoch-1.json").unlink()  # killed between the two files of an artefact
    add(store, "student", 2)
    assert main(["status"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["runs", "complete", "unfinished", "MB"]
    assert lines[1][:4] == ["student", "2", "2", "1"]
    assert lines[2][:4] == ["teacher", "1", "3", "0"]
    assert lines[3][:5] == ["in", "all", "3", "5", "1"]
    size = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    assert float(lines[3][5]) == pytest.approx(size / 1e6, abs=0.06)
    assert lines[4][-2:] == ["GB", "free"]


def test_status_of_no_store(store, capsys):
    assert main(["status"]) == 0
    assert "GB free" in capsys.readouterr().out
    assert not store.root.exists()


def test_clean_by_kind_and_age(store):
    old, new, other = add(store, "teacher", 1), add(store, "teacher", 2), add(store, "student", 1)
    for file in [*old.path.iterdir(), old.path]:
        os.utime(file, (0, 0))
    assert main(["clean", "--older-than", "30", "--dry-run"]) == 0
    assert old.path.exists()
    assert main(["clean", "--older-than", "30", "--yes"]) == 0
    assert [run.path.exists() for run in (old, new, other)] == [False, True, True]
    assert main(["clean", "student", "--yes"]) == 0
    assert [run.path.exists() for run in (new, other)] == [True, False]
    assert add(store, "student", 1).has("epoch-0")  # computed anew


def test_clean_asks(store, monkeypatch):
    run = add(store, "teacher", 1)
    asked = []
    for answer, kept in (("", True), ("no", True), ("y", False)):
        monkeypatch.setattr(
            "builtins.input", lambda question, answer=answer: (asked.append(question), answer)[1]
        )
        assert main(["clean", "--everything"]) == (1 if kept else 0)
        assert run.path.exists() is kept
    assert str(store.root) in asked[0]


def test_clean_does_not_go_on_when_nobody_can_answer(store, monkeypatch, capsys):
    run = add(store, "teacher", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # as </dev/null
    assert main(["clean", "--everything"]) == 2
    assert "error: nobody answers here: say --yes to remove them" in capsys.readouterr().err
    assert run.path.exists()


def test_clean_wants_to_know_what(store, capsys):
    add(store, "teacher", 1)
    assert main(["clean"]) == 2
    assert main(["clean", "--older-than", "-1", "--yes"]) == 2
    assert main(["clean", "teahcer"]) == 2
    assert "did you mean 'teacher'" in capsys.readouterr().err
    assert len(folders(store.root)) == 1


def test_clean_stays_inside_the_store(store, tmp_path):
    """Links, folders that no store has made and files of others stay, whatever they are called."""
    outside = Store(tmp_path / "elsewhere")
    run, kind = add(outside, "teacher", 1), add(outside, "student", 1)
    inside = add(store, "teacher", 2)
    (inside.path / "link").symlink_to(run.path, target_is_directory=True)
    (store.root / "teacher" / run.path.name).symlink_to(run.path, target_is_directory=True)
    (store.root / "linked").symlink_to(kind.path.parent, target_is_directory=True)
    mine = [
        store.root / "teacher" / "notes" / "a.txt",
        store.root / "photos" / "2024" / "a.txt",
        store.root / "a.tar.gz",
    ]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    assert main(["clean", "--everything", "--yes"]) == 0
    assert not inside.path.exists()
    assert run.has("epoch-0")
    assert kind.has("epoch-0")
    assert all(file.exists() for file in mine)


def test_clean_keeps_what_is_being_computed(store, capsys):
    run, other = add(store, "teacher", 1), add(store, "teacher", 2)
    with FileLock(run.path / ".lock"):
        assert main(["clean", "--everything", "--yes"]) == 0
    assert run.has("epoch-0")
    assert not other.path.exists()
    assert f"kept, another process is computing it: {run.path}" in capsys.readouterr().out


def of_seed(store: Store, name: str) -> Run:
    """A network of one seed of stored evidence, whose teacher is that of the store."""
    with suppress(KeyboardInterrupt), of_one_seed(store, name) as apart:
        run = add(apart, "student", 1, artefacts=2)
        raise KeyboardInterrupt  # it stays
    return run


def test_status_and_clean_know_seeds_of_evidence(store, capsys):
    teacher, left, other = add(store, "teacher", 1), of_seed(store, "sst2-7"), add(store, "head", 1)
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^evidence +1 +2 +0 ", out, re.M)
    size = sum(file.stat().st_size for file in left.path.iterdir())
    assert f"evidence/sst2-7: {size / 1e6:.1f} MB, last changed 0.0 hours ago" in out
    assert left.has("epoch-1")
    assert main(["clean", "evidence", "--yes"]) == 0
    assert not left.path.exists()
    assert list((store.root / "evidence").glob("sst2-7")) == []
    assert teacher.has("epoch-0")  # links to it went, not what they led to
    assert other.has("epoch-0")


def test_clean_keeps_the_seed_that_a_process_computes(store, capsys):
    """Even where none of its runs is locked at that moment."""
    left = of_seed(store, "images-3")
    with of_one_seed(store, "images-4") as apart:
        run = add(apart, "student", 2)
        assert main(["status"]) == 0
        assert "evidence/images-4: 0.0 MB" in capsys.readouterr().out
        assert main(["clean", "--everything", "--yes"]) == 0
        assert run.has("epoch-0")
    assert not left.path.exists()
    assert "kept, another process is computing it: " in capsys.readouterr().out


def test_what_else_lies_among_seeds_of_evidence_stays(store, tmp_path):
    outside = add(Store(tmp_path / "other"), "student", 1)
    folder = store.root / "evidence"
    (folder / "notes").mkdir(parents=True)
    (folder / "linked-1").symlink_to(tmp_path / "other", target_is_directory=True)
    assert main(["clean", "--everything", "--yes"]) == 0
    assert outside.has("epoch-0")
    assert (folder / "notes").exists()
    assert (folder / "linked-1").is_symlink()


def test_forecast_is_of_the_chapter_and_all_its_parameters(monkeypatch, capsys, tmp_path):
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(plans, "plans_of", lambda *what: asked.append(what) or ["a plan"])
        patch.setattr(forecast, "forecast", lambda plans: f"forecast of {plans}")
        assert main(["forecast", "50", "-p", "b=0.3", "-p", "seed=2"]) == 0
        assert capsys.readouterr().out == "forecast of ['a plan']\n"
    ((path, parameters),) = asked
    assert path.name == "50_teacher_size.ipynb"
    assert (parameters["b"], parameters["seed"], parameters["profile"]) == (0.3, 2, "laptop")
    assert parameters["teachers"] is None
    assert main(["forecast", "50", "-p", "b=-1"]) == 2
    own = tmp_path / "10_mine.ipynb"
    own.write_text('{"cells": []}')
    assert main(["forecast", str(own)]) == 2
    assert "10_mine.ipynb: it has no plan" in capsys.readouterr().err


def test_chapters_without_a_plan_say_so_and_which_have_one(capsys):
    assert main(["forecast", "05", "-p", "size=32"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 05_your_own.ipynb: it has no plan")
    numbers = said.rpartition(":")[2].replace(",", " ").split()
    root = Path(__file__).parents[1] / "notebooks"
    assert numbers == sorted(
        {path.name[:2] for path in root.glob("*.ipynb")} - {"03", "04", "05", "80"}
    )


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    commands = ("build", "run", "sweep", "list", "forecast", "check", "status", "clean")
    assert all(f"    {command} " in said for command in commands)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_completion_in_bash(capsys, tmp_path: Path):
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = tmp_path / "kpnb.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        line += "_shtab_kpnb; echo ${COMPREPLY[@]}"
        return subprocess.check_output(
            ["bash", "-c", f"source {script}; {line}"], text=True
        ).split()

    assert completed("kpnb", "s") == ["sweep", "status"]
    assert "--older-than" in completed("kpnb", "clean", "--")
    assert completed("kpnb", "sweep", "--sch") == ["--scheduler"]


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_check_of_evidence_has_a_worker(count, capsys):
    with pytest.raises(SystemExit):
        main(["evidence-check", "images", f"--workers={count}"])
    assert f"argument --workers: '{count}' is no whole number from 1 on" in capsys.readouterr().err


# ---- what the pages say to type


def commands_of(page: str) -> list[list[str]]:
    """The words of every command on a page: lines of its blocks for a shell, and whole commands in
    its text.
    """
    text = (ROOT / page).read_text("utf8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += [line for line in re.findall(r"`([^`\n]+)`", text) if len(line.split()) > 2]
    lines = [line.removeprefix("PYTHONPATH=. ").partition(">>")[0] for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("kpnb ")]


COMMANDS = [
    (page, words)
    for page in ("README.md", "book/rerun.md", "book/data.md")
    for words in commands_of(page)
    if not {*words} & {"--print-completion", "--help"}
]


def test_pages_have_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda part: " ".join(part)[:50])
def test_what_a_page_says_to_type_is_understood(page, words, monkeypatch):
    """Every option, notebook, parameter, study and sweep; nothing is run."""
    options = parser().parse_args(words)
    if page == "README.md":  # which says nothing of a variable
        monkeypatch.delenv("KPNB_DATA", raising=False)
    else:
        monkeypatch.setenv("KPNB_DATA", "/data")
    if words[0] in ("run", "forecast"):
        given = read_assignments(options.parameters)
        check_parameters(find_notebook(options.notebook, ROOT), given)
    elif words[0] == "sweep" and (ROOT / options.file).is_file():
        given = read_assignments(options.parameters)
        assert sweep.read(ROOT / options.file, ROOT, given, here=False)
    elif words[0].startswith("evidence"):
        assert {*options.names} <= {*every()}
