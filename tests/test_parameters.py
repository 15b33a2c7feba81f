"""Parameters of notebooks: how they are read, and what is refused before anything starts."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from kpnb_book.run import checks
from kpnb_book.run.chapters import CHAPTERS
from kpnb_book.run.checks import check_run
from kpnb_book.run.command_line import main
from kpnb_book.run.errors import NotebookError, UsageError
from kpnb_book.run.parameters import (
    RULES,
    check_parameters,
    read_assignments,
    read_yaml,
    resolve,
    resolve_folders,
)
from kpnb_book.run.source import Parameter, parameters_of, title_of
from tests.test_runner import PARAMETERS, repository, write

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "10_images_h1.ipynb"
OWN = ROOT / "notebooks" / "05_your_own.ipynb"


def notebook(path: Path, parameters: str) -> Path:
    """Without a kernel's name."""
    cell = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), path)
    return path


def test_values_on_the_command_line_and_in_a_file_are_the_same():
    same = {
        "1e-3": 1e-3,
        "2e-1": 0.2,
        "-5": -5,
        ".5": 0.5,
        "[0, 1]": [0, 1],
        "[2e-1, Conv, FC1]": [0.2, "Conv", "FC1"],
        "{a: 1, b: [x]}": {"a": 1, "b": ["x"]},
        "FC2": "FC2",
        "true": True,
        "null": None,
        "~": None,
        "'007'": "007",
        "2024-01-01": "2024-01-01",
        "2024-10-11": "2024-10-11",
        "12:30": "12:30",
        "yes": "yes",
        "cuda:1": "cuda:1",
        "/data/set#2": "/data/set#2",
    }
    for text, value in same.items():
        (read,) = read_assignments([f"x={text}"]).values()
        assert (read, type(read)) == (value, type(value)), text
        (read,) = read_yaml(f"x: {text}").values()
        assert (read, type(read)) == (value, type(value)), text


def test_a_number_where_a_text_is_wanted_is_the_text_that_was_typed(tmp_path):
    path = notebook(tmp_path / "05_a.ipynb", "layer = 'below'\nb = 0.2\nmodel = None\nx = None")
    for text in ("4", "4.0", "1.10", "+1", "1e3", "007", "0x10"):
        given = read_assignments([f"layer={text}", "b=1e-1", "model=3", "x=1.0"], path)
        taken = resolve(path, given, tmp_path)
        assert taken == {"layer": text, "b": 0.1, "model": "3", "x": 1.0}
        assert [type(value) for value in taken.values()] == [str, float, str, float]
        check_parameters(path, {"layer": taken["layer"]})
    for odd in ("true", "[4]", "null"):
        taken = resolve(path, read_assignments([f"layer={odd}"], path), tmp_path)
        with pytest.raises(UsageError, match="'layer' takes str"):
            check_parameters(path, taken)


def test_a_text_on_the_command_line_is_that_text():
    given = {
        "/data/set #2": "/data/set #2",
        "a: b": "a: b",
        "@here": "@here",
        "a=b": "a=b",
        "...": "...",
        "2j": "2j",
        "C:\\data": "C:\\data",
        "'quoted # text'": "quoted # text",
        "0,1": [0, 1],
        "None": None,
        "": None,
    }
    for text, value in given.items():
        assert read_assignments([f"x={text}"]) == {"x": value}
    for bad in ("epochs", "=3", "a b=1", "x=[1", "x={1: [", "x={[1]: 2}"):
        with pytest.raises(UsageError, match="-p "):
            read_assignments([bad])


def test_yaml_runs_nothing():
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.system ['true']")


