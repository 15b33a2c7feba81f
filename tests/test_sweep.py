"""Reruns and sweeps: real kernels and processes, and tables of what comes of them."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from kpnb_book.run import sweep
from kpnb_book.run.command_line import main
from kpnb_book.run.errors import UsageError
from kpnb_book.run.notebooks import find_notebook
from kpnb_book.run.origin import origin
from kpnb_book.run.parameters import check_parameters, read_assignments
from kpnb_book.run.rerun import make_folder, provenance, rerun

from .test_runner import write

ROOT = Path(__file__).resolve().parents[1]
HEAD = "n = 1  # a number\nname = 'a'\nlayers = None\nb = None\ndata_root = None"
GLUE = """
import pandas as pd
from kpnb_book.figures.report import glue, show
table = pd.DataFrame({"value": [n / 3, None], "name": ["student", "baseline"]})
glue(square=n * n, third=n / 3, nothing=float("nan"), word="yes", many=n, metrics=table,
formatted=show(table))
"""
RESULTS = """
from pathlib import Path
from IPython.display import display
with Path("../ran").open("a") as file:
    file.write(f"{n}{name}\\n")
rows = [{"name": "student", "value": n / 3}, {"name": "baseline", "value": None}]
found = {"square": {"text/plain": f"{n * n}"}, "word": {"text/plain": "'yes'"}}
schema = {"fields": [{"name": "name"}, {"name": "value"}]}
table = {"data": rows, "schema": schema}
found["metrics"] = {"text/plain": "...", "application/vnd.dataresource+json": table}
for key, data in found.items():  # what glue displays, without the time that its imports take
    prefix = "application/papermill.record/"
    data = {prefix + kind: value for kind, value in data.items()}
    display(data, raw=True, metadata={"scrapbook": {"name": key, "mime_prefix": prefix}})
"""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A tiny clone with one notebook, which notes in ``ran`` that it was run."""
    (tmp_path / "_toc.yml").write_text("")
    write(tmp_path / "notebooks" / "10_mini.ipynb", RESULTS, parameters=HEAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(path: Path, folder: Path, parameters: dict, resume: bool = False) -> dict:
    """Run a notebook; returns the record of it."""
    rerun(path, folder, parameters, origin(path, parameters), resume=resume)
    return json.loads((folder / f"{path.stem}.json").read_text())


def ran(root: Path) -> list[str]:
    return sorted(line.split()[0] for line in (root / "ran").read_text().splitlines())


def grid(root: Path, **block: object) -> Path:
    file = root / "mini.yaml"
    file.write_text(yaml.safe_dump({"notebook": 10, **block}))
    return file


def test_rerun_writes_page_results_and_settings(root):
    path = write(root / "notebooks" / "10_mini.ipynb", GLUE, parameters=HEAD)
    text = "Square {glue:text}`square`, third {glue:text}`third:.2f`, {glue:text}`word`, "
    text += "{glue:any}`formatted`."
    write_with_text(path, text)
    kept = again(path, root / "out", {"n": 4})
    results, nothing = kept["results"], kept["results"].pop("nothing")
    assert math.isnan(nothing)
    assert results == {"square": 16, "third": 4 / 3, "word": "yes", "many": 4}
    assert isinstance(results["square"], int)
    student, baseline = kept["tables"]["metrics"]
    assert student == {"name": "student", "value": pytest.approx(4 / 3, abs=1e-10)}
    assert baseline == {"name": "baseline", "value": None}
    assert list(baseline) == ["value", "name"]
    assert kept["parameters"] == {"n": 4, "name": "a", "layers": None, "b": None, "data_root": None}
    assert {"torch", "kpnb"} <= kept["packages"].keys()
    assert kept["settings"] == []
    assert kept["seconds"] > 0
    page = (root / "out" / "10_mini.html").read_text()
    assert "Square 16, third 1.33, yes" in page
    assert "papermill.record" not in page


def write_with_text(path: Path, text: str) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, path)


