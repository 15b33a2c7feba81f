"""The text experiments: an encoder that classifies sentences or finds answers in passages, tokens
as units.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kpnb.entropy import Entropy, Options, entropy
from kpnb.inputs import embedded
from kpnb.units import Tokens
from kpnb_book.data.text import ROOTS, SOURCES, load
from kpnb_book.data.text_set import TextSet
from kpnb_book.hub import check_name
from kpnb_book.networks.text import build
from kpnb_book.studies import settings
from kpnb_book.studies.settings import ALL, OWN, Count
from kpnb_book.studies.study import Study, drawn
from kpnb_book.studies.training import Schedule, Training


@dataclass(frozen=True)
class Settings(settings.Settings):
    """What a text experiment depends on besides.

    pool, depth, dropout   as in ``networks.text.build``, where ``depth`` is ``layers`` ("all":
                           all that the encoder has); the teacher's dropout is 0.1
    length                 tokens of the longest text
    threshold              smallest absolute rating of a word that carries sentiment
    scale                  of the word embeddings, in standard deviations of each network's own
    bf16                   whether training runs under bfloat16 autocast, which suits GPUs; most
                           CPUs are slower with it
    """

    pool: str = "first"
    depth: Count = 2
    dropout: float = 0.0
    length: int = 40
    threshold: float = 1.0
    bf16: bool = False


class TextStudy(Study):
    """Sentiment. Profiles: ``smoke`` just runs everything once, ``laptop`` is for two cores,
    ``paper`` for a GPU.

    The data set decides what is learned: to classify sentences, or to find answers;
    ``QuestionStudy`` has profiles for that.
    """

    Settings = Settings
    build = staticmethod(build)
    SOURCES = SOURCES
    ROOTS = ROOTS
    MEMORISING = 16  # of 4,000 sentences 92 % after 9 epochs
    LAPTOP: ClassVar[dict[str, Any]] = {
        "dataset": "reviews",
        "network": "minilm",
        "layers": ("feature",),
        "seeds": OWN[:1],
        "epochs": 6,
        "teacher_epochs": 2,
        "head_epochs": 2,
        "teacher_samples": 4000,
        "share": 1600,
        "test_samples": 500,
        "batch_size": 8,
        "lr": 1e-4,
        "teacher_lr": 5e-5,
        "student_lr": 5e-4,
        "head_lr": 1e-3,
        "analysed": 48,
        "rank": 8,
        "probes": 8,
        "noise": 12,
    }
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": LAPTOP
        | {
            "epochs": 2,
            "teacher_epochs": 1,
            "head_epochs": 1,
            "depth": 1,
            "teacher_samples": 96,
            "share": 64,
            "test_samples": 48,
            "analysed": 6,
            "rank": 4,
            "probes": 4,
            "noise": 6,
        },
        "laptop": LAPTOP,
        "paper": LAPTOP
        | {
            "network": "bert-base-uncased",
            "pool": "first",
            "depth": "all",
            "dropout": 0.1,
            "teacher_samples": "all",
            "share": "all",
            "test_samples": "all",
            "batch_size": 32,
            "epochs": 150,
            "teacher_epochs": 3,
            "head_epochs": 50,
            "teacher_lr": 2e-5,
            "lr": 5e-5,
            "student_lr": 5e-5,
            "analysed": 1000,
            "bf16": True,
        },
    }

    @classmethod
    def resolve(cls, profile: str = "laptop", **overrides: Any) -> settings.Settings:
        """As ``Study.resolve``; ``ValueError`` also for what cannot be a model's name."""
        found = super().resolve(profile, **overrides)
        check_name(found.network)
        return found

    def load(self, split: str, count: int | None) -> TextSet:
        s = self.settings
        how = {
            "tokenizer": s.network,
            "length": s.length,
            "threshold": s.threshold,
            "root": s.data_root,
        }
        texts = load(s.dataset, split, store=self.store, **how)
        return drawn(replace(texts, trimmed=self.trims(texts)), count, seed=0)

    def trims(self, texts: TextSet) -> bool:
        """Whether batches are cut to the longest of their texts: where most of a set is padding. Of
        SST-2's sentences that leaves out 11 of 40 tokens and a quarter of the time, of reviews and
        questions next to nothing. Not where the feature is of all tokens, as many in every text.
        """
        one_for_all = self.settings.pool != "all" and not texts.asks
        return one_for_all and texts.attention_mask.double().mean().item() < 0.5

    def spec(self, seed: int) -> dict[str, Any]:
        s = self.settings
        head = {"num_classes": None if self.train.asks else len(self.train.classes), "pool": s.pool}
        used = torch.cat([self.train.input_ids, self.test.input_ids]).unique().tolist()
        depth = None if s.depth == ALL else s.depth
        size = {"layers": depth, "vocabulary": used, "dropout": s.dropout}
        return {"name": s.network, **head, **size, "seed": seed}

    def teacher_spec(self) -> dict[str, Any]:
        return super().teacher_spec() | {"pretrained": True, "dropout": 0.1}

    def schedule(self, epochs: int, lr: float, seed: int, cosine: bool = False) -> Schedule:
        """As in every study, with the optimiser that transformers are trained with."""
        usual = super().schedule(epochs, lr, seed, cosine)
        return replace(usual, adamw=True, weight_decay=0.01, bf16=self.settings.bf16)

    @property
    def units(self) -> Tokens:
        """Words and punctuation, without special tokens."""
        return Tokens(self.measured.counts)

    def parameters_below(self, layer: str) -> dict[str, torch.Size]:
        """As ``Study.parameters_below``, with the embeddings of words first: the network registers
        them last, and they lie farthest from the feature.
        """
        below = super().parameters_below(layer)
        return dict(sorted(below.items(), key=lambda item: not item[0].startswith("words.")))

    def other_regions(self, shift: int) -> tuple[Tensor, Tensor]:
        """As ``Study.other_regions``: a token is what the token at the same place of the other text
        is, the first the first and the last the last, whatever the lengths.
        """
        counts, masks = self.measured.counts, self.foreground
        foreground = torch.zeros_like(masks)
        for i, mine in enumerate(counts):
            other = (i + shift) % len(counts)
            theirs = masks[other, counts[other]]
            place = torch.linspace(0, len(theirs) - 1, int(mine.sum())).round().long()
            foreground[i, mine] = theirs[place]
        return foreground, counts & ~foreground

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """The measured texts with the word embeddings of ``model``, at the scale of those."""
        return super().inputs(model) | self._embedded(model, self.x, self.measured.counts)

    def _embedded(
        self, model: nn.Module, x: Mapping[str, Tensor], counts: Tensor
    ) -> dict[str, Any]:
        return {
            "x": embedded(model, **x),
            "units": Tokens(counts),
            "perturb": "inputs_embeds",
            "scale": self.settings.scale * model.words.weight.std().item(),
        }

    def entropies(
        self, model: nn.Module, layers: Sequence[str], **options: Unpack[Options]
    ) -> dict[str, Entropy]:
        """As ``Study.entropies``; texts of like length go together, cut to the longest of them:
        padding takes as long as words do, and changes nothing.
        """
        counts = self.measured.counts
        parts, found = alike(self.measured.attention_mask.sum(1)), []
        for index, length in parts:
            x = {name: value[index, :length] for name, value in self.x.items()}
            own = super().inputs(model) | self._embedded(model, x, counts[index, :length])
            found.append(entropy(model, layers=layers, **options, **own))
        order = torch.cat([index for index, _ in parts])
        return {
            layer: together([each[layer] for each in found], order, self.units) for layer in layers
        }

    def scores(self, training: Training) -> dict[str, float]:
        """Held-out accuracy; of answers both ends count, and there are exact match and F1 besides;
        stored.
        """
        if not self.test.asks:
            return super().scores(training)
        where = {"network": training.address, "epoch": training.epochs, "test": self.test.config}

        def compute() -> tuple[dict[str, Tensor], dict[str, float]]:
            return {}, exact_and_f1(self.answers(training), self.test.accepted)

        found = self.store.run("answers", where).get("scores", compute)
        return super().scores(training) | found.info

    def answers(self, training: Training) -> list[str]:
        """What the network answers to the held-out questions."""
        device = self.settings.device
        model = training.load().to(device)  # may train it, which takes gradients
        spans = []
        with torch.no_grad():
            for part in torch.arange(len(self.test)).split(self.settings.batch_size):
                x, _ = self.test.batch(part, device)
                spans.append(best_spans(model(**x)).cpu())
        return self.test.parts(torch.cat(spans))


