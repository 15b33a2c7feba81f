"""Reruns and sweeps: real kernels and processes, two Dask workers, and the signals that end
them.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from kpnb_book.__main__ import main
from kpnb_book.run import sweep
from kpnb_book.run.notebooks import UsageError, check_parameters, find_notebook
from kpnb_book.run.rerun import provenance, rerun

from .test_runner import write

ROOT = Path(__file__).resolve().parents[1]
HEAD = "n = 1  # a number\nname = 'a'\nlayers = None"
GLUE = """
import pandas as pd
from kpnb_book.figures.report import glue, show
table = pd.DataFrame({"value": [n / 3, None], "name": ["student", "baseline"]})
glue(square=n * n, third=n / 3, nothing=float("nan"), word="yes", many=n, metrics=table,
formatted=show(table))
"""
RESULTS = """
import os
from IPython.display import display
open(os.environ["RAN"], "a").write(f"{n}{name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
rows = [{"name": "student", "value": n / 3}, {"name": "baseline", "value": None}]
found = {"square": {"text/plain": f"{n * n}"}, "word": {"text/plain": "'yes'"}}
schema = {"fields": [{"name": "name"}, {"name": "value"}]}
found["metrics"] = {"text/plain": "...", "application/vnd.dataresource+json": {"data": rows,
"schema": schema}} for key, data in found.items():  # what glue displays, without the time that its
imports take
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
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def ran(root: Path) -> list[str]:
    return sorted(line.split()[0] for line in (root / "ran").read_text().splitlines())


def grid(root: Path, **block: object) -> Path:
    file = root / "mini.yaml"
    file.write_text(yaml.safe_dump({"notebook": 10, **block}))
    return file


def test_rerun_writes_page_results_and_settings(root):
    path = write(root / "notebooks" / "10_mini.ipynb", GLUE, parameters=HEAD)
    text = "Square {glue:text}`square`, third {glue:text}`third:.2f`, {glue:text}`word`, {glue:any}`formatted`."
    write_with_text(path, text)
    record = rerun(path, root / "out", {"n": 4})
    kept = json.loads((root / "out" / "10_mini.json").read_text())
    results, nothing = kept["results"], kept["results"].pop("nothing")
    assert math.isnan(nothing)
    assert results == {"square": 16, "third": 4 / 3, "word": "yes", "many": 4}
    assert isinstance(results["square"], int)
    student, baseline = kept["tables"]["metrics"]
    assert student == {"name": "student", "value": pytest.approx(4 / 3, abs=1e-10)}
    assert baseline == {"name": "baseline", "value": None}
    assert list(baseline) == ["value", "name"]
    assert kept["parameters"] == {"n": 4, "name": "a", "layers": None}
    assert {"torch", "kpnb"} <= kept["packages"].keys()
    assert kept["settings"] == [] == record["settings"]
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
    cell = "from kpnb_book.studies.images import ImageStudy\nImageStudy('smoke', seeds=[3], device='cpu')"
    path = write(root / "notebooks" / "11_study.ipynb", cell, parameters=HEAD)
    (settings,) = rerun(path, root / "out", {})["settings"]
    assert (settings["seeds"], settings["device"], settings["epochs"]) == ([3], "cpu", 2)


def test_resume_runs_only_what_has_changed(root):
    path, out = root / "notebooks" / "10_mini.ipynb", root / "out"
    rerun(path, out, {"n": 2}, resume=True)
    rerun(path, out, {"n": 2}, resume=True)
    assert ran(root) == ["2a"]
    rerun(path, out, {"n": 3}, resume=True)
    write(path, RESULTS, "# another notebook", parameters=HEAD)
    rerun(path, out, {"n": 3}, resume=True)
    assert ran(root) == ["2a", "3a", "3a"]
    rerun(path, out, {"n": 3})
    assert len(ran(root)) == 4


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"notebook": "10_mni"}, "mini.yaml: unknown notebook '10_mni'; did you mean '10_mini'"),
        ({"gird": {"n": [1]}}, "unknown key 'gird'; did you mean 'grid'"),
        ({"grid": {"naem": ["a"]}}, "10_mini.ipynb: unknown parameter 'naem'; did you mean 'name'"),
        ({"grid": {"n": [1, "b"]}}, "'n' takes int, as in 1, not str 'b'"),
        ({"grid": {"n": 3}}, "grid of 'n': write the values as a list, not 3"),
        ({"grid": {"n": [1]}, "share": ["m"]}, "unknown parameter in 'share' 'm'"),
        (
            {"parameters": {"name": "$KPNB_NOT_SET/x"}},
            r"set the environment variable \$KPNB_NOT_SET",
        ),
        ({"parameters": [1]}, "'parameters' is a mapping"),
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
    with pytest.raises(UsageError, match=r"none\.yaml"):
        sweep.read(root / "none.yaml", root, {})
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
    assert len(sweep.read(file, root, {"n": 7})) == 2


