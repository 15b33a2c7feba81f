"""What the pages get when they are built: the gallery of the executed notebooks, and the verdicts
in the table of contents.
"""

import io
import re
import runpy
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from kpnb_book.run.gallery import WIDTH, gallery

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = runpy.run_path(str(ROOT / "book" / "_ext" / "executed.py"))


def drawn(width: int, height: int) -> str:
    """A picture as Jupyter stores it."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def figure(name: str, caption: str, data: dict[str, str]) -> nbformat.NotebookNode:
    about = {"figure": {"name": name, "caption": caption}, "image": {"alt": f"alt of {name}"}}
    outputs = [new_output("display_data", data)]
    return new_code_cell("plot()", metadata={"mystnb": about}, outputs=outputs)


def test_gallery_has_every_figure_with_a_caption(tmp_path):
    cells = [
        new_markdown_cell("# A title"),
        figure("fig-one", "First. And *more*.", {"image/png": drawn(1000, 300)}),
        new_code_cell("x", outputs=[new_output("display_data", {"image/png": drawn(9, 9)})]),
        figure("fig-view", "To explore.", {"text/html": "<canvas>"}),
        figure("fig-none", "Not this time.", {}),  # has shown nothing
    ]
    copies = [tmp_path / name for name in ("10_a.ipynb", "11_b.ipynb", "12_none.ipynb")]
    nbformat.write(new_notebook(cells=cells), copies[0])
    nbformat.write(new_notebook(cells=cells[:1]), copies[1])  # has no figure
    page = gallery(copies, tmp_path / "gallery")
    assert re.findall(r"^## (.*)", page, re.MULTILINE) == ["{doc}`A title <../notebooks/10_a>`"]
    assert re.findall(r"^:link: (.*)", page, re.MULTILINE) == ["fig-one", "fig-view"]
    assert re.findall(r"^:link-alt: (.*)", page, re.MULTILINE) == ["First", "To explore"]
    assert re.findall(r"^:alt: (.*)", page, re.MULTILINE) == ["alt of fig-one"]
    (small,) = (tmp_path / "gallery").iterdir()
    with Image.open(small) as picture:
        assert picture.size == (WIDTH, 300 * WIDTH // 1000)
    assert f"```{{image}} {tmp_path.name}/gallery/{small.name}" in page
    assert "First. And *more*." in page
    assert page.count("explored on its page") == 1


def test_gallery_of_nothing_says_so(tmp_path):
    assert "Nothing has been executed yet" in gallery([tmp_path / "none.ipynb"], tmp_path / "x")


def glued(name: str, text: str) -> nbformat.NotebookNode:
    prefix = "application/papermill.record/"
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    return new_output("display_data", {f"{prefix}text/plain": repr(text)}, metadata=metadata)


def test_table_of_contents_says_what_was_found(tmp_path):
    """Of the hypotheses only, only what the executed scoreboard says, and nothing without it."""
    (tmp_path / "notebooks").mkdir()
    for name in ("10_images_h1", "22_clouds_h3", "41_qa_h2", "61_noise"):
        title = new_notebook(cells=[new_markdown_cell(f"# About {name}")])
        nbformat.write(title, tmp_path / "notebooks" / f"{name}.ipynb")
    names = ["book/index", *(f"notebooks/{path.stem}" for path in tmp_path.glob("notebooks/*"))]

    def titles() -> dict[str, str]:
        site = {name: SimpleNamespace(title=None) for name in names}
        app, config = SimpleNamespace(srcdir=tmp_path), SimpleNamespace(external_site_map=site)
        EXTENSION["say_what_was_found"](app, config)
        return {name: page.title for name, page in site.items() if page.title}

    assert titles() == {}
    board = tmp_path / "book" / "_executed" / "90_scoreboard.ipynb"
    board.parent.mkdir(parents=True)
    outputs = [
        glued("sb_images_H1", "supported"),
        glued("sb_clouds_H3", "mixed (1 of 4 shows, 2 opposite)"),
        glued("sb_questions_H2", "partly contradicted (1 of 2 opposite)"),
    ]
    nbformat.write(new_notebook(cells=[new_code_cell("x", outputs=outputs)]), board)
    assert titles() == {
        "notebooks/10_images_h1": "About 10_images_h1 (supported)",
        "notebooks/22_clouds_h3": "About 22_clouds_h3 (mixed: 1 of 4 shows, 2 opposite)",
        "notebooks/41_qa_h2": "About 41_qa_h2 (partly contradicted: 1 of 2 opposite)",
    }


def test_the_page_says_when_the_tests_passed_on_a_card(monkeypatch, tmp_path):
    """What the workflow hands over, and that nothing is known elsewhere."""
    computed, page = EXTENSION["computed"], "book/benchmarks"
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.delenv("KPNB_CUDA_TESTED", raising=False)
    assert "knows of no run" in computed(page, tmp_path)["CUDA_TESTED"]
    monkeypatch.setenv("KPNB_CUDA_TESTED", "2026-01-31 at revision 0123abc")
    said = computed(page, tmp_path)["CUDA_TESTED"]
    assert said == "The tests passed on a card on 2026-01-31 at revision 0123abc."
    text = (ROOT / f"{page}.md").read_text("utf8")
    assert all(text.count(place) == 1 for place in computed(page, tmp_path))


def test_what_was_measured_on_cards_is_on_the_page(tmp_path):
    computed, results = EXTENSION["computed"], tmp_path / "benchmarks" / "results"
    (tmp_path / "_toc.yml").write_text("")
    assert "not been run on a card yet" in computed("book/benchmarks", tmp_path)["ON_CARDS"]
    results.mkdir(parents=True)
    for card in ("b", "a"):
        (results / f"gpu-{card}.md").write_text(f"# kpnb on a GPU\n\n- card: {card}\n\n## speed\n")
    said = computed("book/benchmarks", tmp_path)["ON_CARDS"]
    assert said.count("#### kpnb on") == 2
    assert said.count("\n##### speed") == 2
    assert said.index("card: a") < said.index("card: b")


def test_workflows_are_what_the_pages_say_of_them():
    """Both are YAML; the one on a card starts only where a runner is named, and tests there."""
    folder = ROOT / ".github" / "workflows"
    cuda, book = (yaml.safe_load((folder / name).read_text()) for name in ("cuda.yml", "book.yml"))
    (job,) = cuda["jobs"].values()
    assert job["if"] == "vars.CUDA_RUNNER != ''"
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    for path in re.findall(r"tests/\w+\.py", commands):
        assert (ROOT / path).exists()
    assert "torch.cuda.is_available()" in commands
    publishing = "\n".join(step.get("run", "") for step in book["jobs"]["publish"]["steps"])
    assert "--workflow cuda.yml" in publishing
    assert "KPNB_CUDA_TESTED" in publishing
    assert book["jobs"]["publish"]["permissions"]["actions"] == "read"
