"""Takes passwords and tokens out of text that is about to be kept or shown. Pure; driver and worker use it.

The text of an exception may hold anything: a URL with a password in it, a header, the settings of a client. What is known to
be secret goes: values of environment variables that are named like one, users and passwords in URLs, and what follows a
secret's name. A secret that has neither name nor place can't be told from other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
"""Stands where a secret was."""
LONGEST_TEXT = 20_000
"""Characters of a failure that are kept."""
SHORTEST_SECRET = 6
"""Shorter values of environment variables would be found in every other word."""

_SECRET_NAME = re.compile(
    r"TOKEN(?!I)|SECRET|PASSW|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|COOKIE|_(?:KEY|PAT|PWD|AUTH|DSN)$",
    re.IGNORECASE,
)
_PLACE_NAME = re.compile(r"_(?:PATH|FILE|DIR|HOME|MODE|SOCK)$", re.IGNORECASE)
"""Says where a secret lies, or how it is used."""

# Every pattern takes time in proportion to the text: none begins with a repetition that could begin anywhere.
_USER_IN_URL = re.compile(r"((?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,40}://)[^\s/?#\"'<>]*@", re.IGNORECASE)
_WORDS = (
    r"(?:token|password|passwd|passphrase|pwd|secret|signature|sig|credentials?|api[-_]?key|access[-_]?key(?:[-_]?id)?|"
    r"secret[-_]?(?:access[-_]?)?key|private[-_]?key|auth[-_]?key)"
)
_IN_QUERY = re.compile(rf"([?&;](?:[a-z0-9_.-]{{0,40}}{_WORDS}|key|auth|code)=)[^\s&;#\"'<>]+", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"((?<![a-z0-9]){_WORDS}=)(?!\s)(?:'[^']{{0,4000}}'|\"[^\"]{{0,4000}}\"|[^\s,;&)\]}}'\"]+)", re.IGNORECASE
)
_QUOTED = re.compile(
    rf"((?<![a-z0-9]){_WORDS}['\"]\s{{0,4}}:\s{{0,4}})(?:'[^']{{0,4000}}'|\"[^\"]{{0,4000}}\")", re.IGNORECASE
)
_HEADER = re.compile(
    r"((?:authorization|x-api-key|cookie)['\"]?\s{0,4}[:=]\s{0,4}(?:b?['\"])?(?:(?:bearer|basic|token)\s{1,4})?)[^\s'\",]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bbearer\s{1,4})[a-z0-9._~+/=-]{8,}", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
    r"sk-[A-Za-z0-9_-]{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,2000}\.[\w-]{8,4000}\.[\w-]*)"
)


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """The text with `***` in place of each secret.

    Args:
        text: Of an exception, a log line, a message.
        environment: Of the process; values of its variables that are named like a secret are taken out.
    """
    return _without_forms(_without_values(text, environment))


def keepable(text: str, environment: Mapping[str, str]) -> str:
    """A failure's text as it may be written down: without secrets, valid Unicode, of bounded length with its end kept."""
    known = _without_values(text, environment).encode("utf-8", "backslashreplace").decode()
    if len(known) <= LONGEST_TEXT:
        return _without_forms(known)
    half = LONGEST_TEXT // 2
    first, last = _without_forms(known[:half]), _without_forms(known[-half:])
    return f"{first}\n... {len(known) - 2 * half} characters left out ...\n{last}"


def _without_values(text: str, environment: Mapping[str, str]) -> str:
    for value in sorted(_secrets(environment), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _without_forms(text: str) -> str:
    """Without what is secret by its place or shape."""
    text = _USER_IN_URL.sub(rf"\1{HIDDEN}@", text)
    for pattern in (_HEADER, _BEARER, _IN_QUERY, _QUOTED, _ASSIGNED):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def _secrets(environment: Mapping[str, str]) -> set[str]:
    """Values that no text may hold, as they are and as they stand in a URL."""
    values = {part for name, value in environment.items() for part in _parts(name, value)}
    long = {value for value in values if len(value) >= SHORTEST_SECRET}
    return long | {quote(value, safe="") for value in long}


def _parts(name: str, value: str) -> Iterator[str]:
    """What is secret in one variable: all of it, its lines, or the password of its URL."""
    if _SECRET_NAME.search(name) and not _PLACE_NAME.search(name):
        yield value
        yield from value.splitlines()
    if (password := _password(value)) is not None:
        yield password
        yield unquote(password)


def _password(value: str) -> str | None:
    try:
        return urlsplit(value).password if "://" in value else None
    except ValueError:  # no URL
        return None
