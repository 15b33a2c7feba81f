"""What a reader finds in every chapter: its figure and its result first, the plumbing out of sight,
exercises whose solutions are right, and a command that works.
"""

import ast
import builtins
import re
import shlex
from itertools import takewhile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat import NotebookNode

from kpnb_book.run import plans
from kpnb_book.run.notebooks import find_notebook
from kpnb_book.run.parameters import check_parameters, read_value
from kpnb_book.run.source import parameters_of
from kpnb_book.studies.chapters import SETTINGS
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.study import Study

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WRITTEN_OUT = ("_from_scratch", "_your_own", "_evidence")  # no study, text that code writes
WITH_STUDIES = [path for path in NOTEBOOKS if not path.stem.endswith(WRITTEN_OUT)]
GIVEN = {  # what solutions take from the cells of their notebook
    "01_information_discarding": {"study", "default"},
    "42_qa_h3": {"study", "networks", "layer", "measure"},
    "70_losses": {"losses", "study", "layer", "seed"},
    "60_agreement": {"kpnb", "study", "network", "where", "measure"},
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def text(path: Path, kind: str = "markdown") -> str:
    return "\n\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind
    )


def solutions(path: Path) -> list[str]:
    """Solutions, folded in plain HTML that JupyterLab shows too."""
    folded = r"^<details>\n<summary>Solution</summary>\n\n(.*?)\n\n</details>$"
    return re.findall(folded, text(path), re.M | re.S)


def code(path: Path) -> str:
    return "\n".join(
        block
        for body in solutions(path)
        for block in re.findall(r"```python\n(.*?)```", body, re.S)
    )


@each_notebook
def test_every_chapter_has_two_exercises_with_hidden_solutions(path):
    assert re.findall(r"^\*\*Exercise (\d)\.\*\* ", text(path), re.M) == ["1", "2"]
    assert len(solutions(path)) == 2


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def folded(cell: NotebookNode) -> bool:
    """Whether a page and JupyterLab both keep the code of a cell back until it is asked for."""
    in_lab = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    return bool(in_lab and {"hide-input", "remove-input"} & {*tags(cell)})


