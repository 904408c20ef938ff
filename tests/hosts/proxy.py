"""A proxy that cuts connections at random bytes, as networks and load balancers do."""

from __future__ import annotations

import random
import selectors
import socket
import threading
from types import TracebackType
from typing import Final

CHUNK: Final = 4096


class CuttingProxy:
    """Listens on the loopback and passes bytes to a server, until a connection's luck has run out.

    Args:
        target: the server's port.
        mean: bytes after which a connection is cut, on average.
        seed: makes the cuts repeatable.
    """

    def __init__(self, target: int, mean: float, seed: int) -> None:
        self._target = target
        self._mean = mean
        self._random = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.cut = 0
        """How many connections were cut so far."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._listening.close()
        self._thread.join(10)

    def become_reliable(self) -> None:
        """Cut nothing more."""
        self._mean = float("inf")

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        target = ("127.0.0.1", self._target)
        with client, socket.create_connection(target) as server, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            left = self._random.expovariate(1 / self._mean) if self._mean < float("inf") else float("inf")
            try:
                while not self._stop.is_set() and left > 0:
                    left = self._once(ready, left)
            except OSError:
                return
            self.cut += left == 0

    def _once(self, ready: selectors.BaseSelector, left: float) -> float:
        """Pass on what has come; how many bytes are left, -1 when one side has closed."""
        for key, _ in ready.select(0.2):
            source = key.fileobj
            assert isinstance(source, socket.socket)
            data = source.recv(CHUNK)
            if not data:
                return -1
            passed = data[: int(min(left, len(data)))]
            key.data.sendall(passed)
            left -= len(passed)
            if len(passed) < len(data):
                return 0
        return left
