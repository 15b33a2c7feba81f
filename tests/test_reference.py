"""The page of reference: all that is public, nothing of its docstrings lost, all arguments said."""

import inspect
import re
from html import unescape

import docutils.core
import pytest
from myst_parser.parsers.docutils_ import Parser

import kpnb
from kpnb_book.run import reference

NAMES = [name for names in reference.GROUPS.values() for name in names]


def thing(name: str):
    module, _, short = name.rpartition(":")
    return reference.resolve_name(f"{f'kpnb.{module}'.rstrip('.')}:{short}")


def shown(text: str) -> str:
    """What a reader sees of a page in MyST; any complaint is an error."""
    options = {"myst_enable_extensions": ["deflist", "dollarmath", "colon_fence", "substitution"]}
    options |= {"halt_level": 2, "report_level": 2, "embed_stylesheet": False}
    options |= {"output_encoding": "unicode"}
    html = docutils.core.publish_string(
        f"# Page\n\n## Part\n\n{text}",
        parser=Parser(),
        writer_name="html5",
        settings_overrides=options,
    )
    body = re.sub(r"<(script|style|head)\b.*?</\1>", " ", html, flags=re.S)
    return unescape(re.sub(r"<[^>]+>", " ", body))


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[|*$<>{}\[\]^~]", text.replace("``", " "))


def test_everything_public_is_there_once():
    assert len(NAMES) == len({*NAMES})
    public = {name for name in kpnb.__all__ if not inspect.ismodule(getattr(kpnb, name))}
    assert {name for name in NAMES if ":" not in name} == public


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_a_docstring_says_is_lost(name):
    """Its words and signs, in their order, as a reader sees them."""
    found = iter(words(shown(reference.section(name))))
    said = re.sub(r":\w+:`", " ", inspect.getdoc(thing(name)))
    for word in words(said):
        assert word in found, f"{word!r} of the docstring of {name}"


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_said(name):
    if getattr(thing(name), "_is_protocol", False):
        return
    text = reference.markdown(thing(name))
    for argument in inspect.signature(thing(name)).parameters.values():
        if argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            assert re.search(rf"`[^`]*\b{argument.name}\b[^`]*`", text), argument.name


def test_lists_examples_and_signs():
    """By hand: a name too long for its column, one that fills it, and signs of Markdown."""

    def measured(x, long_one, entry=3, *, forward=print, **options):
        """Two * three of H_i | [a] {b} <c> $d$.

            measured(1, 2)

        x        ``[N, *]`` numbers
                 and more
        entry, long_one   both ``a | b``
        options1 fills it
        options, x   a name with a blank where the column begins
        """

    kept = reference.markdown(measured).split("\n\n")
    assert kept == [
        r"Two \* three of H\_i \| \[a\] \{b\} \<c\> \$d\$.",
        "```python\nmeasured(1, 2)\n```",
        "`x`\n: `[N, *]` numbers and more",
        "`entry, long_one`\n: both `a | b`",
        "`options1`\n: fills it",
        "`options, x`\n: a name with a blank where the column begins",
    ]
    call = "measured(x, long_one, entry=3, *, forward=print, **options)"
    assert reference.called("measured", measured) == call
