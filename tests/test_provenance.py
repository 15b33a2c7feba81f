"""The table of what the notebooks were executed with."""

import json
import subprocess
from importlib.metadata import version

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from kpnb_book.run.notebooks import run_notebook
from kpnb_book.run.provenance import revision, sign, signed, table
from kpnb_book.run.rerun import provenance


def git(root, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def test_executed_copy_says_with_what_it_was_made(tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [
        new_code_cell("profile = 'laptop'", metadata={"tags": ["parameters"]}),
        new_code_cell("1 + 1"),
    ]
    source, copy = tmp_path / "10_sum.ipynb", tmp_path / "out" / "10_sum.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), source)
    run_notebook(source, copy)
    before = nbformat.read(copy, as_version=4)
    sign(copy, tmp_path)
    after = nbformat.read(copy, as_version=4)
    assert after.cells == before.cells
    common, _, header, _, row = table([copy]).splitlines()
    said = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    ran = after.metadata.papermill
    assert said["chapter"] == "{doc}`../notebooks/10_sum`"
    assert said["finished (UTC)"] == ran.end_time[:16].replace("T", " ")
    assert said["seconds"] == f"{ran.duration:.0f}"
    assert f"Python {after.metadata.language_info.version}," in common
    assert f"torch {version('torch')}," in common
    assert common.endswith("commit \N{EN DASH}.")  # no clone


def test_what_copies_have_in_common_is_said_once_and_what_differs_in_every_row(tmp_path):
    made = [("1.0", "abc"), ("1.0", "def"), ("1.0", "def")]
    for number, (torch, commit) in enumerate(made):
        metadata = {"kpnb": {"torch": torch, "revision": commit}}
        copy = tmp_path / f"{number}.ipynb"
        copy.write_text(json.dumps({"cells": [], "metadata": metadata}))
    common, _, header, _, *rows = table(sorted(tmp_path.glob("*.ipynb"))).splitlines()
    assert "torch 1.0" in common
    assert "commit" not in common
    assert header == "| chapter | finished (UTC) | seconds | commit |"
    assert [row.strip("| ").split(" | ")[-1] for row in rows] == ["abc", "def", "def"]


def test_what_a_copy_does_not_say_is_a_dash(tmp_path):
    old = tmp_path / "11_old.ipynb"
    old.write_text(json.dumps({"cells": [], "metadata": {}}))
    common, _, _, _, *rows = table([old, tmp_path / "12_missing.ipynb"]).splitlines()
    assert "torch \N{EN DASH}, numpy \N{EN DASH}, commit \N{EN DASH}." in common
    assert len(rows) == 1
    assert set(rows[0].strip("| ").split(" | ")[1:]) == {"\N{EN DASH}"}
    assert table([]).count("\n") == 1


def test_revision_tells_a_changed_clone(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    clean = revision(tmp_path)
    assert clean
    assert not clean.endswith("+")
    (tmp_path / "a").write_text("2")
    assert revision(tmp_path) == f"{clean}+"


def test_without_git_a_copy_is_signed_and_has_no_revision(tmp_path, monkeypatch):
    copy = tmp_path / "copy.ipynb"
    copy.write_text(json.dumps({"cells": [], "metadata": {}}))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    sign(copy, tmp_path)
    assert signed(copy)["revision"] == ""
    assert provenance(tmp_path)["revision"] is None
