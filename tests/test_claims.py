"""No claim on a page without a computed value behind it.

The rule: in the prose of the notebooks and of the front page, a decimal number, a percentage, a
signed number, a count "3 of 4" or "3 / 4", and a verdict in bold type are computed: values in the
text that a cell writes, or on the front page what ``glue`` names. Code, mathematics, links and
references are no prose, and a level stated in advance (``STATED``) is no result. What is quoted
must be glued, by the page itself or by the page that the reference names.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from kpnb_book.figures.report import RULES

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FRONT = ROOT / "book" / "index.md"
FINDINGS = ROOT / "book" / "kpnb_book" / "figures" / "findings.py"  # sentences of many chapters
STATED = ("95 %", "5 %")
VERDICTS = ("supported", "contradicted", "mixed", "shows", "opposite", "negligible")
VERDICTS += ("undecided", "open")
GLUES = {"conclusion", "paths", "by_path", "factors", "by_choice", "repeated", "linear"}
GLUES |= {"replicated"}
"""Functions of ``figures.findings`` that glue under the prefix which they take first."""
SMALL = "two|three|four|five|six|seven|eight|nine|ten"
CLAIMS = {
    "a number": r"(?<![\w.])[+-]?\d+[.,]\d+",
    "a percentage": r"\d\s*%",
    "a signed number": r"(?<![\w-])[+−-]\d",
    "a count": rf"\b(\d+|{SMALL}) (of|/)( the)? (\d+|{SMALL})\b",
    "a verdict": rf"\*\*(partly )?({'|'.join(VERDICTS)})\*\*",
}
QUOTED = r"\{\{(\w+)(?::[^{}]*)?\}\}"  # what ``report.say`` puts a glued value for
NO_PROSE = (
    r"^(`{3,})(?!\{)[\s\S]*?^\1\s*$",  # code blocks, but not directives such as admonitions
    r"^(`{3,}|:{3,})\{[\w:-]+\}.*$",  # the first line of a directive
    r"\{[\w:]+\}`[^`]*`",  # roles: glue, cite, doc, eq
    r"`[^`]+`",
    r"\$\$[\s\S]*?\$\$|\$[^$]+\$",
    r"\]\([^)]*\)|https?://\S+",  # where a link leads
    r"\b(?:[Ss]ection|[Ff]igure|[Tt]able|Python) \d[\d.]*",
    *(rf"(?<!\d){stated}" for stated in STATED),
)


def prose(source: str) -> str:
    """What is left of Markdown without code, mathematics, roles, links and stated levels."""
    for pattern in NO_PROSE:
        source = re.sub(pattern, " ", source, flags=re.M)
    return source


def claims(source: str) -> list[str]:
    """The claims in Markdown that are typed and not glued."""
    text = prose(source)
    return [
        f"{what}: {found.group()!r}"
        for what, rule in CLAIMS.items()
        for found in re.finditer(rule, text)
    ]


def cells(path: Path, kind: str) -> list[str]:
    return [
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind
    ]


def quoted(source: str) -> Iterator[tuple[str, str]]:
    """(page, name) of every glued value that Markdown quotes; page is "" for the page itself."""
    for reference in re.findall(r"\{glue:text\}`([^`]+)`", source):
        page, _, name = reference.rpartition("::")
        yield page, name.split(":")[0]
    for name, page in re.findall(r"^```\{glue:any\} (\w+)\n(?::doc: (\S+)\n)?", source, re.M):
        yield page, name


def executed(path: Path) -> list[str] | None:
    """Names that the executed copy of a notebook glued; None without a copy of just this
    notebook.
    """
    copy = ROOT / "book" / "_executed" / path.name
    ran = nbformat.read(copy, as_version=4).cells if copy.exists() else []
    own = [
        cell.source for cell in ran if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    if own != [cell.source for cell in nbformat.read(path, as_version=4).cells]:
        return None
    outputs = [out for cell in ran for out in cell.get("outputs", [])]
    found = [
        out.metadata.scrapbook.name for out in outputs if "scrapbook" in out.get("metadata", {})
    ]
    return [name.removeprefix("application/papermill.record/") for name in found]


def possible(path: Path) -> str:
    """A pattern of the names that a notebook's code can glue."""
    tree = ast.parse("\n".join(cells(path, "code")))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return "|".join(pattern for call in calls for pattern in _names(call)) or "(?!)"


def called(call: ast.Call) -> str:
    """The name of the function, with or without its module."""
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _names(call: ast.Call) -> Iterator[str]:
    function = called(call)
    prefix = getattr(call.args[0], "value", None) if call.args else None
    if function in {"glue_pairs", *GLUES} and isinstance(prefix, str):
        yield re.escape(prefix) + r"_\w+"
    if function == "glue":
        yield from (re.escape(keyword.arg) for keyword in call.keywords if keyword.arg)
        for text in (
            node for keyword in call.keywords if not keyword.arg for node in ast.walk(keyword.value)
        ):
            if isinstance(text, ast.JoinedStr):
                parts = [
                    re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+"
                    for p in text.values
                ]
                yield "".join(parts)


@pytest.mark.parametrize("path", [*NOTEBOOKS, FRONT], ids=lambda path: path.stem)
def test_every_claim_is_glued(path):
    texts = [FRONT.read_text("utf8")] if path == FRONT else cells(path, "markdown")
    assert not [claim for text in texts for claim in claims(text)]


