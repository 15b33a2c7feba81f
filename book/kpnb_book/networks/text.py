"""Transformer encoders from Hugging Face with a classification or span head, ready to be measured.

They are called as networks of Hugging Face are, with ``input_ids`` or, to be measured, with
``inputs_embeds`` in their place, which ``kpnb.embedded`` makes of them with the network's own word
embeddings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kpnb._messages import one_of
from kpnb_book.hub import source, transformers

POOLS = ("first", "mean", "all")


def _encoder(name: str, layers: int | None, pretrained: bool) -> nn.Module:
    """The encoder's first ``layers``, with the model's weights or random ones."""
    depth = {"num_hidden_layers": layers} if layers else {}
    config = transformers().AutoConfig.from_pretrained(**source(name), **depth)
    if not pretrained:
        return transformers().AutoModel.from_config(config, dtype=torch.float32)
    encoder, info = transformers().AutoModel.from_pretrained(
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


def _positions(encoder: nn.Module) -> int | None:
    """Tokens of the longest text that an encoder with learned positions takes; None: any."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # RoBERTa and its kin number tokens from behind the padding's index on.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - taken
    return None


class Words(nn.Embedding):
    """The embeddings of the tokens that are ``known [K]``, by the numbers of all."""

    def __init__(self, weight: Tensor, known: Tensor) -> None:
        super().__init__(len(known), weight.shape[1], _weight=weight[known].clone())
        rows = torch.full((len(weight),), -1).scatter(0, known, torch.arange(len(known)))
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(self.rows[input_ids])


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

    ``forward`` takes ``input_ids`` or ``inputs_embeds``, ``attention_mask``, ``token_type_ids`` and
    ``counts``, ``[B, T]`` each, as a :class:`kpnb_book.data.text_set.TextSet` has them. It gives
    logits ``[B, num_classes]``, or with a span head ``[B, T, 2]``: of every position being the
    first, and the last token of the answer; only tokens of the passage that count can be.
    IndexError for a token outside ``vocabulary``, ``ValueError`` for more tokens than the encoder
    has positions. Raises ``ValueError`` or ``OSError`` that names the culprit.
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
        self.name, self.longest = name, _positions(self.encoder)
        self.encoder.pooler = None  # where a model has one, it is behind the feature
        weight = self.encoder.get_input_embeddings().weight.detach()
        self.encoder.set_input_embeddings(nn.Identity())  # never asked: it gets embedded words
        known = torch.arange(len(weight)) if vocabulary is None else torch.tensor(vocabulary)
        self.words = Words(weight, known)
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def get_input_embeddings(self) -> Words:
        """What makes ``inputs_embeds`` of ``input_ids``."""
        return self.words

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        counts: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        words = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        if self.longest is not None and words.shape[1] > self.longest:
            raise ValueError(
                f"texts of {words.shape[1]} tokens, but {self.name!r} has positions for "
                f"{self.longest}: set length to that or less"
            )
        how = {"inputs_embeds": words, "attention_mask": attention_mask}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            how["token_type_ids"] = token_type_ids
        attended = attention_mask.to(words.dtype)
        hidden = self.encoder(**how).last_hidden_state * attended[..., None]
        count = attended.sum(1, keepdim=True)
        pooled = {"first": hidden[:, 0], "mean": hidden.sum(1) / count, "all": hidden}
        feature = self.feature(pooled[self.pool])
        if self.span:
            passage = counts & (token_type_ids == 1)
            return self.head(feature).masked_fill(~passage[..., None], -1e4)
        return self.head(feature.sum(1) / count if self.pool == "all" else feature)


build = TextNet  # as the other modules of networks call it