def alike(lengths: Tensor, window: int = 32, at_once: int = 8) -> list[tuple[Tensor, int]]:
    """Positions of texts that are measured together, and the longest of their ``lengths [N]``.

    Only neighbours within a ``window`` change their order, so that the first texts are measured
    in the same company however many follow, and give the same digits.
    """
    found = []
    for some in torch.arange(len(lengths)).split(window):
        order = some[lengths[some].argsort(stable=True)]
        found += [(index, int(lengths[index].max())) for index in order.split(at_once)]
    return found


def together(parts: Sequence[Entropy], order: Tensor, units: Tokens) -> Entropy:
    """Results of some texts each as one of them all: row i of ``parts`` is text ``order[i]``, and
    those of the ``units`` that only longer texts have are NaN.
    """
    tensors, width = {}, units.mask.shape[1]
    for name in parts[0].tensors():
        rows = [getattr(part, name) for part in parts]
        if rows[0].dim() == 2:
            rows = [pad(part, (0, width - part.shape[1]), value=torch.nan) for part in rows]
        tensors[name] = torch.cat(rows)[order.argsort()]
    return Entropy(**tensors, settings=parts[0].settings | {"units": repr(units)})


class QuestionStudy(TextStudy):
    """Question answering: longer texts, and a span head, which looks at all tokens whatever
    ``pool`` says.
    """

    SIZE: ClassVar[dict[str, Any]] = {"dataset": "factbook", "length": 80}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": TextStudy.PROFILES["smoke"] | SIZE,
        "laptop": TextStudy.LAPTOP
        | SIZE
        | {
            "teacher_samples": 3000,
            "share": 1100,
            "test_samples": 300,
            "lr": 3e-4,
            "teacher_lr": 1e-4,
            "head_lr": 3e-3,
            "analysed": 24,
        },
        "paper": TextStudy.PROFILES["paper"]
        | {"dataset": "factbook", "length": 384, "teacher_lr": 3e-5},
    }


def best_spans(logits: Tensor, longest: int = 30) -> Tensor:
    """First and last token ``[B, 2]`` of the likeliest answers of at most ``longest`` tokens;
    ``logits [B, T, 2]``.
    """
    start, end = logits.unbind(-1)
    both = start[:, :, None] + end[:, None, :]
    allowed = torch.ones_like(both).triu().tril(longest - 1).bool()
    best = both.where(allowed, -torch.inf).flatten(1).argmax(1)
    return torch.stack([best // start.shape[1], best % start.shape[1]], 1)


def normalise(text: str) -> list[str]:
    """Words of an answer as the scorer of SQuAD v1.1 compares them: lower case, no punctuation, no
    articles.
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_and_f1(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of SQuAD v1.1, in [0, 1]; of several accepted answers to a question the
    best counts.
    """
    pairs = [
        (normalise(a), list(map(normalise, options)))
        for a, options in zip(answers, accepted, strict=True)
    ]
    f1 = [max(_f1(words, option) for option in options) for words, options in pairs]
    return {"exact match": mean(words in options for words, options in pairs), "F1": mean(f1)}


def _f1(ours: list[str], theirs: list[str]) -> float:
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0