def test_what_the_parameters_cell_says(tmp_path):
    source = """%matplotlib inline
a = 1  # one, "a = 1"
text = "b = 2 # not a comment"
typed: float = 1e-3  # a type
both = twice = [1,
    2]  # two lines
nothing = None
computed = 2 * 3
a.b = 3
print(a == 1)"""
    assert parameters_of(notebook(tmp_path / "10_a.ipynb", source)) == {
        "a": Parameter("1", 1, 'one, "a = 1"'),
        "text": Parameter('"b = 2 # not a comment"', "b = 2 # not a comment", ""),
        "typed": Parameter("1e-3", 1e-3, "a type"),
        "both": Parameter("[1,\n    2]", [1, 2], "two lines"),
        "twice": Parameter("[1,\n    2]", [1, 2], "two lines"),
        "nothing": Parameter("None", None, ""),
        "computed": Parameter("2 * 3", None, ""),
    }
    with pytest.raises(NotebookError, match=r"10_a\.ipynb: its parameters cell is not Python"):
        parameters_of(notebook(tmp_path / "10_a.ipynb", "a = (1"))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"epoch": 5}, "unknown parameter 'epoch'; did you mean 'epochs'"),
        ({"epochs": "5"}, "'epochs' takes int, as in 3, not str '5'"),
        ({"epochs": True}, "'epochs' takes int, as in 3, not bool True"),
        ({"lr": "fast"}, "'lr' takes float, as in 0.1, not str 'fast'"),
        ({"seeds": 1}, r"'seeds' takes list, as in \[0\], not int 1"),
        ({"shuffle": 1}, "'shuffle' takes bool, as in True, not int 1"),
        ({"epochs": 0}, "'epochs' takes a whole number from 1 on, not 0"),
        ({"profile": "big"}, "'profile' takes one of smoke, laptop, paper, not 'big'"),
    ],
)
def test_parameter_that_does_not_fit_its_default(parameters, says, tmp_path):
    path = write(tmp_path / "10_images.ipynb")
    with pytest.raises(UsageError, match=says) as caught:
        check_parameters(path, parameters)
    assert "10_images.ipynb: " in str(caught.value)


def test_parameters_that_fit(tmp_path):
    path = write(tmp_path / "10_images.ipynb", parameters=PARAMETERS + "\nb = 'mine'\ngrid = [1.5]")
    fit = {"lr": 1, "seeds": [1, 2], "data_root": "somewhere", "shuffle": False, "epochs": 1}
    check_parameters(path, fit)
    check_parameters(path, {"b": "text", "grid": [0.5]})  # their own, which no rule of ours is for


REFUSED = ["b=abc", "b=-1", "b=0", "b=true", "b=[0.1]", "epochs=five", "epochs=5.5", "epochs=0"]
REFUSED += ["seeds=-1", "seeds=0.5", "seeds=[]", "seeds=[0, one]", "device=tpu", "grid=0"]
REFUSED += ["grid=1e400", "b=1e400", "epochs=99999999999999999999", "seeds=[0, 2147483648]"]
REFUSED += ["grid=2.5", "layer=FC9", "layer=[FC1, FC9]", "dataset=3", "profile=null"]


@pytest.mark.parametrize("given", REFUSED)
def test_parameters_of_chapters_that_are_refused(given):
    name = given.partition("=")[0]
    with pytest.raises(UsageError, match=rf"10_images_h1\.ipynb: parameter '{name}' takes "):
        check_parameters(FIRST, read_assignments([given]))


def test_numbers_beyond_bounds_are_told_the_bound():
    with pytest.raises(UsageError, match="from 1 on, at most 2,147,483,647, not 99999999999"):
        check_parameters(FIRST, {"epochs": 99999999999999999999})


@pytest.mark.parametrize("given", ["seeds=[0, 1, 0]", "layer=[FC1, FC1]", "network=[a, b, a]"])
def test_several_are_different(given):
    with pytest.raises(UsageError, match=r"has '?(0|FC1|a)'? more than once"):
        check_parameters(FIRST, read_assignments([given]))


