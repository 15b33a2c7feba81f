"""What a network is called with: one tensor that is perturbed, and others that are not."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kpnb._messages import named_samples, unknown
from kpnb._models import check_model
from kpnb._tensors import as_tensor, described, taken_to


@dataclass(frozen=True)
class Inputs:
    """``x [B, ...]``, which is perturbed, and whatever else the network is called with.

    name    of ``x`` in the mapping that the network takes; None when it takes ``x`` alone
    others  the rest of the mapping
    own     names of the others that have a row for each sample; all else (a temperature, a bias) is
            the same for all samples. Decided once, for the whole batch: a part of it may be as
            large as anything by accident
    stated  whether the caller has said which are shared
    """

    x: Tensor
    name: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    stated: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, which: slice | list[int]) -> "Inputs":
        """The samples ``which``."""
        others = {
            name: value[which] if name in self.own else value for name, value in self.others.items()
        }
        return replace(self, x=self.x[which], others=others)

    def with_x(self, x: Tensor) -> Any:
        """What the network is called with when ``x [k * B, ...]`` takes the place of ours.

        ``x`` holds k versions of the batch, one after the other. Networks may work on it in place,
        so it must not be what somebody else still needs.
        """
        if self.name is None:
            return x
        copies = len(x) // len(self)
        others = {
            name: value.repeat(copies, *[1] * (value.dim() - 1)) if name in self.own else value
            for name, value in self.others.items()
        }
        return {**others, self.name: x}


def _tensor(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Arrays as tensors on the ``device``; tensors made under ``torch.inference_mode()`` as normal
    ones, which autograd takes. All else as it is.
    """
    if isinstance(value, Tensor):
        return as_tensor(value, "the input")
    return taken_to(value, device, dtype)


def _perturbed(given: Mapping[str, Any], name: str | None) -> str:
    """The ``name`` of the input that is perturbed, which has to be one of those ``given``."""
    if name is None:
        floating = [
            key for key, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()
        ]
        raise ValueError(
            f"the input is a mapping of {', '.join(map(repr, given))}: say which is perturbed, "
            f"for example perturb={floating[0] if floating else 'inputs_embeds'!r}"
        )
    if name not in given:
        raise LookupError(unknown("input", name, given))
    return name


def _own(x: Tensor, others: Mapping[str, Any], shared: Sequence[str]) -> frozenset[str]:
    """Names of the ``others`` that have a row for each sample: all tensors whose first dimension is
    that of ``x``, but those named ``shared``. ``LookupError`` for a name that is not there,
    ``ValueError`` for tensors of which it cannot be told whose they are.
    """
    for name in shared:
        if name not in others:
            raise LookupError(unknown("shared input", name, others))
    rest = {name: value for name, value in others.items() if name not in shared}
    for name, value in rest.items():
        if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
            raise ValueError(
                f"{name!r} is a {type(value).__name__} of tensors: what belongs to the samples is "
                f"one tensor with a row for each; what they share is named, shared={name!r}"
            )
        if isinstance(value, Tensor) and value.dim() and len(value) not in (1, len(x)):
            raise ValueError(
                f"{name!r} {list(value.shape)} has no row for each of the {len(x)} samples; what "
                f"they share, such as a bias, is named, shared={name!r}"
            )
    tensors = {name: value for name, value in rest.items() if isinstance(value, Tensor)}
    return frozenset(n for n, value in tensors.items() if value.dim() and len(value) == len(x))


