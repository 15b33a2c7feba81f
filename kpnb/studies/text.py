"""The text experiments: an encoder that classifies sentences or finds answers in passages, tokens as units."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kpnb import distill, study
from kpnb._messages import unknown
from kpnb.data.text import TextSet, load
from kpnb.networks.text import build
from kpnb.units import Tokens


@dataclass(frozen=True)
class Settings(study.Settings):
    """What a text experiment depends on besides.

    task                        "sentiment" or "qa" (question answering); their profiles differ
    pool, depth, dropout        as in ``networks.text.build``, where ``depth`` is ``layers``; the teacher's dropout is
                                its configuration's
    length                      tokens of the longest text
    rule, threshold, question   as in ``data.text.load``
    scale                       of the word embeddings; None: the standard deviation of each network's own
    weight_decay, bf16          of AdamW, and whether training runs under bfloat16 autocast
    """

    task: str = "sentiment"
    dataset: str = "reviews"
    network: str = "minilm"
    layers: tuple[str, ...] = ("last",)
    seeds: tuple[int, ...] = (0,)
    pool: str = "all"
    depth: int | None = 3
    dropout: float = 0.0
    length: int = 64
    rule: str | None = None
    threshold: float = 1.0
    question: bool = True
    scale: float | None = None
    weight_decay: float = 0.01
    bf16: bool = True
    batch_size: int = 32
    lr: float = 3e-4
    teacher_lr: float | None = 1e-4
    student_lr: float = 5e-4
    head_lr: float = 1e-3


class TextStudy(study.Study):
    """Profiles: ``smoke`` just runs everything once, ``laptop`` is for two cores, ``paper`` for a GPU and real data.

    ``QA`` holds what they have otherwise for question answering.
    """

    Settings = Settings
    build = staticmethod(build)
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"epochs": 2, "teacher_epochs": 1, "head_epochs": 1, "depth": 1, "teacher_samples": 96, "share": 64,
                  "test_samples": 48, "analysed": 6, "rank": 4, "probes": 4, "noise": 6},
        "laptop": {"epochs": 8, "teacher_epochs": 2, "head_epochs": 4, "teacher_samples": 3000, "analysed": 48,
                   "rank": 8, "probes": 8, "noise": 12},
        "paper": {"dataset": "sst2", "network": "bert-base-uncased", "pool": "first", "depth": None, "dropout": 0.1,
                  "length": 128, "teacher_samples": None, "share": None, "test_samples": None, "epochs": 150,
                  "teacher_epochs": 3, "head_epochs": 50, "teacher_lr": 2e-5, "lr": 5e-5, "student_lr": 5e-5,
                  "analysed": 1000},
    }  # fmt: skip
    QA: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dataset": "factbook", "length": 136},
        "laptop": {"dataset": "factbook", "length": 136, "teacher_epochs": 3},
        "paper": {"dataset": "squad", "length": 384, "pool": "all"},
    }

    @classmethod
    def resolve(cls, profile: str = "laptop", **overrides: Any) -> study.Settings:
        """As ``Study.resolve``, with what ``QA`` says for question answering."""
        task = overrides.get("task") or cls.Settings.task
        if task not in ("sentiment", "qa"):
            raise ValueError(unknown("task", task, ("sentiment", "qa")))
        given = {name: value for name, value in overrides.items() if value is not None}
        return super().resolve(profile, **(cls.QA.get(profile, {}) if task == "qa" else {}) | given)

    def load(self, split: str, count: int | None) -> TextSet:
        s = self.settings
        how = {"rule": s.rule, "threshold": s.threshold, "question": s.question, "root": s.data_root}
        texts = load(s.dataset, split, tokenizer=s.network, length=s.length, **how)
        if (texts.labels.dim() == 2) != (s.task == "qa"):
            raise ValueError(f"the data set {s.dataset!r} is not for the task {s.task!r}")
        return texts if count is None or count >= len(texts) else texts.share(count, seed=0)

    def path(self, layer: str) -> str:
        if layer != "last":
            raise ValueError(unknown("layer of a text network", layer, ["last"]))
        return "feature"

    def spec(self, seed: int) -> dict[str, Any]:
        s = self.settings
        size = {"pool": s.pool, "layers": s.depth, "dropout": s.dropout, "length": s.length}
        classes = None if s.task == "qa" else len(self.train.classes)
        return {"name": s.network, "num_classes": classes, **size, "seed": seed}

    def teacher_spec(self) -> dict[str, Any]:
        return super().teacher_spec() | {"pretrained": True, "dropout": None}

    def _schedule(self, *how: Any, **more: Any) -> distill.Schedule:
        s = self.settings
        plain = super()._schedule(*how, **more)
        return replace(plain, adamw=True, weight_decay=s.weight_decay, bf16=s.bf16)

    def inputs(self, model: nn.Module) -> tuple[Tensor, float]:
        """The measured texts with the word embeddings of ``model``, and the scale of those."""
        return model.embed(self.x).detach(), self.settings.scale or model.words.weight.std().item()

    @property
    def units(self) -> Tokens:
        return Tokens()

    @property
    def foreground(self) -> Tensor:
        """Tokens on the foreground, bool ``[N, T]``, where T is the longest measured text."""
        return self.measured.masks[:, : self.x.shape[1]]

    def scores(self, training: distill.Training) -> dict[str, float]:
        """Held-out accuracy; for question answering that of both ends of the span, exact match and F1; stored."""
        if self.settings.task != "qa":
            return super().scores(training)
        where = {"network": training.address, "epoch": training.epochs, "test": self.test.config}
        run = self.store.run("answers", where)
        wanted = [[row.text[slice(*span)] for span in row.answers] for row in self.test.rows]
        found = run.get("scores", lambda: ({}, exact_and_f1(self.answers(training), wanted)))
        return super().scores(training) | found.info

    @torch.no_grad()
    def answers(self, training: distill.Training) -> list[str]:
        """What the network answers to the held-out questions."""
        model, device = training.load().to(self.settings.device), self.settings.device
        batches = torch.arange(len(self.test)).split(self.settings.batch_size)
        ends = [best_spans(model(self.test.batch(index, device)[0])).cpu() for index in batches]
        return self.test.spans(torch.cat(ends))


def best_spans(logits: Tensor, longest: int = 30) -> Tensor:
    """First and last token ``[B, 2]`` of the likeliest answers of at most ``longest`` tokens; ``logits [B, T, 2]``."""
    start, end = logits.unbind(-1)
    allowed = torch.ones(start.shape[1], start.shape[1], device=start.device).triu().tril(longest - 1).bool()
    sums = (start[:, :, None] + end[:, None, :]).masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    return torch.stack([sums // start.shape[1], sums % start.shape[1]], 1)


def normalise(text: str) -> list[str]:
    """Words of an answer as the scorer of SQuAD v1.1 compares them: lower case, no punctuation, no articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_and_f1(answers: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of SQuAD v1.1, in [0, 1]; of the several ``wanted`` for a question the best counts."""
    exact, total = 0, 0.0
    for given, options in zip(map(normalise, answers), wanted, strict=True):
        words = [normalise(option) for option in options]
        exact += given in words
        shared = [(Counter(given) & Counter(w)).total() for w in words]
        total += max(2 * n / (len(given) + len(w)) if n else 0.0 for n, w in zip(shared, words, strict=True))
    return {"exact match": exact / len(answers), "F1": total / len(answers)}
