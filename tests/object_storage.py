"""An S3 of its own for tests: moto's server in this process, a bucket, keys in the environment."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

SECRET = f"key-{secrets.token_hex(8)}"
_FOLDERS = itertools.count()


class Bucket:
    """A bucket that can be away for a while; what is in it stays."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.endpoint = "http://{}:{}".format(*self._server.get_host_and_port())

    def make(self) -> None:
        boto3.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket="tuner-tests")

    def folder(self) -> str:
        """An address that no other test has."""
        return f"s3://tuner-tests/sweeps/{next(_FOLDERS)}"

    def objects(self, address: str) -> dict[str, bytes]:
        """All that is in a folder."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        found = boto3.resource("s3", endpoint_url=self.endpoint).Bucket(bucket).objects.filter(Prefix=f"{prefix}/")
        return {one.key.removeprefix(f"{prefix}/"): one.get()["Body"].read() for one in found}

    def go_away(self) -> None:
        self._port = self._server.get_host_and_port()[1]
        self._server.stop()

    def come_back(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """A bucket whose keys and endpoint this process has in its environment."""
    served = Bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL", served.endpoint)
        served.make()
        yield served
    served.go_away()
