"""The chapters of the book: which of them waits for which."""

import re
from pathlib import Path

# A chapter is executed after those whose networks it reads; it would train them itself, but then
# one of the two would wait for the other in the store.
WAITS_FOR: dict[str, tuple[str, ...]] = {
    "00_quickstart": ("10_images_h1",),  # a baseline
    "01_information_discarding": ("10_images_h1",),  # the teacher
    "02_coherency": ("10_images_h1",),  # the teacher
    "03_method_from_scratch": (),
    "04_distillation_from_scratch": (),
    "05_your_own": (),
    "10_images_h1": (),
    "11_images_h2": ("10_images_h1",),
    "12_images_h3": ("10_images_h1",),
    "13_tiny_imagenet": ("10_images_h1",),
    "14_drawings_photographs": ("10_images_h1",),
    "50_teacher_size": ("10_images_h1",),  # the smaller teacher
    "51_grid_and_threshold": ("10_images_h1",),
    "52_output_distillation": ("10_images_h1",),  # the teacher
    "53_fine_tuning": (),  # has other classes, and networks of its own
    "20_clouds_h1": (),
    "21_clouds_h2": ("20_clouds_h1",),
    "22_clouds_h3": ("20_clouds_h1",),
    "30_sentiment_h1": (),
    "31_sentiment_h2": ("30_sentiment_h1",),
    "32_sentiment_h3": ("30_sentiment_h1",),
    "33_sst2": ("30_sentiment_h1",),
    "40_qa_h1": (),
    "41_qa_h2": ("40_qa_h1",),
    "42_qa_h3": ("40_qa_h1",),
    "60_agreement": ("10_images_h1",),
    "61_noise_and_controls": ("10_images_h1",),
    "70_losses": ("10_images_h1",),  # the teacher
    "71_transformer": ("10_images_h1",),  # the teacher
    "80_evidence": (),
    "90_scoreboard": ("10_images_h1", "20_clouds_h1", "30_sentiment_h1", "40_qa_h1"),
}

# They have no profile of the paper's size: what they show is small.
SMALL = ("03_method_from_scratch", "04_distillation_from_scratch", "05_your_own", "80_evidence")

# Minutes each at the laptop's settings, and nobody waits for them.
LONG = (
    "50_teacher_size",
    "51_grid_and_threshold",
    "60_agreement",
    "61_noise_and_controls",
    "70_losses",
    "71_transformer",
)


def notebooks_of(root: Path) -> list[Path]:
    """The notebooks that ``_toc.yml`` lists, in reading order."""
    files = re.findall(
        r"^[\s-]*file: *notebooks/([^\s.]+)", (root / "_toc.yml").read_text("utf8"), re.MULTILINE
    )
    return [root / "notebooks" / f"{name}.ipynb" for name in files]
