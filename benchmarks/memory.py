"""Peak memory of one call, which ``max_batch`` bounds whatever the number of images (Linux)."""

import subprocess
import sys

CODE = """
import resource, sys, torch, kpnb
from kpnb_book.networks.images import build
images, max_batch = map(int, sys.argv[1:])
model = build('vgg11', 12, input_size=64, width=0.5, hidden=256)
kpnb.entropy(model, torch.randn(2, 3, 64, 64), 'classifier.1', max_batch=2)
used = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20
x = torch.randn(images, 3, 64, 64)
before = used()
kpnb.entropy(model, x, 'classifier.1', max_batch=max_batch)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
"""


def peak(images: int, max_batch: int) -> float:
    """Peak memory in MiB that the closed form adds, in a process of its own."""
    command = [sys.executable, "-c", CODE, str(images), str(max_batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run(quick: bool) -> None:
    print(
        "\npeak memory added by one call, VGG-11 at half width, 64 px "
        "(target: flat in the number of images)"
    )
    for images, max_batch in (
        ((32, 16), (64, 16)) if quick else ((64, 16), (256, 16), (1024, 16), (256, 64), (256, 256))
    ):
        print(f"  {images:4d} images, max_batch {max_batch:4d}: {peak(images, max_batch):7.0f} MiB")
