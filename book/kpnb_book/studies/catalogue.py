"""All studies that evidence is stored of."""

from kpnb_book.studies import evidence, losses, transformer
from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.fine_tuning import FINE_TUNING_EVIDENCE


def every() -> dict[str, Evidence]:
    """By name: those of the paper's experiment, and those of losses, transformers and
    fine-tuning.
    """
    others = [losses.LOSSES_EVIDENCE, losses.ON_PHOTOGRAPHS]
    others += [transformer.TRANSFORMER_EVIDENCE, transformer.ON_PHOTOGRAPHS, FINE_TUNING_EVIDENCE]
    return evidence.STUDIES | {each.name: each for each in others}
