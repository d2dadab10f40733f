"""Stores for tests: an S3 server on loopback, the memory store of fsspec, and a store that fails on request."""

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


class BrokenStore(MemoryFileSystem):
    """A store in memory whose calls fail while ``failing`` holds their names, also halfway."""

    protocol = "broken"
    store: dict[str, Any] = {}  # noqa: RUF012 - shared by all instances, as in the base class
    pseudo_dirs = [""]  # noqa: RUF012
    failing: set[str] = set()  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("broken://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if "pipe_file" in self.failing:
            raise RuntimeError("the connection was lost")
        super().pipe_file(path, value, mode, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        if "cat_file" in self.failing:
            raise RuntimeError("the connection was lost")
        content: bytes = super().cat_file(path, *args, **kwargs)
        return content

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if "info" in self.failing:
            raise PermissionError("Forbidden")
        information: dict[str, Any] = super().info(path, **kwargs)
        return information


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """A server that speaks the protocol of S3, at the endpoint that the environment names; for processes too."""
    from moto.server import ThreadedMotoServer  # takes a second to import

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield server
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3(s3_server: Any) -> str:
    """URL of a new bucket."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of a folder in the memory store, which is empty after the test."""
    yield "memory://tests"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def broken() -> Iterator[str]:
    """URL of a folder in a store that fails as ``BrokenStore.failing`` says."""
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    BrokenStore.failing.clear()
    yield "broken:///tests"
    BrokenStore.failing.clear()
    BrokenStore.store.clear()


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> str:
    """URL of an empty folder, once in each store."""
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket whose server does not answer."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield "s3://bucket"
    S3FileSystem.clear_instance_cache()