def test_sweep_gathers_results_and_names_failures(root, capsys):
    write(root / "notebooks" / "10_mini.ipynb", "assert n != 2, 'two'", RESULTS, parameters=HEAD)
    file = grid(root, grid={"n": [1, 2, 3]}, parameters={"layers": ["x", "y"]})
    assert main(["sweep", str(file), "--workers", "3"]) == 1
    said = capsys.readouterr().out
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
    assert len(links) == 6
    assert all((root / "reruns" / "mini" / link).is_file() for link in links)
    assert "AssertionError: two" in page

    write(
        root / "notebooks" / "10_mini.ipynb", RESULTS, parameters=HEAD
    )  # repaired: another notebook
    assert main(["sweep", str(file), "--workers", "3"]) == 0
    assert main(["sweep", str(file)]) == 0  # nothing left to do
    assert ran(root) == ["1a", "1a", "2a", "3a", "3a"]


def test_progress_is_shown_while_runs_are_under_way(root, capsys, monkeypatch):
    """How many runs are done, which they were, and what the run that wrote last is doing."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write(
        root / "notebooks" / "10_mini.ipynb",
        "import time; time.sleep(2.5)",
        RESULTS,
        parameters=HEAD,
    )
    assert sweep.run(sweep.read(grid(root, grid={"n": [1, 2]}), root, {}), root / "out") == {}
    shown = capsys.readouterr()
    for said in ("0/2", "1/2", "2/2", "10_mini ..."):
        assert said in shown.err
    assert [line.rstrip() for line in shown.out.splitlines() if "finished" in line] == [
        f"finished  10_mini n={n}" for n in (1, 2)
    ]


def test_parquet(root):
    pytest.importorskip("pyarrow")
    members = sweep.read(grid(root, parameters={"layers": ["x", "y"]}), root, {})
    sweep.run(members, root / "out")
    for name in ("results", "metrics"):
        parquet = pd.read_parquet(root / "out" / f"{name}.parquet")
        pd.testing.assert_frame_equal(
            parquet, pd.read_csv(root / "out" / f"{name}.csv"), check_dtype=False
        )


def test_runs_that_share_trainings_wait_for_the_first(root):
    busy = "import time\nbegin = time.time()\ntime.sleep(0.5)"
    noted = "open(os.environ['RAN'] + '-times', 'a').write(f'{n} {name} {begin} {time.time()}\\n')"
    write(root / "notebooks" / "10_mini.ipynb", busy, RESULTS, noted, parameters=HEAD)
    members = sweep.read(
        grid(root, grid={"n": [1, 2], "name": ["a", "b"]}, share=["name"]), root, {}
    )
    assert sweep.run(members, root / "out", 4) == {}
    times = {
        (n, m): (float(s), float(e))
        for n, m, s, e in map(str.split, (root / "ran-times").read_text().splitlines())
    }
    for n in "12":
        assert times[n, "a"][1] <= times[n, "b"][0]


def test_one_gpu_for_each_worker(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    write(
        root / "notebooks" / "10_mini.ipynb", "import time; time.sleep(3)", RESULTS, parameters=HEAD
    )
    sweep.run(sweep.read(grid(root, grid={"n": [1, 2]}), root, {}), root / "out", 2)
    assert {line.split()[1] for line in (root / "ran").read_text().splitlines()} == {"5", "7"}


def test_two_dask_workers_give_the_same_table(root):
    distributed = pytest.importorskip("distributed")
    file = grid(root, grid={"n": [1, 2, 3]})
    assert main(["sweep", str(file), "--output", "alone"]) == 0
    quiet = {"dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster:
        assert (
            main(
                [
                    "sweep",
                    str(file),
                    "--output",
                    "cluster",
                    "--scheduler",
                    cluster.scheduler_address,
                ]
            )
            == 0
        )
    assert (root / "cluster" / "results.csv").read_text() == (
        root / "alone" / "results.csv"
    ).read_text()
    assert ran(root) == ["1a", "1a", "2a", "2a", "3a", "3a"]  # once each, in either


@pytest.mark.parametrize("machine", [False, True], ids=["worker", "machine"])
def test_lost_worker(root, machine: bool):
    """Its run goes to the other worker, which waits for what comes of it if it runs still, and else
    runs it again.
    """
    distributed = pytest.importorskip("distributed")
    write(
        root / "notebooks" / "10_mini.ipynb", RESULTS, "import time; time.sleep(4)", parameters=HEAD
    )
    quiet = {"dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster:
        command = [sys.executable, "-m", "kpnb", "sweep", str(grid(root, grid={"n": [1, 2]}))]
        command += ["--scheduler", cluster.scheduler_address]
        sweeping = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while not (root / "ran").exists() or len(ran(root)) < 2:
            assert sweeping.poll() is None
            time.sleep(0.05)
        lost = psutil.Process(cluster.workers[0].process.pid)
        for process in [lost, *(lost.children(recursive=True) if machine else ())]:
            process.kill()
        said = sweeping.communicate(timeout=300)[0]
    assert sweeping.returncode == 0, said
    assert len(ran(root)) == 2 + machine
    assert pd.read_csv(root / "reruns" / "mini" / "results.csv")["n"].tolist() == [1, 2]


def test_scheduler_that_is_not_there(root, capsys):
    pytest.importorskip("distributed")
    import dask

    file = grid(root)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(["sweep", str(file), "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert main(["sweep", str(file), "--workers", "0"]) == 2


def heeding_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(root: Path, *options: str) -> subprocess.Popen:
    """A sweep of three runs that take their time, in a process of its own, after its first run has
    begun.
    """
    write(
        root / "notebooks" / "10_mini.ipynb",
        RESULTS,
        "import time; time.sleep(1.5)",
        parameters=HEAD,
    )
    command = [
        sys.executable,
        "-m",
        "kpnb",
        "sweep",
        str(grid(root, grid={"n": [1, 2, 3]})),
        *options,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # What a shell has put in the background ignores Ctrl-C, and so would what it starts.
    process = subprocess.Popen(command, cwd=root, preexec_fn=heeding_ctrl_c, **pipes)
    while not (root / "ran").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_killed_sweep_ends_with_the_same_table(root):
    killed = start(root)
    killed.kill()  # -9
    killed.communicate()
    assert not (root / "reruns" / "mini" / "results.csv").exists()
    assert main(["sweep", "mini.yaml", "--workers", "2"]) == 0
    assert ran(root) == ["1a", "2a", "3a"]  # the run that had begun was waited for, not begun again
    assert main(["sweep", "mini.yaml", "--output", "undisturbed", "--workers", "3"]) == 0
    for name in ("results.csv", "metrics.csv"):
        assert (root / "reruns/mini" / name).read_bytes() == (
            root / "undisturbed" / name
        ).read_bytes()


def test_ctrl_c_ends_the_runs_and_the_next_sweep_goes_on(root):
    process = start(root)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 130, said
    assert "interrupted: what is finished is kept" in said
    assert "Traceback" not in said
    assert ran(root) == ["1a"]
    assert main(["sweep", "mini.yaml", "--workers", "3"]) == 0
    assert ran(root) == ["1a", "1a", "2a", "3a"]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_sweeps_fit_their_notebooks(file, monkeypatch):
    monkeypatch.setenv("KPNB_DATA", "/data")
    for block in yaml.safe_load(file.read_text("utf8")):
        assert set(block) <= set(sweep.KEYS)
        if list((ROOT / "notebooks").glob(f"{block['notebook']}_*.ipynb")):
            path = find_notebook(str(block["notebook"]), ROOT)
            check_parameters(path, block.get("parameters", {}))
            for name, values in block.get("grid", {}).items():
                for value in values:
                    check_parameters(path, {name: value})
            assert list(sweep.members_of(block, ROOT, {}))
