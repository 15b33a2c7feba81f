"""AlexNet, VGG, ResNet and ViT from torchvision, at full size or small enough to train on two
cores.

The networks are torchvision's own, module for module; only the number of channels (``width``), of
units in FC1 and FC2 (``hidden``) and of classes changes. At the defaults (``input_size=224,
width=1, hidden=4096``) the state dict is torchvision's, but for ResNet: "we added two Conv layers
and two FC layers before the final FC layer" (section 4.1). The paper says neither where nor how
wide. Here two 3 x 3 convolutions of 512 channels, each with a ReLU, follow the last block, before
the global average pool, and FC1, FC2 and FC3 are VGG's. Everything below them is torchvision's
ResNet.

The paper studies four layers (section 4.1); :data:`LAYERS` is the one table that says where they
are:

====  ================================================================  ================
Conv  top convolution, after its activation, before the last pool       [B, C, H, W]
FC1   first fully connected layer, after its activation                 [B, hidden]
FC2   second fully connected layer, after its activation                [B, hidden]
FC3   the logits as they are                                            [B, num_classes]
====  ================================================================  ================

Transformers have other layers, which ``networks.transformers`` describes: "tokens", "cls" and
"mean" at the end, "Block1" and so on before, and FC3.

torchvision's ReLUs work in place: what a convolution or a linear layer returned is overwritten by
the ReLU behind it. The layers above are the ReLUs themselves, which nothing overwrites.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from kpnb._messages import one_of, positive, unknown
from kpnb.weights import load_weights, read_weights, renamed

log = logging.getLogger(__name__)

# Blocks, which have as many heads, and pixels of a patch.
TRANSFORMERS = {"vit_4_8": (4, 8), "vit_b_16": (12, 16)}
_VGG = {"FC1": "classifier.1", "FC2": "classifier.4", "FC3": "classifier.6"}
_VGG_CONV = {"vgg11": 19, "vgg11_bn": 27, "vgg16": 29, "vgg16_bn": 42, "vgg19": 35, "vgg19_bn": 51}
LAYERS: dict[str, dict[str, str]] = {
    "alexnet": {
        "Conv": "features.11",
        "FC1": "classifier.2",
        "FC2": "classifier.5",
        "FC3": "classifier.6",
    },
    **{name: {"Conv": f"features.{number}", **_VGG} for name, number in _VGG_CONV.items()},
    **{
        f"resnet{n}": {"Conv": "avgpool.3", "FC1": "fc.1", "FC2": "fc.4", "FC3": "fc.6"}
        for n in (50, 101, 152)
    },
    **{
        name: {f"Block{n + 1}": f"encoder.layers.encoder_layer_{n}" for n in range(blocks)}
        | {"tokens": "encoder.ln", "cls": "cls", "mean": "mean", "FC3": "heads.head"}
        for name, (blocks, _) in TRANSFORMERS.items()
    },
}
# Pixels a side; anything smaller vanishes in the pools.
SMALLEST_INPUT = {"alexnet": 63, "vgg": 32, "resnet": 1}


def layer_path(name: str, layer: str) -> str:
    """Dotted module name of ``layer`` ("Conv", "FC1", "FC2" or "FC3"; of transformers others) in
    the network ``name``.

    Raises ``ValueError`` that names the nearest options when the network or the layer is unknown.
    """
    one_of("network", name, LAYERS)
    one_of(f"layer of {name}", layer, LAYERS[name])
    return LAYERS[name][layer]


def build(
    name: str,
    num_classes: int,
    *,
    input_size: int = 224,
    width: float = 1.0,
    hidden: int = 4096,
    dropout: float = 0.5,
    seed: int = 0,
    weights: str | Path | None = None,
) -> nn.Module:
    """The network ``name`` for images [B, 3, S, S], on the CPU, in training mode.

    name        "alexnet", "vgg11", "vgg16" or "vgg19"; "vgg11_bn" and so on have batch
                normalisation; "resnet50", "resnet101" or "resnet152"; "vit_b_16", a transformer,
                or "vit_4_8", one of 4 blocks for patches of 8 pixels
    input_size  S, the side of the images in pixels, at least 32 for VGG and 63 for AlexNet. The
                pool before FC1 keeps the map that the convolutions give (S // 32 a side for VGG; 1
                at 64 pixels and 6 at 224 for AlexNet) and never more than torchvision's 7 (AlexNet:
                6), where a small map would be blown up otherwise. ResNet's gives one pixel
    width       factor on the channels of every convolution, or on the numbers of a token
    hidden      units in FC1 and in FC2; transformers have none
    seed        of the initial weights; global random number generators are neither read nor
                advanced
    weights     a torchvision weights name ("IMAGENET1K_V1"), or a file with a state dict
                as :func:`kpnb.load_weights` takes it, wrapped or prefixed. FC3
                starts fresh when the file has another number of classes, and so do ResNet's added
                layers when it is torchvision's; any other difference is an error

    Initial weights of all but transformers are He's (normal, variance 2 / fan-in) with zero biases
    in all layers but FC3, whose variance is 0.01 / fan-in so that training starts near even logits.
    torchvision's
    normal(0, 0.01) for linear layers is meant for 25,088 inputs: with the 256 of a narrow network
    it shrinks the signal about tenfold a layer, and plain SGD hardly leaves the start.

    Raises ``ValueError`` for an unknown name, a size that vanishes or weights that do not fit,
    ``FileNotFoundError`` for a missing file and ``RuntimeError`` when torchvision cannot download.
    """
    layer_path(name, "FC3")  # says so if there is no such network
    positive(num_classes=num_classes, hidden=hidden, width=width)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must lie in [0, 1)")
    if name in TRANSFORMERS:
        from kpnb_book.networks import transformers

        net = transformers.build(*TRANSFORMERS[name], num_classes, input_size, width, dropout, seed)
    else:
        net = _convolutional(name, num_classes, input_size, width, hidden, dropout, seed)
    if weights is not None:
        _load(net, name, _read(name, weights), weights)
    return net


def _convolutional(
    name: str,
    num_classes: int,
    input_size: int,
    width: float,
    hidden: int,
    dropout: float,
    seed: int,
) -> nn.Module:
    """AlexNet, a VGG or a ResNet; see ``build``."""
    from torchvision import models  # takes a second, which a chapter with stored networks saves

    family = name.rstrip("_bn0123456789")
    smallest = SMALLEST_INPUT[family]
    if input_size < smallest:
        found = f"input_size={input_size} vanishes in the pools of {name}"
        raise ValueError(f"{found}; the smallest is {smallest}")
    with torch.device("meta"):  # nothing is allocated or drawn before the sizes are right
        net = models.get_model(name, **({} if family == "resnet" else {"dropout": dropout}))
        if family == "resnet":
            first, second = (nn.Conv2d(channels, 512, 3, padding=1) for channels in (2048, 512))
            net.avgpool = nn.Sequential(first, nn.ReLU(True), second, nn.ReLU(True), net.avgpool)
            net.fc = models.vgg16(dropout=dropout).classifier
        _resize(net, name, num_classes, input_size, width, hidden)
    net.to_empty(device="cpu")
    initialise(net, net.get_submodule(layer_path(name, "FC3")), seed)
    return net


@lru_cache
def _side_of_maps(name: str, input_size: int) -> int:
    """Cells a side that a torchvision network's convolutions leave of an image, whatever their
    width; a pass through the network, even on the meta device, takes longer than building it.
    """
    from torchvision import models

    with torch.device("meta"):
        maps = models.get_model(name).features(torch.empty(2, 3, input_size, input_size))
    return maps.shape[-1]


def _resize(
    net: nn.Module, name: str, num_classes: int, input_size: int, width: float, hidden: int
) -> None:
    """Replace every layer of a torchvision network on the meta device by one of the wanted size."""

    def wide(channels: int) -> int:
        return channels if channels == 3 else max(1, round(channels * width))  # images keep theirs

    for path, module in [*net.named_modules()]:
        if isinstance(module, nn.Conv2d):
            channels = wide(module.out_channels)
            conv = nn.Conv2d(
                wide(module.in_channels),
                channels,
                module.kernel_size,
                module.stride,
                module.padding,
                bias=module.bias is not None,
            )
            net.set_submodule(path, conv)
        elif isinstance(module, nn.BatchNorm2d):
            net.set_submodule(path, nn.BatchNorm2d(wide(module.num_features)))
    side = 1
    if hasattr(net, "features"):
        side = min(net.avgpool.output_size[0], _side_of_maps(name, input_size))
        net.avgpool = nn.AdaptiveAvgPool2d((side, side))
    head = list(net.children())[-1]  # FC1 to FC3
    sizes = [channels * side * side, hidden, hidden, num_classes]
    linear = [i for i, module in enumerate(head) if isinstance(module, nn.Linear)]
    for i, shape in zip(linear, pairwise(sizes), strict=True):
        head[i] = nn.Linear(*shape)


def initialise(net: nn.Module, last: nn.Module, seed: int) -> None:
    """Draw initial weights as :func:`build` says, for any network.

    Its layer ``last`` gives the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            variance = (0.01 if module is last else 2) / module.weight[0].numel()
            nn.init.normal_(module.weight, std=variance**0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _read(name: str, weights: str | Path) -> Mapping[str, Tensor]:
    """State dict from a file, or from torchvision, if it has ``weights`` of that name for the
    network ``name``.
    """
    from torchvision import models

    has_any = name in models.list_models()
    known = models.get_model_weights(name).__members__ if has_any else {}
    path = Path(weights)
    if weights in known:
        try:
            return known[weights].get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            failed = f"torchvision could not fetch {name} {weights} ({error})"
            remedy = f"download {known[weights].url} on a machine with a network"
            raise RuntimeError(f"{failed}; {remedy} and pass the file as weights=") from error
    if not path.suffix:
        raise ValueError(unknown(f"weights of {name}", weights, known) + "; or pass a file")
    state, notes = read_weights(path)
    for note in notes:
        log.warning("%s: %s", path, note)
    return state


def _load(net: nn.Module, name: str, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights whose last layer may be of other classes, and torchvision's ResNet."""
    own, last = net.state_dict(), f"{layer_path(name, 'FC3')}."
    state = renamed(state, own)
    if {"fc.weight", "fc.bias"} <= state.keys():  # torchvision's ResNet: without the added layers
        added = {key: value for key, value in own.items() if key.startswith(("avgpool.", "fc."))}
        state = {key: value for key, value in state.items() if not key.startswith("fc.")} | added
    fresh = {key: own[key] for key in own.keys() & state.keys() if key.startswith(last)}
    fresh = {key: value for key, value in fresh.items() if value.shape != state[key].shape}
    try:
        load_weights(net, {**state, **fresh})
    except ValueError as error:
        remedy = "ImageNet weights need width=1, hidden=4096 and input_size of at least 224"
        reason = str(error).removeprefix("the state dict does not fit the model. ")
        raise ValueError(
            f"{source} does not fit, or is from another network ({remedy}): {reason}"
        ) from error
