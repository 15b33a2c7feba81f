"""The chapters of the book: which of them waits for which."""

import re
from pathlib import Path
from typing import NamedTuple


class Chapter(NamedTuple):
    """What is known of a chapter before it is executed.

    after  the chapters whose networks it reads; it would train them itself, but then one of the two
           would wait for the other in the store
    long   it takes minutes at the laptop's settings, and nobody waits for it
    small  it has no profile of the paper's size: what it shows is small
    """

    after: tuple[str, ...] = ()
    long: bool = False
    small: bool = False


CHAPTERS: dict[str, Chapter] = {
    "00_quickstart": Chapter(after=("10_images_h1",)),  # a baseline
    "01_information_discarding": Chapter(after=("10_images_h1",)),  # the teacher
    "02_coherency": Chapter(after=("10_images_h1",)),  # the teacher
    "03_method_from_scratch": Chapter(small=True),
    "04_distillation_from_scratch": Chapter(small=True),
    "05_your_own": Chapter(small=True),
    "10_images_h1": Chapter(),
    "11_images_h2": Chapter(after=("10_images_h1",)),
    "12_images_h3": Chapter(after=("10_images_h1",)),
    "13_tiny_imagenet": Chapter(after=("10_images_h1",)),
    "14_drawings_photographs": Chapter(after=("10_images_h1",)),
    "50_teacher_size": Chapter(after=("10_images_h1",), long=True),  # the smaller teacher
    "51_grid_and_threshold": Chapter(after=("10_images_h1",), long=True),
    "52_output_distillation": Chapter(after=("10_images_h1",)),  # the teacher
    "53_fine_tuning": Chapter(),  # has other classes, and networks of its own
    "20_clouds_h1": Chapter(),
    "21_clouds_h2": Chapter(after=("20_clouds_h1",)),
    "22_clouds_h3": Chapter(after=("20_clouds_h1",)),
    "30_sentiment_h1": Chapter(),
    "31_sentiment_h2": Chapter(after=("30_sentiment_h1",)),
    "32_sentiment_h3": Chapter(after=("30_sentiment_h1",)),
    "33_sst2": Chapter(after=("30_sentiment_h1",)),
    "40_qa_h1": Chapter(),
    "41_qa_h2": Chapter(after=("40_qa_h1",)),
    "42_qa_h3": Chapter(after=("40_qa_h1",)),
    "60_agreement": Chapter(after=("10_images_h1",), long=True),
    "61_noise_and_controls": Chapter(after=("10_images_h1",), long=True),
    "70_losses": Chapter(after=("10_images_h1",), long=True),  # the teacher
    "71_transformer": Chapter(after=("10_images_h1",), long=True),  # the teacher
    "80_evidence": Chapter(small=True),
    "90_scoreboard": Chapter(after=("10_images_h1", "20_clouds_h1", "30_sentiment_h1", "40_qa_h1")),
}


def chapter_of(path: Path) -> Chapter:
    """The row of the notebook ``path`` in ``CHAPTERS``; of another one, somebody's own, the
    defaults.
    """
    return CHAPTERS.get(path.stem, Chapter())


def notebooks_of(root: Path) -> list[Path]:
    """The notebooks that ``_toc.yml`` lists, in reading order."""
    files = re.findall(
        r"^[\s-]*file: *notebooks/([^\s.]+)", (root / "_toc.yml").read_text("utf8"), re.MULTILINE
    )
    return [root / "notebooks" / f"{name}.ipynb" for name in files]
