"""Addresses with secrets in them are never shown, however they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sweeps import write_sweep
from tuner.addresses import files_address, study_address, without_secrets
from tuner.errors import ConfigError
from tuner.sweep_file import load_sweep_file

PASSWORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1)


@given(PASSWORDS)
def test_a_password_is_neither_taken_nor_shown(password: str) -> None:
    for user in ("", "me"):
        address = f"postgresql://{user}:{password}@host:5432/db"

        with pytest.raises(ValueError, match="must hold no password") as caught:
            study_address(address)

        assert without_secrets(address) == f"postgresql://{user}:...@host:5432/db"
        assert address not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://host/db",
        "postgresql://me@host:5432/db",
        "postgresql://me@one:5432,two:5432/db?target_session_attrs=read-write",
        "postgresql:///db?host=/run/postgresql&passfile=/home/me/.pgpass",
        "postgresql://me@[::1]:5432/db?sslmode=verify-full",
    ],
)
def test_addresses_without_a_password_are_taken_as_they_are(address: str) -> None:
    assert study_address(address) == address
    assert without_secrets(address) == address


@pytest.mark.parametrize(
    "override", ["study.storage=postgresql://me:pw@host/db", "postgresql://me:pw@host/db", "a=[://me:pw@b"]
)
def test_a_password_given_on_the_command_line_is_not_shown(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep_file(write_sweep(tmp_path), [override])

    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("address", ["postgresql://me@ho st/db", "postgresql://[me/db", "postgresql://me@host/db?x"])
def test_what_cannot_be_read_as_an_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="got 'postgresql"):
        study_address(address)


@pytest.mark.parametrize("key", ["s3://AK:SK@bucket/x", "s3://bucket/x?secret_key=SK", "s3://bucket/x?access_key=SK"])
def test_a_key_of_a_storage_is_neither_taken_nor_shown(key: str) -> None:
    with pytest.raises(ValueError, match="must hold no key") as caught:
        files_address(key)

    assert "SK" not in str(caught.value) + without_secrets(key)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/x",
        "s3://bucket/a/b?endpoint_override=127.0.0.1:9000&scheme=http&region=eu-west-1",
        "file:///x",
        "gs://b/x",
    ],
)
def test_storages_without_a_key_are_taken_as_they_are(address: str) -> None:
    assert files_address(address) == address
