"""Joins a Ray cluster, or says at once why it can't. Runs on the driver.

Left to itself, `ray.init` tries for minutes to reach a cluster that is not there, and for 20 seconds one that refuses the
token, and says the same of both (ray 2.60).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket

import grpc
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # not in its stub
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]  # made at run time
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError, RpcError

from tuner.errors import ClusterError

LOCAL = "local"
"""Ray's word for a cluster of one's own; without an address it would join whatever was started last on this machine."""
CONNECT_TIMEOUT_S = 5.0
"""How long the head may take to answer."""
WHERE_RAY_LOOKS = (
    "Ray looks for the token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, and in ~/.ray/auth_token, and "
    "shows none with RAY_AUTH_MODE=disabled"
)


def join_cluster(address: str | None) -> None:
    """Make this process a driver of the cluster at an address, of the one that RAY_ADDRESS names, or of one of its own.

    Args:
        address: `auto` on a node of the cluster, or host:port of its head.

    Raises:
        ClusterError: No cluster answers there, or it refuses the token.
    """
    given = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if given != LOCAL:
        _require_answer(given, _located(given))
    ray.init(address=given, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)


def _located(given: str) -> tuple[str, int]:
    if "://" in given:
        msg = (
            f"--address {given} can't be used by `tuner run`, which must run on the cluster: give auto or host:port there, or "
            "`tuner submit` a job from here"
        )
        raise ClusterError(msg)
    try:
        host, _, port = canonicalize_bootstrap_address_or_die(given).rpartition(":")
        return host.strip("[]"), int(port)
    except ConnectionError as error:
        msg = (
            f"no Ray cluster runs on this machine (address {given}); start one, or leave --address and RAY_ADDRESS out"
        )
        raise ClusterError(msg) from error
    except ValueError as error:
        raise ClusterError(f"a cluster's address must be auto or host:port, got {given}") from error


def _require_answer(given: str, located: tuple[str, int]) -> None:
    """Ask the head's GCS who it is: it knows the token."""
    host, port = located
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does, later
        GcsClient(address=f"{host}:{port}").check_alive([], timeout=CONNECT_TIMEOUT_S)
        _require_same_authentication(given, f"{host}:{port}")
    except OSError as error:
        msg = f"no Ray cluster answers at {given} ({host}:{port}: {error.strerror or 'timed out'})"
        raise ClusterError(msg) from error
    except AuthenticationError as error:
        msg = f"the Ray cluster at {given} refuses the token that it was given, or was given none. {WHERE_RAY_LOOKS}"
        raise ClusterError(msg) from error
    except RpcError as error:
        raise ClusterError(f"what answers at {given} is no Ray cluster that this Ray understands ({error})") from error


def _require_same_authentication(given: str, located: str) -> None:
    """A head without tokens lets a driver with one in; then the driver refuses the head, and no worker ever starts (ray 2.60)."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return
    with grpc.insecure_channel(located) as channel, contextlib.suppress(grpc.RpcError):
        gcs = NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        gcs.CheckAlive(CheckAliveRequest(), timeout=CONNECT_TIMEOUT_S)
        msg = (
            f"the Ray cluster at {given} asks for no token, and here one is shown: no worker would start. "
            f"Set RAY_AUTH_MODE=disabled. {WHERE_RAY_LOOKS}"
        )
        raise ClusterError(msg)