def test_parameters_of_chapters_that_are_taken():
    given = ["b=0.25", "b=1", "epochs=5", "seeds=3", "seeds=0,1", "seeds=[0, 1]", "device=cuda:1"]
    given += ["layer=FC1", "layer=[Conv, FC1]", "network=vgg16", "grid=null", "device=cpu"]
    for one in given:
        check_parameters(FIRST, read_assignments([one]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_of_a_chapter_has_a_rule_that_its_default_fits(path):
    for name, known in parameters_of(path).items():
        if (path.stem, name) in (("05_your_own", "layer"), ("71_transformer", "layer")):
            continue  # of anybody's network; of a transformer, whose study names what is unknown
        assert known.value is None or RULES[name].fits(known.value), name
        assert known.value is not None or name in RULES, name


def test_folders_are_seen_from_the_callers_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "notebooks" / "10_a.ipynb")
    (tmp_path / "my data").mkdir()
    (tmp_path / "notebooks" / "beside").mkdir()
    (tmp_path / "models" / "bert").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))

    def resolved(name: str, value: object) -> object:
        return resolve_folders(path, {name: value, "b": "my data"}, tmp_path)[name]

    assert resolved("data_root", "my data") == str(tmp_path / "my data")
    assert resolved("data_root", "notebooks/../my data") == str(tmp_path / "my data")
    assert resolved("data_root", "beside") == str(tmp_path / "notebooks" / "beside")
    assert resolved("data_root", "~/my data") == str(tmp_path / "my data")
    assert resolved("data_root", "/on/another/machine") == "/on/another/machine"
    assert resolved("data_root", None) is None
    assert resolved("network", "models/bert") == str(tmp_path / "models" / "bert")
    assert resolved("network", "organisation/bert") == "organisation/bert"
    assert resolved("network", "models") == "models"
    assert resolved("b", "my data") == "my data"
    with pytest.raises(UsageError, match=rf"data_root='mydata': .* no such folder in {tmp_path}"):
        resolved("data_root", "mydata")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "epoch-0.pt").touch()
    for pattern in ("runs/epoch-*.pt", "runs/epoch-?.*", "runs"):
        assert resolved("student_checkpoints", pattern) == str(tmp_path / pattern)
    assert resolved("student_checkpoints", "/elsewhere/*.pt") == "/elsewhere/*.pt"
    for wrong in ("runs/*.pth", "run"):
        with pytest.raises(UsageError, match=rf"baseline_checkpoints=.* no file .* in {tmp_path}"):
            resolved("baseline_checkpoints", wrong)


@pytest.mark.parametrize("given", ["model=my_nets", "model=my.nets:", "model=3", "size=0"])
def test_parameters_of_the_page_for_your_own_that_are_refused(given):
    path, name = ROOT / "notebooks" / "05_your_own.ipynb", given.partition("=")[0]
    with pytest.raises(UsageError, match=f"parameter '{name}' takes "):
        check_parameters(path, read_assignments([given]))
    check_parameters(path, {"model": "my.nets:Net.build", "layer": "features.7"})


