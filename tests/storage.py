"""A real S3 server on this machine, and a way to any server that can be away for a while."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Proxy:
    """Passes bytes on to a server, until it is told to be away."""

    def __init__(self, port: int):
        self._server, self.port = ("127.0.0.1", port), free_port()
        self._open: list[socket.socket] = []
        self.unanswered: list[bytes] = []
        self._mute: socket.socket | None = None
        self.back()

    def lose_answers(self, *requests: bytes) -> None:
        """Let the server take the next request that holds these bytes, and cut it off before it answers."""
        self.unanswered += requests

    def back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def away(self) -> None:
        """Refuse connections and cut those there are."""
        for s in (self._listener, *self._open):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(self._server)
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and source is not self._mute:
                if found := next((request for request in self.unanswered if request in data), None):
                    self.unanswered.remove(found)
                    self._mute = target
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def s3_server(**variables: str) -> Iterator[int]:
    """Run moto's server in a process of its own and yield its port; skip where it is not installed."""
    for package in ("moto", "s3fs", "flask", "flask_cors"):
        pytest.importorskip(package, reason='pip install -e ".[test]" brings an S3 server')
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | variables)
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3_at(port: int) -> Iterator[None]:
    """Let this process, and those it starts, take a port of this machine for S3."""
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        yield
        S3FileSystem.clear_instance_cache()