def test_revision_of_the_clone_is_kept(tmp_path):
    assert provenance(tmp_path)["revision"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert provenance(tmp_path)["revision"] == head


def test_settings_of_a_study_are_kept(root):
    cell = "from kpnb_book.studies.images import ImageStudy\n"
    cell += "ImageStudy('smoke', seeds=[3], device='cpu')"
    path = write(root / "notebooks" / "11_study.ipynb", cell, parameters=HEAD)
    (settings,) = again(path, root / "out", {})["settings"]
    assert (settings["seeds"], settings["device"], settings["epochs"]) == ([3], "cpu", 2)


def test_resume_runs_only_what_has_changed(root):
    path, out = root / "notebooks" / "10_mini.ipynb", root / "out"
    again(path, out, {"n": 2}, resume=True)
    again(path, out, {"n": 2}, resume=True)
    assert ran(root) == ["2a"]
    write(path, RESULTS, "# another notebook", parameters=HEAD)
    again(path, out, {"n": 2}, resume=True)
    again(path, out, {"n": 3}, resume=True)
    assert ran(root) == ["2a", "2a", "3a"]
    again(path, out, {"n": 3})
    assert len(ran(root)) == 4


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"notebook": "10_mni"}, "mini.yaml: unknown notebook '10_mni'; did you mean '10_mini'"),
        ({"gird": {"n": [1]}}, "unknown key 'gird'; did you mean 'grid'"),
        ({"grid": {"naem": ["a"]}}, "10_mini.ipynb: unknown parameter 'naem'; did you mean 'name'"),
        ({"grid": {"n": [1, "b"]}}, "'n' takes int, as in 1, not str 'b'"),
        ({"grid": {"n": 3}}, "grid of 'n': write the values as a list, not 3"),
        ({"grid": {"n": []}}, "grid of 'n': it is empty, so there would be no run"),
        ({"grid": {"n": [1]}, "share": ["m"]}, "unknown parameter in 'share' 'm'"),
        ({"share": None}, "'share' is a list of parameter names, as in .name., not None"),
        ({"share": "name"}, "'share' is a list of parameter names, as in .name., not 'name'"),
        ({"share": [["name"]]}, "'share' is a list of parameter names"),
        (
            {"parameters": {"name": "$KPNB_NOT_SET/x"}},
            r"set the environment variable \$KPNB_NOT_SET",
        ),
        ({"parameters": [1]}, "'parameters' is a mapping"),
        ({"grid": {"b": [0.1, "abc"]}}, "'b' takes a number above 0, not 'abc'"),
    ],
)
def test_mistakes_are_errors_before_anything_starts(root, block, says):
    with pytest.raises(UsageError, match=says):
        sweep.read(grid(root, **block), root, {})
    assert main(["sweep", "mini.yaml"]) == 2
    assert not (root / "ran").exists()