UNKNOWN = {
    ("10", "network=vgg99"): "unknown network 'vgg99'; did you mean 'vgg19'",
    ("10", "network=pointnet"): "unknown network 'pointnet'; known: 'alexnet', 'vgg11'",
    ("10", "network=[vgg11, vgg16]"): "this chapter takes one; a sweep",
    ("11", "dataset=cup"): "unknown data set 'cup'; did you mean 'cub'",
    ("11", "dataset=sst2"): "unknown data set 'sst2'; known: 'folder', 'emoji'",
    ("20", "network=[pointnet, dgcn]"): "unknown network 'dgcn'; did you mean 'dgcnn'",
    ("20", "layer=Conv"): "unknown layer of pointnet 'Conv'; known: 'FC1', 'FC2', 'FC3'",
    ("22", "dataset=modelnet"): "did you mean 'modelnet40'",
    ("30", "dataset=sst"): "did you mean 'sst2'",
    ("31", "network=/no/such/folder"): "is no folder here, and no model's name",
    ("40", "network=bert base"): "is no folder here, and no model's name",
    ("50", "teachers=[vgg11, vgg61]"): "unknown network 'vgg61'; did you mean",
    ("12", "dataset=no_such.module:f"): "ModuleNotFoundError: No module named 'no_such'",
    ("10", "dataset=folder"): "'folder' needs data_root=, the folder of its files",
    ("52", "dataset=cub"): "'cub' needs data_root=",
    ("20", "profile=paper"): "'modelnet40' needs data_root=",
    ("40", "dataset=squad"): "'squad' needs data_root=",
    ("10", "data_root=/a"): "data_root='/a': the data set 'emoji' reads no folder; these do: 'fol",
    ("21", "data_root=/a"): "the data set 'shapes' reads no folder; these do: 'modelnet40'",
    ("31", "data_root=/a"): "the data set 'reviews' reads no folder",
    ("10", "grid=65"): "grid=65: its images have 64 pixels a side",
    ("51", "grids=[8, 999]"): "grid=999: its images have 64 pixels a side",
    ("03", "grid=7"): "grid=7 does not divide the 64 pixels",
    ("05", "grid=65"): "grid=65: more cells a side than size=64 has pixels",
    ("05", "void=255"): "void is a value in masks of your own: it needs data_root",
    ("05", "profile=paper"): "'profile' takes one of smoke, laptop, not 'paper'",
    ("05", "profile=huge"): "'profile' takes one of smoke, laptop, not 'huge'",
    ("80", "profile=paper"): "'profile' takes one of smoke, laptop, not 'paper'",
    ("10", "profile=huge"): "'profile' takes one of smoke, laptop, paper, not 'huge'",
    ("05", "void=256"): "'void' takes a whole number from 0 to 255, a value in masks, not 256",
    ("05", "void=99999999999"): "from 0 to 255, a value in masks, not 99999999999$",
    ("05", "void=-1"): "from 0 to 255, a value in masks, not -1",
    ("05", "mean=[123.7, 116.3, 103.5]"): "'mean' takes three numbers from 0 to 1, .* white is 1",
    ("05", "mean=0.5"): "'mean' takes three numbers",
    ("05", "mean=[0.5]"): "'mean' takes three numbers",
    ("05", "mean=[0, 0, none]"): "'mean' takes three numbers",
    ("05", "std=[1, 1, 0]"): "'std' takes three numbers above 0, at most 1, of red",
    ("05", "std=[58.4, 57.1, 57.4]"): "'std' takes three numbers above 0, at most 1, of red",
    ("12", "dataset=os.path:isabs"): r"it is called as isabs\(request, size\): too many",
    ("05", "device=cuda:99"): "device='cuda:99': PyTorch finds [0-9]+ cuda devices",
    ("05", "device=mps:99"): "device='mps:99': PyTorch finds [0-9]+ mps devices",
    ("12", "dataset=os:sep"): "it is no function but '/'",
}


@pytest.mark.parametrize(("number", "assignment"), UNKNOWN)
def test_what_a_study_does_not_know_is_refused_before_a_kernel_starts(number, assignment):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    with pytest.raises(UsageError, match=rf"{path.name}: .*{UNKNOWN[number, assignment]}"):
        check_run(path, read_assignments([assignment]))


def test_what_a_study_knows_is_taken(tmp_path):
    known = {
        "10": ["network=resnet50", "layer=[Conv, FC3]", "dataset=os.path:join", "grid=64"],
        "20": [
            "network=pointconv",
            "network=[pointnet, dgcnn]",
            "layer=FC2",
            "dataset=os.path:isabs",
        ],
        "30": ["network=bert-base-uncased", "network=org/a-b.c@0f3", f"network={tmp_path}"],
        "50": ["teachers=[vgg11, vgg16]", "network=alexnet"],
        "90": ["network=vgg19_bn"],
    }
    for number, assignments in known.items():
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        for one in assignments:
            check_run(path, read_assignments([one]))
    (path,) = (ROOT / "notebooks").glob("10_*.ipynb")
    for name in ("voc", "folder"):
        check_run(path, {"dataset": name, "data_root": "/on/another/machine"})
    check_run(path, {"profile": "paper", "grid": 224, "dataset": "pet"})
    for same in ("mean=[0, 0, 0]", "std=[1, 1, 1]", "mean=[0.5, 0.5, 0.5]", "mean=null"):
        check_run(OWN, read_assignments([same]))
    for void in (0, 255):
        check_run(OWN, {"void": void, "data_root": "/on/another/machine"})
    check_run(OWN, {"device": "cuda:99"}, here=False)  # of a cluster


def test_pages_that_have_no_profile_of_the_papers_size_say_so():
    for path in NOTEBOOKS:
        about = parameters_of(path)["profile"].help
        assert ("paper" in about) == (not CHAPTERS[path.stem].small)


def test_names_in_a_notebook_of_ones_own_mean_what_they_like(tmp_path):
    path = notebook(tmp_path / "10_mine.ipynb", "network = None\ndataset = None")
    check_run(path, {"network": "vgg99", "dataset": "mine"})


