"""A tiny BERT in a folder, as transformers writes it, with a vocabulary of the words that the tests use."""

from pathlib import Path

from transformers import BertConfig, BertModel, BertTokenizer

TEXT = """the a movie film is was not n't good great bad awful dull fun gooo ##oo ##od un ##believ ##able it ' s t
, . ? ! what where who capital of river in paris rome france italy has people million city cities and lies on seine
tiber 1 2 3 4 5 6 7 8 9 10 12"""
WORDS = TEXT.split()


def tiny_model(root: Path, weights: bool = True) -> str:
    """The folder of a BERT with three layers of width 16; with ``weights``, random ones are there to load."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(root)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=48, **size)
    config.save_pretrained(root)
    if weights:
        BertModel(config).save_pretrained(root)
    return str(root)