def read_inputs(
    model: nn.Module,
    x: Any,
    perturb: str | None = None,
    shared: str | Sequence[str] | None = None,
) -> Inputs:
    """``x`` as ``Inputs``: a tensor, a NumPy array, or a mapping whose entry ``perturb`` is
    perturbed and whose entries ``shared`` are the same for all samples.

    Raises ``TypeError`` for anything else, ``LookupError`` for a name that is not there, and
    ``ValueError`` for integers, for a batch that is empty, not finite or constant, for NaN in
    another input (infinity masks attention), for one on another device than the model, for one with
    rows of which there are not as many as samples, unless it is shared, and for a model whose
    parameters have no shape or no values.
    """
    check_model(model)
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_inference():
        raise ValueError(
            "the model's parameters were made under torch.inference_mode(), which autograd cannot "
            "use: build the model outside of it, or take copy.deepcopy(model) there"
        )
    numbers = (p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex())
    dtype = next((found.to_real() for found in numbers), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    if isinstance(x, Mapping):
        name = _perturbed(x, perturb)
        read = {key: _tensor(value, device, dtype) for key, value in x.items()}
        inputs = Inputs(read.pop(name), name, read)
    elif perturb is not None:
        raise ValueError(f"perturb={perturb!r} needs a mapping of tensors; got {type(x).__name__}")
    else:
        inputs = Inputs(_tensor(x, device, dtype))
    if not isinstance(inputs.x, Tensor):
        raise TypeError(
            f"the input is a tensor [N, ...]; got {type(inputs.x).__name__}. Several inputs are a "
            "mapping by the names that the model has for them, of which perturb= names one; "
            "batches are measured one after the other by kpnb.entropies"
        )
    for key, value in {perturb or "": inputs.x, **inputs.others}.items():
        if parameter is not None and isinstance(value, Tensor) and value.device != device:
            what = f"the input {key!r}" if key else "the input"
            raise ValueError(f"the model is on {device}, {what} on {value.device}; move one")
        if key in inputs.others and isinstance(value, Tensor) and value.isnan().any():
            raise ValueError(f"the input {key!r} holds NaN")
    _check_values(inputs.x)
    names = [shared] if isinstance(shared, str) else shared or ()
    own = _own(inputs.x, inputs.others, names)
    return replace(inputs, own=own, stated=shared is not None)


def _check_values(x: Tensor) -> None:
    """``ValueError`` unless ``x`` is a floating-point batch whose samples hold information."""
    if x.dim() < 2 or not x.numel():
        raise ValueError(
            f"the input is a non-empty batch [N, ...]; got {tuple(x.shape)} (x[None] is a batch of "
            "one)"
        )
    if x.is_complex():
        raise ValueError(
            f"the input is a floating-point batch [N, ...]; got {described(x)}. Split it into its "
            "parts, torch.view_as_real(x), and join them in forward="
        )
    if not x.is_floating_point():
        raise ValueError(
            f"the input is a floating-point batch [N, ...]; got {described(x)}. "
            f"{_advice_on_integers(x)}"
        )
    if x.is_meta:
        raise ValueError("the input is on the meta device, which keeps shapes and no values")
    of_sample = tuple(range(1, x.dim()))
    low, high = x.amin(of_sample), x.amax(of_sample)  # both NaN where any value is
    for what, bad in (
        ("NaN or infinite values", ~(low.isfinite() & high.isfinite())),
        ("the same value everywhere, so no information that could be discarded", low == high),
    ):
        if bad.any():
            raise ValueError(f"{named_samples(bad)} of the batch: {what}")


def _advice_on_integers(x: Tensor) -> str:
    """What to do with integers: token ids ``[N, T]`` have embeddings, all else is values."""
    tokens = (
        "Integers cannot be perturbed: for token ids, measure their embeddings, "
        "kpnb.embedded(model, input_ids, ...) with perturb='inputs_embeds' and "
        "units=kpnb.Tokens(mask)"
    )
    if x.dtype == torch.uint8:
        values = "x.float() / 255, then normalised as the network was trained"
    else:
        values = "x.float(), scaled as the network was trained"
    converted = f"Pixels and other values are converted: {values}"
    if x.dim() != 2 or x.dtype == torch.bool:
        return converted
    return f"{converted}. {tokens}" if x.dtype == torch.uint8 else tokens


def embedded(
    model: nn.Module, input_ids: Any, attention_mask: Any | None = None, **more: Any
) -> dict[str, Any]:
    """Token ids ``[N, T]`` as the word embeddings of ``model``, ready for ``kpnb.entropy``.

    input_ids, attention_mask   integers ``[N, T]``; tensors, arrays or lists, which are taken to
                                the model's device

    For any model with ``get_input_embeddings()``, as those of Hugging Face. The result is the
    mapping ``{"inputs_embeds": [N, T, E], "attention_mask": [N, T], **more}``; measure it with
    ``perturb="inputs_embeds"``, ``units=kpnb.Tokens(mask)`` and, because embeddings are not of unit
    variance, ``scale=model.get_input_embeddings().weight.std().item()``.

    Raises ``TypeError`` for a model without embeddings and for ids that are no integers,
    ``ValueError`` for another shape or for ids that the model does not know.
    """
    if not hasattr(model, "get_input_embeddings"):
        raise TypeError(
            f"{type(model).__name__} has no get_input_embeddings(): embed the tokens yourself and "
            "pass a mapping, with forward= where the model has to be called otherwise"
        )
    table = model.get_input_embeddings()
    ids = _token_ids(input_ids, table)
    if getattr(table, "max_norm", None) is not None:
        table = copy.deepcopy(table)  # a lookup rescales its weights in place
    with torch.no_grad():
        words = table(ids)
    given = {}
    if attention_mask is not None:
        mask = as_tensor(attention_mask, "the attention mask").to(ids.device)
        # masks of pairs of tokens are [N, T, T] or [N, 1, T, T]
        shape = (mask.shape[0], mask.shape[-1]) if mask.dim() > 1 else tuple(mask.shape)
        if shape != tuple(ids.shape):
            raise ValueError(
                f"the attention mask is {tuple(mask.shape)}, the token ids are {tuple(ids.shape)}"
            )
        given = {"attention_mask": mask}
    return {"inputs_embeds": words, **given, **more}


def _token_ids(input_ids: Any, table: nn.Module) -> Tensor:
    """Token ids ``[N, T]`` that ``table`` has embeddings for, on its device."""
    if isinstance(input_ids, Mapping):
        raise TypeError(
            f"input_ids are token ids [N, T]; got {type(input_ids).__name__}: unpack what the "
            "tokenizer returns, kpnb.embedded(model, **tokens)"
        )
    ids = as_tensor(input_ids, "input_ids")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"input_ids are integers [N, T]; got {described(ids)}")
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"input_ids are a non-empty batch [N, T]; got {tuple(ids.shape)}")
    weight = getattr(table, "weight", None)
    if isinstance(weight, Tensor):
        ids = ids.to(weight.device, torch.int64)
        # Other tables than PyTorch's own may have rows for a choice of tokens only.
        plain = type(table) is nn.Embedding
        if plain and (ids.min() < 0 or ids.max() >= len(weight)):
            raise ValueError(
                f"input_ids from {int(ids.min())} to {int(ids.max())}, but the model has "
                f"embeddings for 0 to {len(weight) - 1}: is it another model's tokenizer?"
            )
    return ids