def test_files_that_are_no_sweep(root):
    for text in ("[1", "- 1", "!!python/object/apply:os.system ['touch ran']", ""):
        (root / "bad.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"bad\.yaml: "):
            sweep.read(root / "bad.yaml", root, {})
    (root / "bad.yaml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"bad\.yaml: it is no YAML"):
        sweep.read(root / "bad.yaml", root, {})
    for text in ("[1", "a: \x07"):
        (root / "bad.yaml").write_text(text)
        with pytest.raises(UsageError, match=rf'no YAML: [^"]*in "{root}/bad\.yaml"'):
            sweep.read(root / "bad.yaml", root, {})
    with pytest.raises(UsageError, match=r"none\.yaml: there is no such file \(looked for in "):
        sweep.read(root / "none.yaml", root, {})
    with pytest.raises(UsageError, match="it cannot be read: Is a directory"):
        sweep.read(root, root, {})
    assert not (root / "ran").exists()


def test_grid_is_every_combination_once(root, monkeypatch):
    monkeypatch.setenv("WHERE", "/data")
    file = root / "two.yaml"
    block = {"notebook": 10, "grid": {"n": [1, 2], "name": ["a", "$WHERE/b"]}, "share": ["name"]}
    file.write_text(
        yaml.safe_dump([block, {"notebook": "10_mini", "parameters": {"n": 1, "name": "a"}}])
    )
    members = sweep.read(file, root, {})
    assert [tuple(m.parameters.values()) for m in members] == [
        (1, "a"),
        (1, "/data/b"),
        (2, "a"),
        (2, "/data/b"),
    ]
    assert [members[0].group == m.group for m in members] == [True, True, False, False]
    assert len(sweep.read(grid(root, grid={"n": [1, 2]}, parameters={"name": "a"}), root, {})) == 2


def test_an_override_of_a_grid_is_refused(root, capsys):
    file = grid(root, grid={"n": [1, 2]}, parameters={"name": "a"})
    with pytest.raises(UsageError, match="-p n would replace the grid of 'n'"):
        sweep.read(file, root, {"n": 7})
    assert main(["sweep", str(file), "-p", "n=7", "--dry-run"]) == 2
    assert [m.parameters["name"] for m in sweep.read(file, root, {"name": "b"})] == ["b", "b"]


def test_whole_numbers_may_be_texts_and_others_want_quotes(root):
    """1.10 and 1.1 are two modules, and one number."""
    write(root / "notebooks" / "05_five.ipynb", parameters=HEAD)
    text = "notebook: 05\ngrid: {name: [4, '1.10', 05, a], layers: [[1, 2e1]]}\n"
    (root / "mini.yaml").write_text(text)
    members = sweep.read(root / "mini.yaml", root, read_assignments(["b=1e-1"]))
    assert {m.path.stem for m in members} == {"05_five"}
    assert [m.parameters["name"] for m in members] == ["4", "1.10", "05", "a"]
    for member in members:
        numbers = [*member.parameters["layers"], member.parameters["b"]]
        assert [(type(n), n) for n in numbers] == [(int, 1), (float, 20.0), (float, 0.1)]
    (root / "mini.yaml").write_text(text.replace("'1.10'", "1.10"))
    with pytest.raises(UsageError, match=r"'name' is a text: put 1\.1 in quotes"):
        sweep.read(root / "mini.yaml", root, {})


def test_devices_of_this_machine_are_not_those_of_a_cluster(root, capsys):
    write(root / "notebooks" / "11_gpu.ipynb", parameters="device = None")
    file = grid(root, notebook=11, grid={"device": ["cpu", "cuda:99"]})
    assert len(sweep.read(file, root, {}, here=False)) == 2
    command = ["sweep", str(file), "--dry-run"]
    assert main(command) == 2
    assert "device='cuda:99': PyTorch finds" in capsys.readouterr().err
    assert main([*command, "--scheduler", "tcp://10.0.0.1:8786"]) == 0


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_sweep_has_a_worker(root, count, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", str(grid(root)), "--dry-run", f"--workers={count}"])
    assert f"argument --workers: '{count}' is no whole number from 1 on" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root cannot write")
@pytest.mark.parametrize("folder", ["/proc", "/proc/none", "x" * 300])
def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(root, folder, capsys):
    assert main(["sweep", str(grid(root)), "--output", folder]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output {root / folder}: results cannot be written there: ")
    assert not (root / "ran").exists()


def test_looking_whether_a_folder_can_be_written_leaves_nothing(root):
    make_folder(root / "new" / "out")
    make_folder(root / "new" / "out")
    assert list((root / "new" / "out").iterdir()) == []


def test_numbers_and_folders_of_a_sweep_are_read_as_on_the_command_line(root):
    (root / "data #2").mkdir()
    (root / "mini.yaml").write_text("notebook: 10\ngrid: {b: [2e-1, 1e-3]}\n")
    members = sweep.read(root / "mini.yaml", root, {"data_root": "data #2"})
    assert [m.parameters["b"] for m in members] == [0.2, 0.001]
    assert {m.parameters["data_root"] for m in members} == {str(root / "data #2")}
    with pytest.raises(UsageError, match="no such folder"):
        sweep.read(root / "mini.yaml", root, {"data_root": "nowhere"})


def test_folders_of_runs_do_not_change_with_the_text_or_the_place(root, tmp_path_factory):
    file = grid(root, grid={"n": [1, 2]})
    before = sweep.read(file, root, {})
    other = tmp_path_factory.mktemp("moved") / "clone"
    shutil.copytree(root, other)
    moved = sweep.read(other / file.name, other, {})
    assert [(m.name, m.digest) for m in moved] == [(m.name, m.digest) for m in before]
    write(root / "notebooks" / "10_mini.ipynb", RESULTS, "# edited", parameters=HEAD)
    edited = sweep.read(file, root, {})
    assert [m.name for m in edited] == [m.name for m in before]
    assert not {m.digest for m in edited} & {m.digest for m in before}


def test_sweep_gathers_results_and_names_failures(root, capsys, dask_cluster):
    write(root / "notebooks" / "10_mini.ipynb", "assert n != 2, 'two'", RESULTS, parameters=HEAD)
    file = grid(root, grid={"n": [1, 2, 3]}, parameters={"layers": ["x", "y"]})
    there = ["--scheduler", dask_cluster]
    assert main(["sweep", str(file), *there]) == 1
    said = capsys.readouterr().out
    assert "[2/3] 10_mini layers=x,y n=2 ..." in said
    assert "2 of 3 runs are finished" in said
    assert "failed: 10_mini layers=x,y n=2: 10_mini.ipynb failed in cell 3" in said
    assert "AssertionError: two" in said
    results = pd.read_csv(root / "reruns" / "mini" / "results.csv")
    assert results[["layers", "n", "square", "word"]].values.tolist() == [
        ["x,y", 1, 1, "yes"],
        ["x,y", 3, 9, "yes"],
    ]
    metrics = pd.read_csv(root / "reruns" / "mini" / "metrics.csv")
    assert metrics[["n", "name"]].values.tolist()[::2] == [[1, "student"], [3, "student"]]
    assert metrics["value"].tolist()[::2] == pytest.approx([1 / 3, 1.0], abs=1e-9)
    page = (root / "reruns" / "mini" / "index.html").read_text()
    links = [part.partition('"')[0] for part in page.split('href="')[1:]]
    assert len(links) == 2 + 4 + 2  # a row's run, and each table as CSV
    assert all((root / "reruns" / "mini" / link).is_file() for link in links)
    assert "AssertionError: two" in page

    write(
        root / "notebooks" / "10_mini.ipynb", RESULTS, parameters=HEAD
    )  # repaired: another notebook
    assert main(["sweep", str(file), *there]) == 0
    assert main(["sweep", str(file)]) == 0  # nothing left to do
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("finished  10_mini layers=x,y") == 3
    assert ran(root) == ["1a", "1a", "2a", "3a", "3a"]


def test_results_lie_where_the_command_was_called(
    root, tmp_path_factory, dask_cluster, monkeypatch
):
    """Outside of the clone; anywhere inside it they lie in its own folder."""
    file = grid(root, parameters={"n": 1}).absolute()
    monkeypatch.setattr("kpnb_book.run.commands.find_root", lambda: root)  # beside the package
    there = ["--scheduler", dask_cluster]
    mine = tmp_path_factory.mktemp("mine")
    monkeypatch.chdir(mine)
    assert main(["sweep", str(file), *there]) == 0
    assert main(["run", "10", "-p", "n=2", *there]) == 0
    assert (mine / "reruns" / "mini" / "results.csv").is_file()
    assert len([*mine.glob("reruns/10_mini-*/10_mini.json")]) == 1
    assert not (root / "reruns").exists()
    monkeypatch.chdir(root / "notebooks")
    assert main(["sweep", str(file), *there]) == 0
    assert (root / "reruns" / "mini" / "results.csv").is_file()
    assert not (root / "notebooks" / "reruns").exists()


def test_page_shows_what_varies_and_no_wide_table():
    """Many results stand below each other, whatever their number; their values are all there."""
    from kpnb_book.run.tables import gather, page_of

    runs = []
    for n in (1, 2):
        results = {f"result_{i}": i * n + 0.25 for i in range(50)} | {"word": "<b>"}
        record = {"results": results, "tables": {"metrics": [{"role": "student", "rho": n / 3}]}}
        runs.append((f"10_a-{n}", {"profile": "smoke", "n": n, "b": None}, record))
    page = page_of("mine", gather(runs), {"10_a n=3": "a <reason>"})
    first, second = re.findall("<table>(.*?)</table>", page)
    rows = [re.split("<t[dh]>", row)[1:] for row in re.split("<tr>", first)[1:]]
    rows = [[re.sub("<[^>]*>", "", cell) for cell in row] for row in rows]
    assert rows[0] == ["run", "10_a-1", "10_a-2"]
    assert rows[1] == ["n", "1", "2"]
    assert len(rows) == 51  # result_0 does not vary
    assert {len(row) for row in rows} == {3}
    assert rows[-1] == ["result_49", "49.25", "98.25"]
    assert "result_0 = 0.250" in page
    assert re.findall("<th>([^<]*)", second)[1:] == ["n", "rho"]
    assert "The same in all rows: profile = smoke, b = –, " in page
    assert ", word = &lt;b&gt;." in page
    assert "a &lt;reason&gt;" in page
    assert re.findall(r'href="(\w+\.csv)"', page) == ["results.csv", "metrics.csv"]


def test_parquet(root, dask_cluster):
    pytest.importorskip("pyarrow")
    members = sweep.read(grid(root, parameters={"layers": ["x", "y"]}), root, {})
    assert sweep.run(members, root / "out", scheduler=dask_cluster) == {}
    for name in ("results", "metrics"):
        parquet = pd.read_parquet(root / "out" / f"{name}.parquet")
        pd.testing.assert_frame_equal(
            parquet, pd.read_csv(root / "out" / f"{name}.csv"), check_dtype=False
        )


def test_runs_that_share_trainings_wait_for_the_first(root, dask_cluster):
    """Also when the first of them fails."""
    busy = "import time\nbegin = time.time()\ntime.sleep(0.3)"
    noted = "open('../times', 'a').write(f'{n} {name} {begin} {time.time()}\\n')"
    fails = "assert (n, name) != (2, 'a')"
    write(root / "notebooks" / "10_mini.ipynb", busy, noted, fails, parameters=HEAD)
    members = sweep.read(
        grid(root, grid={"n": [1, 2], "name": ["a", "b"]}, share=["name"]), root, {}
    )
    assert list(sweep.run(members, root / "out", scheduler=dask_cluster)) == ["10_mini n=2 name=a"]
    times = {
        (n, m): (float(s), float(e))
        for n, m, s, e in map(str.split, (root / "times").read_text().splitlines())
    }
    assert len(times) == 4
    for n in "12":
        assert times[n, "a"][1] <= times[n, "b"][0]


def test_two_workers_here_and_those_of_a_cluster_give_the_same_table(root, dask_cluster):
    file = grid(root, grid={"n": [1, 2]})
    assert main(["sweep", str(file), "--output", "here", "--workers", "2"]) == 0
    assert main(["sweep", str(file), "--output", "there", "--scheduler", dask_cluster]) == 0
    here, there = ((root / where / "results.csv").read_text() for where in ("here", "there"))
    assert here == there
    assert ran(root) == ["1a", "1a", "2a", "2a"]  # once each, in either


@pytest.mark.parametrize(
    "file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_sweeps_fit_their_notebooks(file, monkeypatch):
    monkeypatch.setenv("KPNB_DATA", "/data")
    for block in yaml.safe_load(file.read_text("utf8")):
        assert set(block) <= set(sweep.KEYS)
        path = find_notebook(str(block["notebook"]), ROOT)
        check_parameters(path, block.get("parameters", {}))
        for name, values in block.get("grid", {}).items():
            for value in values:
                check_parameters(path, {name: value})
        assert list(sweep.members_of(block, ROOT, {}))
