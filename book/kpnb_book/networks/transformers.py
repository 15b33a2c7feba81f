"""Vision transformers from torchvision, at full size or small enough to train on two cores.

An image is cut into patches, which become tokens; a further one, the cls token, is what the
classifier reads. Beside the blocks there are three layers at the end of the last one, after its
normalisation:

======  ===============================================  ============
tokens  the cls token and those of all patches           [B, 1 + P, d]
cls     the cls token alone: the classifier's input      [B, d]
mean    the mean over all tokens                         [B, d]
======  ===============================================  ============
"""

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer


class Transformer(VisionTransformer):
    """torchvision's, weight for weight, whose cls token and mean token are layers of their own."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.cls, self.mean = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images ``[B, 3, S, S]``."""
        patches = self._process_input(x)
        cls = self.class_token.expand(len(patches), -1, -1)
        tokens = self.encoder(torch.cat([cls, patches], 1))
        self.mean(tokens.mean(1))  # for those who look at it; the classifier does not
        return self.heads(self.cls(tokens[:, 0]))


def build(
    blocks: int,
    patch: int,
    num_classes: int,
    input_size: int,
    width: float,
    dropout: float,
    seed: int,
) -> Transformer:
    """A transformer of ``blocks``, with as many heads in each, for images [B, 3, S, S] and patches
    of ``patch`` pixels a side; on the CPU, in training mode.

    Initial weights are torchvision's, but for the classifier's, which are normal with standard
    deviation 0.02: at torchvision's zeros an untrained network says the same of all images. The
    other arguments are those of ``networks.images.build``; ``width`` is a factor on ViT-B's 768
    numbers a token, rounded so that the heads share them evenly.
    """
    if input_size % patch:
        raise ValueError(f"input_size={input_size} must be a multiple of the patch, {patch}")
    dim = blocks * max(1, round(768 * width / blocks))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = Transformer(
            image_size=input_size,
            patch_size=patch,
            num_layers=blocks,
            num_heads=blocks,
            hidden_dim=dim,
            mlp_dim=4 * dim,
            num_classes=num_classes,
            dropout=dropout,
        )
        nn.init.normal_(network.heads.head.weight, std=0.02)
    return network