def visible(path: Path) -> list[str]:
    """The code that a reader sees."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code" and not folded(cell)]


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path not in WITH_STUDIES], ids=lambda path: path.stem
)
def test_takeaways_quote_computed_values(path):
    """Of chapters that are written out: the output of one code cell."""
    outputs = text(path, "code").split("Markdown(")
    (takeaway,) = (output for output in outputs if "> **Takeaway.**" in output)
    assert re.search(r'f"[^"]*\{\w', takeaway)


@pytest.mark.parametrize(
    "name", ["03_method_from_scratch", "04_distillation_from_scratch", "05_your_own"]
)
def test_what_is_written_out_shows_its_result_at_the_top(name):
    """Outputs below the title wait for the last cell of code, which fills them."""
    title, *cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    assert re.fullmatch(r"# .+\n\n(> .+\n?)+", title.source)
    _, _, result, figure = takewhile(lambda cell: cell.cell_type == "code", cells)
    assert folded(result)
    assert folded(figure)
    assert "figure" in figure.metadata["mystnb"]
    filling = [cell.source for cell in cells if "> **Takeaway.**" in cell.source]
    assert len(filling) == 1
    for cell in (result, figure):
        (handle,) = re.findall(r"^(\w+) = DisplayHandle\(\)$", cell.source, re.M)
        assert f"\n{handle}.update(" in filling[0]


@pytest.mark.parametrize("path", WITH_STUDIES, ids=lambda path: path.stem)
def test_result_and_figure_come_first(path):
    """Below the title stands a sentence, then what was found and its figure, then the rest; the
    code of it all is folded.
    """
    title, *cells = nbformat.read(path, as_version=4).cells
    assert re.fullmatch(r"# .+\n\n(> .+\n?)+", title.source)
    top = list(takewhile(lambda cell: cell.cell_type == "code", cells))
    assert all(folded(cell) for cell in top)
    assert len([cell for cell in top if "figure" in cell.metadata.get("mystnb", {})]) == 1
    takeaways = [
        cell.source
        for cell in top
        if re.search(r"> \*\*Takeaway\.\*\*|^conclusion\(", cell.source, re.M)
    ]
    assert len(takeaways) == 1
    assert takeaways[0].count("{{") >= 2 or "conclusion(" in takeaways[0]
    if re.search(r"\b(opposite|verdict|conclusion)\b", text(path, "code")):  # words to explain
        assert re.search(r"\{\{(pair_)?rule\}\}|conclusion\(", takeaways[0])
    assert len(re.findall(r"\*\*Takeaway|^conclusion\(", text(path, "code"), re.M)) == 1


@pytest.mark.parametrize("path", WITH_STUDIES[1:], ids=lambda path: path.stem)
def test_what_is_measured_is_said_in_a_few_lines_of_code(path):
    cells = nbformat.read(path, as_version=4).cells
    sections = [i for i, cell in enumerate(cells) if re.search("^## ", cell.source, re.M)]
    said = [cell.source for cell in cells[: sections[0]] if cell.cell_type == "code"]
    seen = [source for source in said if source in visible(path)]
    assert len(seen) == 1
    assert len(ast.parse(seen[0]).body) <= 3


@pytest.mark.parametrize("path", WITH_STUDIES, ids=lambda path: path.stem)
def test_plumbing_is_out_of_sight(path):
    """Parameters and set-up are folded, what is named for other pages is not seen, and code that is
    takes up a third of the page at most, figures and tables not counted.
    """
    parameters, making = [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ][:2]
    assert "parameters" in tags(parameters)
    assert "import " in making.source
    assert folded(parameters)
    assert folded(making)
    seen = "\n".join(visible(path))
    assert not re.search(r"\b(glue|glue_pairs|say|forecast)\(", seen)
    assert not [node for node in ast.walk(ast.parse(seen)) if isinstance(node, ast.ImportFrom)]
    assert len(seen) <= (len(seen) + len(text(path))) / 3


HYPOTHESES = [path for path in NOTEBOOKS if re.fullmatch(r"[1-4][0-2]_.*", path.stem)]


def test_there_are_three_hypotheses_on_four_kinds_of_data():
    assert len(HYPOTHESES) == 12


ON_SETS = [path for path in NOTEBOOKS if path.stem[:2] in ("13", "14", "33")]


@pytest.mark.parametrize("path", [*HYPOTHESES, *ON_SETS], ids=lambda path: path.stem)
def test_every_parameter_becomes_the_setting_of_its_name(path):
    given = {}
    for node in ast.walk(ast.parse(text(path, "code"))):
        if isinstance(node, ast.Assign | ast.AugAssign) and isinstance(node.value, ast.Dict):
            (target,) = getattr(node, "targets", None) or [node.target]
            if getattr(target, "id", "") == "options":
                names = [value.id for value in node.value.values]
                given |= dict(zip((key.value for key in node.value.keys), names, strict=True))
    own = [name for name in parameters_of(path) if name not in ("profile", "results")]
    assert given == {SETTINGS.get(name, name): name for name in own}


def test_the_longest_run_of_code_is_written_from_scratch():
    """Cells of visible code with neither text nor an output's caption between them."""
    longest = {}
    for path in NOTEBOOKS:
        runs, run = [0], 0
        for cell in nbformat.read(path, as_version=4).cells:
            run = run + len(cell.source.splitlines()) if cell.source in visible(path) else 0
            runs.append(run)
        longest[path] = max(runs)
    most = max(longest, key=longest.get)
    assert most.stem.endswith("_from_scratch")
    assert longest[most] > max(longest[path] for path in WITH_STUDIES)


@each_notebook
def test_the_command_to_rerun_has_parameters_of_the_chapter(path):
    commands = re.findall(r"`(?:PYTHONPATH=\. )?kpnb run ([^`]*)`", text(path))
    last = text(path).rstrip().splitlines()[-1]
    assert last.endswith("[Rerun and reuse](../book/rerun.md).")
    for words in map(shlex.split, commands):
        found = find_notebook(words[0], ROOT)
        given = dict(word.split("=", 1) for word in words[1:] if word != "-p")
        check_parameters(found, {name: read_value(value) for name, value in given.items()})
    assert path.stem[:2] in {shlex.split(command)[0] for command in commands}


