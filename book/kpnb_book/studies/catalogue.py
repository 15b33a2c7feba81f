"""All studies that evidence is stored of."""

from kpnb_book.studies import evidence
from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.fine_tuning import FINE_TUNING_EVIDENCE
from kpnb_book.studies.losses import LOSSES_EVIDENCE
from kpnb_book.studies.transformer import TRANSFORMER_EVIDENCE


def every() -> dict[str, Evidence]:
    """By name: those of the paper's experiment, and those of losses, transformers and
    fine-tuning.
    """
    others = (LOSSES_EVIDENCE, TRANSFORMER_EVIDENCE, FINE_TUNING_EVIDENCE)
    return evidence.STUDIES | {each.name: each for each in others}
