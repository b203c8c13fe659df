"""Addresses that a sweep file may name: what they must look like, and that none holds a secret. Pure functions."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

from tuner.dimensions import wrong

JOURNAL = "journal"
"""`study.storage` where trials stand in a file of the sweep's folder."""

_SECRETS = re.compile(
    r"(?P<before>://[^/\s:@]*):\S*@"  # up to the last @: a password may hold one, and slashes
    r"|(?P<key>[?&][^=&\s]*(password|secret|token|access_key|account_key|credential)[^=&\s]*=)[^&\s'\"]*",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in which passwords of addresses are dots, so that it may be shown."""
    return _SECRETS.sub(lambda found: f"{found['before']}:...@" if found["before"] else f"{found['key']}...", text)


def study_address(raw: str) -> str:
    """Check `study.storage`.

    Raises:
        PydanticCustomError: It is neither `journal` nor a database's address, or holds a password.
    """
    if raw == JOURNAL:
        return raw
    if not raw.startswith("postgresql://"):
        raise wrong(
            "must be journal or postgresql://user@host:port/database, got {got}", got=repr(without_secrets(raw))
        )
    if without_secrets(raw) != raw:
        raise wrong(
            "must hold no password, for reports and logs show this file; put it into PGPASSWORD or ~/.pgpass, which are read "
            "wherever a database is reached"
        )
    parts = _parts(raw)
    if not parts.path.strip("/"):
        raise wrong("must name a database, as in postgresql://user@host:port/database, got {got}", got=repr(raw))
    return raw


SCHEMES = ("s3", "gs", "abfs", "abfss", "file")
"""Storages that pyarrow reaches."""
S3_OPTIONS = ("endpoint_override", "region", "scheme")
"""What may follow an `s3://` address, behind a `?`."""


def files_address(raw: str) -> str:
    """Check `resources.storage`.

    Raises:
        PydanticCustomError: pyarrow reaches no such storage, or the address holds a key.
    """
    if raw.partition("://")[0] not in SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise wrong("must be one of {schemes}, got {got}", schemes=schemes, got=repr(without_secrets(raw)))
    if without_secrets(raw) != raw or (raw.startswith("s3://") and "@" in raw):
        raise wrong(
            "must hold no key, for reports and logs show this file; keys are taken from where the cloud's own tools find them, "
            "such as AWS_ACCESS_KEY_ID or the instance's role"
        )
    parts = _parts(raw)
    if not parts.path.strip("/"):
        raise wrong("must name a folder of its own, as in s3://bucket/sweeps/mine, got {got}", got=repr(raw))
    unknown = [key for key, _ in parse_qsl(parts.query) if parts.scheme == "s3" and key not in S3_OPTIONS]
    if unknown:
        raise wrong("takes the options {known}, got {got}", known=", ".join(S3_OPTIONS), got=", ".join(unknown))
    return raw.rstrip("/")


def _parts(address: str) -> SplitResult:
    """An address by its parts.

    Raises:
        PydanticCustomError: It has none.
    """
    try:
        parts = urlsplit(address)
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise wrong("can't be read as an address, got {got}", got=repr(address)) from error
    if re.search(r"\s", address):
        raise wrong("must hold no blanks, got {got}", got=repr(address))
    return parts
