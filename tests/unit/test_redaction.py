"""Secrets do not survive in text that is kept or shown, and other text does."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.redaction import HIDDEN, LONGEST_TEXT, keepable, redacted

SECRETS = {
    "HF_TOKEN": "hf_CanaryCanaryCanary1",
    "WANDB_API_KEY": "0123456789canary0123456789canary01234567",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow",
    "MLFLOW_TRACKING_URI": "https://me:canary%2Furi@mlflow.example.org",
    "AWS_SECRET_ACCESS_KEY": "canary/Aws+Secret",
    "AWS_SESSION_TOKEN": "canary-session",
    "DATABASE_URL": "postgresql://tuner:canary-db@db.example.org/sweeps",
    "RAY_AUTH_TOKEN": "canary-ray-token",
    "SOME_PRIVATE_KEY": "-----BEGIN-----\ncanary-line-of-key\n-----END-----",
}


@pytest.mark.parametrize("name", SECRETS)
def test_the_value_of_a_secret_variable_is_taken_out_wherever_it_stands(name: str) -> None:
    text = redacted(f"401 for {SECRETS[name]!r}, tried {SECRETS[name]} twice", SECRETS)

    assert "canary" not in text.lower()
    assert text.startswith("401 for ")
    assert text.endswith(" twice")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no host https://me:pw@hub.org/a", f"no host https://{HIDDEN}@hub.org/a"),
        ("postgresql+psycopg://tuner:p@ss@db:5432/x", f"postgresql+psycopg://{HIDDEN}@db:5432/x"),
        ("https://tok3n@github.com/x.git", f"https://{HIDDEN}@github.com/x.git"),
        ("GET /a?rev=1&access_token=abc&x=2", f"GET /a?rev=1&access_token={HIDDEN}&x=2"),
        (
            "s3.org/k?X-Amz-Signature=ab12&X-Amz-Credential=AK",
            f"s3.org/k?X-Amz-Signature={HIDDEN}&X-Amz-Credential={HIDDEN}",
        ),
        ("blob?sv=2024&sig=abc%3D", f"blob?sv=2024&sig={HIDDEN}"),
        ("host=db user=tuner password=pw dbname=x", f"host=db user=tuner password={HIDDEN} dbname=x"),
        ("Client(url='u', api_key='abc', n=1)", f"Client(url='u', api_key={HIDDEN}, n=1)"),
        ("{'token': 'abc', 'n': 1}", f"{{'token': {HIDDEN}, 'n': 1}}"),
        ("{'Authorization': 'Bearer abc.def', 'n': 1}", f"{{'Authorization': 'Bearer {HIDDEN}', 'n': 1}}"),
        ("Authorization: Basic bWU6cHc=", f"Authorization: Basic {HIDDEN}"),
        ("sent bearer abcdefghi", f"sent bearer {HIDDEN}"),
        ("bad token hf_abcdefghijklmnopqrst!", f"bad token {HIDDEN}!"),
        ("key AKIAIOSFODNN7EXAMPLE", f"key {HIDDEN}"),
    ],
)
def test_a_secret_is_known_by_its_place_or_its_shape(text: str, told: str) -> None:
    assert redacted(text, {}) == told


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        'File "/home/me/tuner/worker/host.py", line 79, in advance',
        "unexpected token: '<eos>' at position 7; pad_token = eos_token",
        "KeyError: 'query'; max_length=128, tokens=20",
        "see https://huggingface.co/docs/peft?page=2#keys, write to me@example.org",
        "ssh://host/path and a@b",
        "",
    ],
)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    environment = {
        "TOKENIZERS_PARALLELISM": "illegal memory",
        "HF_TOKEN_PATH": "/home/me",
        "API_KEY": "a",
        "HF_TOKEN": "",
    }

    assert redacted(text, environment) == text


def test_a_failure_that_is_kept_is_valid_text_of_bounded_length_with_its_end() -> None:
    text = keepable("\ud800" + "x" * 10**6 + "ValueError: the end", {})

    assert text.encode().startswith(b"\\ud800xx")
    assert text.endswith("ValueError: the end")
    assert len(text) < LONGEST_TEXT + 100


@pytest.mark.parametrize(
    "piece", ["x", "a_", "a-", "://", "'token': '", "token='", "eyJ", "bearer ", "?a", "https://a:"]
)
def test_the_time_taken_grows_no_faster_than_the_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))

    begun_s = time.process_time()
    redacted(text, SECRETS)

    assert time.process_time() - begun_s < 10


@given(st.text(max_size=60), st.text(min_size=6, max_size=20), st.text(max_size=60))
def test_whatever_stands_around_it_a_secret_is_taken_out(before: str, secret: str, after: str) -> None:
    assert secret not in redacted(f"{before}{secret}{after}", {"HF_TOKEN": secret}).replace(HIDDEN, "")
