"""An address at which no cluster can be joined is told at once, and in our words."""

from __future__ import annotations

import pytest

from tests.clusters import free_ports
from tuner.backends import build_backend
from tuner.backends.ray_connection import join_cluster
from tuner.errors import ClusterError


def test_an_address_where_nobody_answers_is_told() -> None:
    with pytest.raises(ClusterError, match="no Ray cluster answers at 127"):
        join_cluster(f"127.0.0.1:{free_ports(1)[0]}")


def test_the_address_in_the_environment_counts_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")

    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        join_cluster(None)


@pytest.mark.parametrize("address", ["nowhere", "host:port"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ClusterError, match="must be auto or host:port"):
        join_cluster(address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001"])
def test_an_address_for_jobs_leads_to_submit(address: str) -> None:
    with pytest.raises(ClusterError, match="tuner submit"):
        join_cluster(address)


def test_a_cluster_is_no_place_for_the_local_backend() -> None:
    with pytest.raises(ClusterError, match=r"resources\.backend is local"):
        build_backend("local", address="auto")