def test_run_sweep_and_forecast_refuse_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = "notebook: 10\ngrid: {network: [vgg11, vgg99]}\n"
    (tmp_path / "a.yaml").write_text(sweep)
    given = ["-p", "network=vgg99"]
    for command in (["sweep", "a.yaml", "--dry-run"], ["sweep", "a.yaml"]):
        assert main(command) == 2
        assert "did you mean 'vgg19'" in capsys.readouterr().err
    for command in (["run", "10", *given], ["forecast", "10", *given]):
        assert main(command) == 2
        assert "did you mean 'vgg19'" in capsys.readouterr().err
    assert not (tmp_path / "reruns").exists()


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> dict[str, str]:
    """Parameters of the page for your own, and the files that they name, in the caller's folder."""
    (tmp_path / "their_nets.py").write_text(
        "def build():\n    pass\n\ndef needs(width, depth=1):\n    pass\n"
    )
    for role, count in (("student", 3), ("baseline", 2)):
        (tmp_path / role).mkdir()
        for epoch in range(count):
            (tmp_path / role / f"epoch-{epoch}.pt").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checks._not_imported.cache_clear()
    files = {f"{role}_checkpoints": str(tmp_path / role) for role in ("student", "baseline")}
    return {"model": "their_nets:build", **files}


def test_a_complete_set_of_your_own_is_taken(theirs):
    check_run(OWN, theirs)  # of other numbers of epochs, which may be compared
    check_run(OWN, {})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model", None, "come together: model is missing"),
        ("both", None, "together: student_checkpoints, baseline_checkpoints are missing"),
        ("baseline_checkpoints", None, "come together: baseline_checkpoints is missing"),
        ("model", "their_nets:biuld", "has no attribute 'biuld'.* PYTHONPATH"),
        ("model", "their_nets:needs", r"it is called as needs\(\): missing .*argument: 'width'"),
        ("model", "their_net:build", "No module named 'their_net'"),
        ("student_checkpoints", "/nowhere/*.pt", r"no checkpoints match /nowhere/\*\.pt"),
        ("student_checkpoints", "{folder}/student/epoch-1.pt", "1 checkpoint"),
        ("student_checkpoints", "{folder}/*/epoch-*.pt", "differ in more than their numbers"),
        ("baseline_checkpoints", "{folder}", "no checkpoints in .*: it holds baseline/, student/"),
    ],
)
def test_half_a_set_of_your_own_is_refused_before_a_kernel_starts(
    name, value, says, theirs, tmp_path
):
    value = value.format(folder=tmp_path) if value else None
    names = (
        [f"{role}_checkpoints" for role in ("student", "baseline")] if name == "both" else [name]
    )
    with pytest.raises(UsageError, match=rf"05_your_own\.ipynb: .*{says}"):
        check_run(OWN, theirs | dict.fromkeys(names, value))


def test_relative_folders_of_pythonpath_are_the_callers(theirs, tmp_path, monkeypatch, capsys):
    """Kernels run in another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}/elsewhere")
    given = [f"{name}={value}" for name, value in (theirs | {"student_checkpoints": "x"}).items()]
    assert main(["run", "05", *(part for one in given for part in ("-p", one))]) == 2
    assert "student_checkpoints='x': there is no such" in capsys.readouterr().err
    assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"
    check_run(OWN, theirs)


def test_list_says_what_each_is_about_and_the_parameters_of_one(tmp_path, monkeypatch, capsys):
    root = repository(tmp_path)
    other = write(root / "notebooks" / "11_second.ipynb", parameters="epochs = 3\nb = 1  # nats")
    notebook = nbformat.read(other, as_version=4)
    text = "(label)=\n# The second\n\n> Is {doc}`this` *its*\n> question? An answer.\n\n# Not this"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, other)
    assert title_of(other) == "The second"
    monkeypatch.chdir(root)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["10  10_first", "11  The second", "    Is this its question?"]
    assert not any("epochs" in line for line in lines)
    assert main(["list", "11"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["11  The second", "    Is this its question?"]
    assert lines[-1].split() == ["b", "=", "1", "nats"]


def test_nobody_reads_on(tmp_path):
    """As behind ``| head``."""
    command = [sys.executable, "-m", "kpnb_book", "list", "05"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
