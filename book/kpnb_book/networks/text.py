"""Transformer encoders from Hugging Face with a classification or span head, ready to be measured.

A text is a row of tokens, and a batch comes in one of two forms:

tokens      integers ``[B, T, 4]``: counts, attended, segment, number of the token
embedded    a mapping of ``inputs_embeds [B, T, E]``, the word embeddings, and ``marks [B, T, 3]``,
            the first three of those integers

*counts* is 1 for a unit (the mask of :class:`kpnb.units.Tokens`), *attended* is 0 for padding only,
*segment* tells a question (0) from its passage (1). Networks take both; they are trained on the
first form and measured on the second, where ``inputs_embeds`` is perturbed; ``embed`` makes it of
the first with the network's own word embeddings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from kpnb._messages import one_of
from kpnb_book.hub import source

POOLS = ("first", "mean", "all")
MARKS = 3  # integers before the number of a token

logging.set_verbosity_error()  # else notebooks show tables of unused weights and progress bars
logging.disable_progress_bar()


def _encoder(name: str, layers: int | None, pretrained: bool) -> nn.Module:
    """The encoder's first ``layers``, with the model's weights or random ones."""
    depth = {"num_hidden_layers": layers} if layers else {}
    config = AutoConfig.from_pretrained(**source(name), **depth)
    if not pretrained:
        return AutoModel.from_config(config, dtype=torch.float32)
    encoder, info = AutoModel.from_pretrained(
        **source(name),
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        use_safetensors=True,
    )
    if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
        found = f"lack {len(missing)} parameters, the first is {missing[0]}"
        raise ValueError(f"the weights of {name!r} {found}")
    return encoder


class TextNet(nn.Module):
    """An encoder with a linear head, on the CPU.

    The feature f(x), the module ``feature``, is of the last hidden layer (section 4.1): the
    ``pool="first"`` token's vector or the "mean" over tokens ``[B, E]``, or "all" of them ``[B, T,
    E]``, with zeros at padding.

    name         "minilm" (comes with the project), or any model of Hugging Face by folder, name or
                 name@commit
    num_classes  of sentences, whose mean over tokens the head takes when ``pool`` is "all"; None: a
                 span head, which looks at all tokens whatever ``pool`` says
    layers       how many of the encoder's layers, from the first (None: all)
    pretrained   take the model's weights; else random ones, as the model's configuration says
    vocabulary   numbers of the tokens that the network has to know (None: all); the others have no
                 embedding
    seed         of all random weights; global generators are neither read nor advanced

    ``forward`` gives logits ``[B, num_classes]``, or with a span head ``[B, T, 2]``: of every
    position being the first, and the last token of the answer; only tokens of the passage can be.
    IndexError for a token outside ``vocabulary``. Raises ``ValueError`` or ``OSError`` that names
    the culprit.
    """

    def __init__(
        self,
        name: str = "minilm",
        num_classes: int | None = 2,
        *,
        pool: str = "first",
        layers: int | None = None,
        pretrained: bool = False,
        dropout: float = 0.1,
        vocabulary: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        one_of("pool", pool, POOLS)
        super().__init__()
        self.span, self.feature = num_classes is None, nn.Identity()
        self.pool = "all" if self.span else pool
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = _encoder(name, layers, pretrained)
            self.head = nn.Linear(self.encoder.config.hidden_size, num_classes or 2)
        self.encoder.pooler = None  # where a model has one, it is behind the feature
        weight = self.encoder.get_input_embeddings().weight.detach()
        self.encoder.set_input_embeddings(nn.Identity())  # never asked: it gets embedded words
        known = torch.arange(len(weight)) if vocabulary is None else torch.tensor(vocabulary)
        self.words = nn.Embedding.from_pretrained(weight[known], freeze=False)
        rows = torch.full((len(weight),), -1).scatter(0, known, torch.arange(len(known)))
        self.register_buffer("rows", rows, persistent=False)  # of words, by a token's number
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def embed(self, tokens: Tensor) -> dict[str, Tensor]:
        """The embedded form of ``tokens [B, T, 4]``."""
        words = self.words(self.rows[tokens[..., MARKS]])
        return {"inputs_embeds": words, "marks": tokens[..., :MARKS]}

    def forward(
        self,
        tokens: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        marks: Tensor | None = None,
    ) -> Tensor:
        if tokens is not None:
            return self(**self.embed(tokens))
        counts, attended, segment = marks.unbind(-1)
        how = {"inputs_embeds": inputs_embeds, "attention_mask": attended}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            how["token_type_ids"] = segment
        hidden = self.encoder(**how).last_hidden_state
        hidden = hidden * attended[..., None].to(hidden.dtype)
        count = attended.sum(1, keepdim=True)
        pooled = {"first": hidden[:, 0], "mean": hidden.sum(1) / count, "all": hidden}
        feature = self.feature(pooled[self.pool])
        if self.span:
            return self.head(feature).masked_fill((counts * segment == 0)[..., None], -1e4)
        return self.head(feature.sum(1) / count if self.pool == "all" else feature)


build = TextNet  # as the other modules of networks call it