def templates(path: Path) -> Iterator[str]:
    """The sentences that a notebook's ``report.say`` puts glued values into."""
    for node in ast.walk(ast.parse(code_of(path))):
        if isinstance(node, ast.Call) and called(node) == "say":
            yield node.args[0].value


def text_of(node: ast.expr) -> str:
    """A text as code writes it, with a word for each computed value."""
    if isinstance(node, ast.Constant):
        return re.sub(QUOTED, "VALUE", str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "VALUE"


def said(source: str) -> Iterator[str]:
    """The texts that Python code shows as Markdown, or makes of values to be shown."""
    nodes = [*ast.walk(ast.parse(source))]
    forms = {id(node.format_spec) for node in nodes if isinstance(node, ast.FormattedValue)}
    for node in nodes:
        if isinstance(node, ast.Call) and called(node) in {"Markdown", "say"}:
            yield text_of(node.args[0])
        if isinstance(node, ast.JoinedStr) and id(node) not in forms:
            yield text_of(node)


def code_of(path: Path) -> str:
    return "\n".join(cells(path, "code")) if path.suffix == ".ipynb" else path.read_text("utf8")


@pytest.mark.parametrize("path", [*NOTEBOOKS, FINDINGS], ids=lambda path: path.stem)
def test_every_claim_that_code_writes_is_computed(path):
    assert not [claim for text in said(code_of(path)) for claim in claims(text)]


@pytest.mark.parametrize(
    "code",
    [
        "say('rho rises to 0.61')",
        "say('> **Takeaway.** It is **open**')",
        "say('It is **partly supported** with {{h1_pairs}} pairs')",
        "Markdown(f'{a} of 4 pairs, in 12 % of cases')",
        "Markdown('it shows in ' + '3 of 4 pairs')",
        "parts.append(f'{name}: +0.3')",
    ],
)
def test_typed_claims_are_found_in_code(code):
    assert [claim for text in said(code) for claim in claims(text)]


def test_values_in_texts_of_code_are_no_claims():
    code = "say('{{h1_a:+.2f}} of {{h1_b}}: **{{h1_word}}**')\nMarkdown(f'{a:.2f} (**{word}**)')"
    assert not [claim for text in said(code) for claim in claims(text)]


RAW = re.compile(r"\{[a-z:]+\}`|^[`:]{3,}\{", re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_shows_a_raw_directive(path):
    """Wherever it is opened: neither its own text nor what its code writes has any."""
    texts = [*cells(path, "markdown"), *said(code_of(path))]
    assert not [text for text in texts if RAW.search(text)]


@pytest.mark.parametrize(
    "raw", ["{eq}`eq-1`", "a\n```{note}\nb\n```", "{glue:text}`a:.2f`", ":::{tip}"]
)
def test_raw_directives_are_found(raw):
    assert RAW.search(raw)


@pytest.mark.parametrize("path", [*NOTEBOOKS, FRONT], ids=lambda path: path.stem)
def test_every_quoted_value_is_glued_somewhere(path):
    if path == FRONT:
        references = [*quoted(FRONT.read_text("utf8"))]
    else:
        texts = "\n".join(templates(path))
        references = [("", name) for name in re.findall(QUOTED, texts) if name not in RULES]
    for page, name in references:
        source = (path.parent / page).resolve() if page else path
        assert source in NOTEBOOKS, f"{name} is quoted from {page}, which is no notebook"
        assert re.fullmatch(possible(source), name), (
            f"{name} is quoted, but {source.stem} does not glue it"
        )
        known = executed(source)
        assert known is None or name in known, (
            f"{name} is quoted, but {source.stem} did not glue it when it ran"
        )


@pytest.mark.parametrize(
    "typed",
    [
        "rho rises to 0.61",
        "in 12 % of cases",
        "it changes by +3",
        "3 of 4 pairs",
        "5 / 6",
        "two of the three layers",
        "the hypothesis is **supported**",
        "```{note}\nrho is 0.61\n```",
        "lambda (0.7) is larger",
        "$\\rho$ = 0.6",
    ],
)
def test_typed_claims_are_found(typed):
    assert claims(typed)


@pytest.mark.parametrize(
    "allowed",
    [
        "{glue:text}`rho:.2f` and **{glue:text}`h1_verdict`**",
        "{eq}`eq-9`, section 3.1, table 5, figure 1a",
        "`b=0.2`",
        "$p \\le 0.05$",
        "the 95 % interval",
        "```python\nx = 0.5\n```",
        "16 x 16 cells",
        "[here](https://a.org/2.5)",
        "*supported* when all show, *open* else",
    ],
)
def test_what_is_no_claim_is_not(allowed):
    assert not claims(allowed)


def test_names_are_read_from_the_code(tmp_path):
    code = "glue(a_one=1)\nglue(**{f'b_{n}_x': n for n in x})\nfindings.conclusion('h9', found)"
    path = tmp_path / "p.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    names = ("a_one", "b_two_x", "h9_verdict", "a_two", "b_two", "h8_verdict")
    assert [bool(re.fullmatch(possible(path), name)) for name in names] == [True] * 3 + [False] * 3