@each_notebook
def test_code_of_solutions_uses_what_is_there(path):
    tree = ast.parse(code(path))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    imports = [
        alias
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    known = made | {alias.asname or alias.name for alias in imports} | set(dir(builtins))
    assert {node.id for node in names} - known <= GIVEN.get(path.stem, set())
    cells = text(path, "code")
    assert all(re.search(rf"\b{name}\b", cells) for name in GIVEN.get(path.stem, ()))


@pytest.mark.parametrize("path", WITH_STUDIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("other", [False, True], ids=["defaults", "others"])
def test_every_chapter_with_a_study_has_a_plan_of_its_parameters(
    path, other, tmp_path, monkeypatch
):
    """Data are not loaded for it, unless the studies depend on them, and nothing is trained."""
    monkeypatch.setenv("KPNB_STORE", str(tmp_path))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # IPython warns of another one than its own
    for name in (
        "plan_of",
        "controls_plan",
        "softened_plan",
        "fine_tuned_plan",
        "losses_plan",
        "transformer_plan",
    ):
        monkeypatch.setattr(plans, name, lambda study, *what: Plan(study))
    monkeypatch.setattr(Plan, "also", lambda plan, *trainings: plan)
    monkeypatch.setattr(Study, "head", lambda *what: None)
    options = {"profile": "smoke", "device": "cpu"}
    if other:
        options |= {"epochs": 7, "b": 0.15, "grid": 4, "seed": 3, "seeds": [2, 5], "length": 30}
        options |= {"layer": "mean" if "transformer" in path.stem else "FC1"}
    given = {name: value for name, value in options.items() if name in parameters_of(path)}
    found = [plan.study.settings for plan in plans.plans_of(path, given)]
    assert found
    names = {"layer": "layers", "seed": "seeds"}
    for name, value in given.items():
        if name != "profile":
            kept = [getattr(each, names.get(name, name), None) for each in found]
            wanted = tuple(value) if isinstance(value, list) else value
            assert any(each in (wanted, (wanted,)) for each in kept), name


def test_the_copy_that_was_executed_has_the_same_plan(tmp_path, monkeypatch):
    """What papermill has put behind its parameters is no cell of the chapter."""
    source = ROOT / "notebooks" / "11_images_h2.ipynb"
    notebook = nbformat.read(source, as_version=4)
    number = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")
    injected = nbformat.v4.new_code_cell("b = 9", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(number + 1, injected)
    nbformat.write(notebook, tmp_path / source.name)
    monkeypatch.setattr(plans, "plan_of", lambda study, *what: Plan(study))
    given = {"profile": "smoke", "device": "cpu"}
    one, other = (plans.plans_of(path, given) for path in (source, tmp_path / source.name))
    assert one[0].study.settings == other[0].study.settings


def results(path: str) -> list:
    """Values of the expressions that stand alone in a notebook's solutions."""
    space: dict = {}
    found = []
    for node in ast.parse(code(ROOT / "notebooks" / path)).body:
        if isinstance(node, ast.Expr):
            found.append(eval(compile(ast.Expression(node.value), path, "eval"), space))
        else:
            exec(compile(ast.Module([node], []), path, "exec"), space)
    return found


def test_solutions_say_what_comes_out():
    gathered, apart = results("03_method_from_scratch.ipynb")
    assert gathered.tolist() == [0, 3, 6, 9]
    assert apart == pytest.approx(0.2, abs=0.05)
    assert results("04_distillation_from_scratch.ipynb") == [(1, 0.4)]
    assert results("05_your_own.ipynb") == [(1 / 2, 2 / 3)]
    assert results("11_images_h2.ipynb")[0].tolist() == [1]
    assert results("12_images_h3.ipynb")[0].tolist() == [0.75]
    mean, variance = results("31_sentiment_h2.ipynb")[0]
    assert (mean, variance) == (pytest.approx(0.2), pytest.approx(0.02))
    levels, changes = results("51_grid_and_threshold.ipynb")[0]
    assert levels > 0.9
    assert abs(changes) < 0.3
    assert results("80_evidence.ipynb") == [33]
    ratio = results("90_scoreboard.ipynb")[0]
    assert 0.3 < ratio < 0.7
    assert np.isfinite(ratio)


def test_claims_of_solutions_hold():
    """Of two equal points one at most has any derivative (chapter 20); 1 - 0.95^6 is more than a
    quarter (61).
    """
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    double = torch.cat([x, x[:1].detach()]).detach().requires_grad_()
    (double @ torch.randn(3, 50, generator=torch.Generator().manual_seed(1))).max(
        0
    ).values.sum().backward()
    assert (double.grad[[0, 5]] != 0).any(1).sum() == 1
    assert 1 - 0.95**6 > 0.25
