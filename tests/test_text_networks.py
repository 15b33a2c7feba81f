"""Tokens as units, and the networks that read them: full Jacobian, padding, masks, kernels,
seeds.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertModel

from kpnb import ClosedForm, Converged, Entropy, Stochastic, Tokens, embedded, entropy, lipschitz
from kpnb.energy import unit_energies
from kpnb.features import Network, capture
from kpnb.inputs import read_inputs
from kpnb.objectives import Aligned
from kpnb.perturb import Perturbation
from kpnb_book.networks.text import TextNet, _positions, build
from tests.tiny_text import tiny_model

LENGTH = 12
POOLS = ("first", "mean", "all")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def net_of(tiny: str, pool: str = "all", classes: int | None = 2, **options) -> TextNet:
    """A double-precision network that is far from its start, so that attention is not flat."""
    net = build(tiny, classes, pool=pool, **options).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*net.encoder.parameters(), net.words.weight]:
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return net


Text = dict[str, Tensor]


def texts(lengths: list[int], width: int = 0) -> Text:
    """Texts with so many words between two special tokens, padded to ``width`` at least."""
    generator = torch.Generator().manual_seed(1)
    place = torch.arange(max(width, max(lengths) + 2))
    ends = torch.tensor(lengths)[:, None] + 1
    ids = torch.zeros(len(lengths), len(place), dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        words = torch.randint(5, 40, (length,), generator=generator).tolist()
        row[: length + 2] = torch.tensor([2, *words, 3])
    return {
        "input_ids": ids,
        "attention_mask": (place <= ends).long(),
        "token_type_ids": torch.zeros_like(ids),
        "counts": (place > 0) & (place < ends),
    }


def part_of(text: Text, rows: slice, width: int) -> Text:
    return {name: value[rows, :width] for name, value in text.items()}


def measured(net: TextNet, text: Text, **options: Any) -> Entropy:
    """The entropy of its feature, whose units are the tokens that count."""
    how = {"units": Tokens(text["counts"]), "perturb": "inputs_embeds"} | options
    return entropy(net, embedded(net, **text), "feature", **how)


def jacobian_energies(net: TextNet, text: Text) -> Tensor:
    """Energies ``[B, T]`` from autograd and the encoder alone, without any code of kpnb but its
    pooling rule.
    """
    words, attended = net.words.weight[text["input_ids"]].detach(), text["attention_mask"]

    def feature(one: Tensor, mask: Tensor) -> Tensor:
        hidden = net.encoder(inputs_embeds=one[None], attention_mask=mask[None]).last_hidden_state[
            0
        ]
        hidden = hidden[mask.bool()]
        return {"first": hidden[0], "mean": hidden.mean(0), "all": hidden}[net.pool]

    rows = []
    for one, mask in zip(words, attended, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda e, mask=mask: feature(e, mask).flatten(), one
        )  # [d, T, E]
        rows.append(jacobian.square().sum((0, 2)))
    return torch.stack(rows).where(text["counts"], torch.nan)


@pytest.mark.parametrize("pool", POOLS)
def test_token_energies_are_the_full_jacobian(tiny, pool):
    net, text = net_of(tiny, pool), texts([4, 7, 1])
    net.encoder.set_attn_implementation("eager")
    inputs = read_inputs(net, embedded(net, **text), "inputs_embeds")
    perturbation = Perturbation(Network(net), inputs, Tokens(text["counts"]))
    found = unit_energies(perturbation, ["feature"], ClosedForm(rank=None))["feature"]
    torch.testing.assert_close(
        found.energy, jacobian_energies(net, text), rtol=1e-8, atol=0, equal_nan=True
    )
    assert (found.energy.isnan() == ~text["counts"]).all()


def test_mean_entropy_is_that_of_the_tokens_that_exist(tiny):
    net, text = net_of(tiny), texts([4, 7, 1])
    found = measured(net, text, solver=ClosedForm(None), scale=0.5)
    expected = torch.full((3,), Aligned().mean + math.log(0.5), dtype=torch.float64)
    torch.testing.assert_close(found.entropy.nanmean(-1), expected)
    assert found.linearity.isfinite().all()
    energy = jacobian_energies(net, text)
    torch.testing.assert_close(found.delta_f2, (0.01 * 0.5) ** 2 * energy.nansum(-1))
    converged = measured(net, text, solver=ClosedForm(None), objective=Converged(1e-5))
    minimum = 0.01 * (1e-5 * energy.nansum(-1, keepdim=True) / (2 * energy)).sqrt()  # below Eq. 3
    torch.testing.assert_close(converged.sigma, minimum, equal_nan=True)


@pytest.mark.parametrize(
    "solver", [ClosedForm(None), ClosedForm(rank=4, probes=3, noise=6)], ids=["exact", "probes"]
)
@pytest.mark.parametrize("pool", POOLS)
def test_padding_and_company_change_nothing(tiny, pool, solver):
    net, batch = net_of(tiny, pool), texts([4, 8, 6], width=LENGTH)
    padded = measured(net, batch, solver=solver)
    for row, length in enumerate([4, 8, 6]):
        one = part_of(batch, slice(row, row + 1), length + 2)
        alone = measured(net, one, solver=solver)
        for name in ("entropy", "sigma", "error", "linearity"):
            one, many = getattr(alone, name)[0], getattr(padded, name)[row]
            torch.testing.assert_close(
                many[: length + 2] if many.dim() else many,
                one,
                rtol=1e-8,
                atol=1e-8,
                equal_nan=True,
            )
        assert padded.entropy[row, length + 2 :].isnan().all()


def test_padding_in_single_precision(tiny):
    net, batch = net_of(tiny).float(), texts([4, 8], width=LENGTH)
    many = measured(net, batch, solver=ClosedForm(None))
    alone = measured(net, part_of(batch, slice(0, 1), 6), solver=ClosedForm(None))
    torch.testing.assert_close(
        many.entropy[:1, :6], alone.entropy, rtol=0, atol=1e-5, equal_nan=True
    )


@pytest.mark.parametrize("classes", [2, None], ids=["class", "span"])
def test_what_stands_at_padding_does_not_matter(tiny, classes):
    net, batch = net_of(tiny, classes=classes), texts([3, 8])
    batch["token_type_ids"] = batch["attention_mask"]  # a passage, for the span head
    other = batch | {"input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, 5:] = 17
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    for x, y in ((batch, other), (embedded(net, **batch), embedded(net, **other))):
        torch.testing.assert_close(net(**x), net(**y))
    other["input_ids"][0, 2] += 1  # but what stands at a word does
    assert (net(**batch) - net(**other)).abs()[0].max() > 1e-6


@pytest.mark.parametrize(
    ("objective", "method", "steps", "near"),
    [(Aligned(), "sgd", 80, 0.05), (Converged(1.5), "adam", 120, 0.1)],
)
def test_the_stochastic_learner_agrees_with_the_closed_form(tiny, objective, method, steps, near):
    """On texts of different length, whose special and padding tokens stay NaN.

    Adam's last step is a noisy one: over five seeds the mean difference is 0.02 to 0.07.
    """
    net, text = net_of(tiny), texts([4, 7, 1])
    options = {"objective": objective, "scale": 0.1}
    exact = measured(net, text, solver=ClosedForm(None), **options).entropy
    solver = Stochastic(method=method, steps=steps)
    learned = measured(net, text, solver=solver, max_batch=512, **options).entropy
    assert (learned.isnan() == ~text["counts"]).all()
    assert (learned - exact).abs().nanmean() < near
    assert (learned - exact).nan_to_num().abs().max() < 0.2


def test_only_embeddings_of_words_are_perturbed(tiny):
    """Every input that the network sees under noise has the masks and special embeddings of the
    original.
    """
    net, text, seen = net_of(tiny), texts([3, 8]), []
    x = embedded(net, **text)

    def note(_module: torch.nn.Module, _args: tuple, given: dict[str, Tensor]) -> None:
        seen.append({name: value.detach() for name, value in given.items()})

    handle = net.register_forward_pre_hook(note, with_kwargs=True)
    found = measured(net, text, solver=ClosedForm(4, 3, 6), check=False)
    how = {"units": Tokens(text["counts"]), "perturb": "inputs_embeds"}
    lipschitz(net, x, "feature", found.sigma, samples=2, **how)
    handle.remove()
    moved = 0
    for given in seen:
        if len(given["counts"]) % 2:
            continue  # a look at a sample, before anything is perturbed
        rows = {name: value.unflatten(0, (-1, 2)) for name, value in given.items()}
        for name in rows.keys() - {"inputs_embeds"}:
            assert (rows[name] == x[name]).all(), name
        change = rows["inputs_embeds"] - x["inputs_embeds"]
        assert not change[..., ~text["counts"], :].any()
        moved += bool(change.any())
    assert moved >= 3


@pytest.mark.parametrize("classes", [3, None], ids=["class", "span"])
def test_sdpa_and_eager_attention_agree(tiny, classes):
    one, two = (net_of(tiny, classes=classes) for _ in range(2))
    assert one.encoder.config._attn_implementation == "sdpa"
    two.encoder.set_attn_implementation("eager")
    batch = texts([3, 8])
    torch.testing.assert_close(one(**batch), two(**batch))
    first, second = (measured(net, batch, solver=ClosedForm(None)) for net in (one, two))
    torch.testing.assert_close(first.entropy, second.entropy, equal_nan=True)


def test_tokens_and_their_embeddings_are_one_text(tiny):
    net, batch = net_of(tiny), texts([3, 8])
    assert torch.equal(net(**batch), net(**embedded(net, **batch)))
    net(**batch).sum().backward()
    assert net.words.weight.grad.abs().sum() > 0  # the embeddings learn


def test_first_layers_of_a_model(tiny):
    theirs, net = (
        BertModel.from_pretrained(tiny, add_pooling_layer=False).eval(),
        build(tiny, pretrained=True, layers=2),
    )
    state = theirs.state_dict()
    assert torch.equal(net.words.weight, state.pop("embeddings.word_embeddings.weight"))
    assert net.encoder.state_dict().keys() == {key for key in state if "layer.2" not in key}
    assert all(torch.equal(state[key], value) for key, value in net.encoder.state_dict().items())
    batch = texts([5])
    hidden = theirs(batch["input_ids"], output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(capture(net.eval(), batch, ["feature"])["feature"], hidden[:, 0])


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_vocabulary_keeps_the_rows_of_its_tokens(tiny, pretrained):
    batch, options = (
        texts([5, 3]),
        {"pretrained": pretrained, "pool": "all", "dropout": 0.0, "seed": 4},
    )
    vocabulary = batch["input_ids"].unique().tolist()
    whole, part = build(tiny, **options), build(tiny, vocabulary=vocabulary, **options)
    assert part.words.weight.shape == (len(vocabulary), 16)
    assert torch.equal(part.words.weight, whole.words.weight[vocabulary])
    assert torch.equal(part(**batch), whole(**batch))
    assert sum(p.numel() for p in whole.parameters()) - sum(
        p.numel() for p in part.parameters()
    ) == 16 * (len(whole.words.weight) - len(vocabulary))
    batch["input_ids"][0, 2] = next(i for i in range(60) if i not in vocabulary)
    with pytest.raises(IndexError):
        part(**batch)


def test_random_weights_depend_on_the_seed_alone(tiny):
    before = torch.get_rng_state()
    one, two, other = (build(tiny, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    for key in ("head.weight", "words.weight", "encoder.encoder.layer.1.output.dense.weight"):
        assert not torch.equal(one[key], other[key])


def test_dropout_is_that_of_the_caller(tiny):
    rates = [
        {m.p for m in build(tiny, dropout=p).modules() if isinstance(m, torch.nn.Dropout)}
        for p in (0.3, 0.0)
    ]
    assert rates == [{0.3}, {0.0}]
    net, batch = build(tiny).train(), texts([5])
    assert not torch.equal(net(**batch), net(**batch))
    net.eval()
    assert torch.equal(net(**batch), net(**batch))


def test_span_head_points_into_the_passage_only(tiny):
    net, batch = net_of(tiny, classes=None), texts([7])
    # the passage, after three words of a question; its last token is special
    batch["token_type_ids"][0, 4:9] = 1
    logits = net(**batch)
    assert logits.shape == (1, 9, 2)
    allowed = (logits[0] > -1e4).all(-1).nonzero().flatten().tolist()
    assert allowed == [4, 5, 6, 7]
    assert (logits[0] == -1e4).all(-1).sum() == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "no/such-model"}, OSError, "no/such-model|cached files"),
        (
            {"layers": 4, "pretrained": True},
            ValueError,
            r"lack \d+ parameters, the first is encoder\.layer\.3",
        ),
        ({"pool": "frist"}, ValueError, "unknown pool 'frist'; did you mean 'first'"),
    ],
)
def test_wrong_networks_are_named(tiny, options, error, message):
    with pytest.raises(error, match=message):
        build(**({"name": tiny} | options))


def test_more_tokens_than_positions_are_named(tiny):
    """Instead of sizes that do not match, somewhere inside of the encoder; 48 are there."""
    net, short, long = net_of(tiny), texts([46]), texts([47])
    net(**short)
    for given in (long, embedded(net, **long)):
        with pytest.raises(
            ValueError, match=r"texts of 49 tokens, but .* has positions for 48: set"
        ):
            net(**given)


@pytest.mark.parametrize(
    ("kind", "limit"), [("roberta", 38), ("distilbert", 40), ("electra", 40), ("mpnet", 38)]
)
def test_positions_of_other_encoders(kind, limit):
    """As many as a pass can take, and not one more."""
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    size |= {"intermediate_size": 8, "embedding_size": 8, "vocab_size": 30, "pad_token_id": 1}
    if kind == "distilbert":
        size = {"n_layers": 1, "n_heads": 2, "dim": 8, "hidden_dim": 8, "vocab_size": 30}
    if kind == "electra":
        size["pad_token_id"] = 0
    config = AutoConfig.for_model(kind, max_position_embeddings=40, **size)
    encoder = AutoModel.from_config(config).eval()
    assert _positions(encoder) == limit
    encoder(torch.full((1, limit), 5))
    with pytest.raises((RuntimeError, IndexError)):
        encoder(torch.full((1, limit + 1), 5))


def test_weights_that_are_not_there_are_named(tmp_path):
    tiny = tiny_model(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError,
        match=r"lack 1 parameters, the first is encoder\.layer\.1\.output\.dense\.weight",
    ):
        build(tiny, pretrained=True)


def test_texts_that_do_not_fit_are_named(tiny):
    net = net_of(tiny)
    with pytest.raises(ValueError, match="sample 1: no unit at all"):
        measured(net, texts([3, 0]), solver=ClosedForm(None))
    with pytest.raises(ValueError, match=r"Integers cannot be perturbed.*kpnb\.embedded"):
        entropy(net, texts([3]), "feature", perturb="input_ids", units=Tokens())
