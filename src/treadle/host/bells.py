"""Doorbells: one FIFO per worker, beside the database, so nobody has to poll for new work.

A bell carries no truth. Whoever misses one finds the work at the next slow poll.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle.clock import SystemClock
from treadle.errors import NotSupportedHere
from treadle.host.files import FileIdentity, identity_of, remove_quietly, share_like_folder
from treadle.host.process import forget_on_fork, no_fork, on_fork

PREFIX: Final = "bell-"
"""How the names of bells begin; ringers look for nothing else."""

_CAPACITY: Final = 1 << 16
# Folder times are as coarse as the kernel's tick (4 ms, 10 ms at worst): two changes within one tick look
# like one, so a listing made this soon after a change is not trusted the next time.
_UNSETTLED_NS: Final = 50_000_000


class Bell:
    """The receiving end: a FIFO that lives as long as this object.

    It is opened for reading and writing, so it never reports end of file when the last ringer leaves. A
    forked child closes its copy and leaves the file alone.

    Args:
        path: where to put it; the name must begin with ``bell-`` for ringers to find it. A leftover
            of an earlier worker is replaced. Mode 0600; in a side folder the folder's access.

    Raises:
        NotSupportedHere: this system has no FIFOs.
        OSError: the file cannot be created.

    Example:
        >>> bell = Bell(Path("/tmp/bell-1"))  # doctest: +SKIP
        >>> bell.wait(1.0)  # doctest: +SKIP
        b'r'
    """

    def __init__(self, path: Path) -> None:
        if sys.platform == "win32" or not hasattr(os, "mkfifo"):
            raise NotSupportedHere(f"{sys.platform} has no FIFOs; workers there find new work by polling.")
        self._path = path
        with no_fork():
            self._descriptor: int | None = _create(path)
            on_fork(self, after_in_child=self._drop)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor, for event loops; readable when rung.

        Raises:
            ValueError: the bell is closed.
        """
        if self._descriptor is None:
            raise ValueError(f"the bell {self._path} is closed")
        return self._descriptor

    def drain(self) -> bytes:
        """Take all tokens rung so far, in order; empty when nobody rang. Never waits.

        Raises:
            ValueError: the bell is closed.
        """
        try:
            return os.read(self.fileno(), _CAPACITY)
        except BlockingIOError:
            return b""

    def wait(self, timeout: float | None) -> bytes:
        """Wait for a ring and take all tokens.

        Args:
            timeout: seconds to wait at most; None waits without limit.

        Returns:
            The tokens, or nothing when the time is up.

        Raises:
            ValueError: the bell is closed.
        """
        self.fileno()
        ready = self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        return self.drain() if ready else b""

    def close(self) -> None:
        """Close, and remove the file unless another bell has taken its name; a second call does nothing."""
        forget_on_fork(self)
        if self._descriptor is None:
            return
        status = os.fstat(self._descriptor)
        if identity_of(self._path) == FileIdentity(status.st_dev, status.st_ino):
            remove_quietly(self._path)
        self._drop()

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._drop()


def _create(path: Path) -> int:
    # Opened before it gets its name: a ringer that met it without a reader would strike it off its list.
    new = path.with_name(f".new-{path.name}-{os.getpid()}")
    remove_quietly(new)
    try:
        os.mkfifo(new, 0o600)
        os.chmod(new, 0o600)
        share_like_folder(new)
        descriptor = os.open(new, os.O_RDWR | os.O_NONBLOCK)
        os.rename(new, path)
    except BaseException:
        remove_quietly(new)
        raise
    return descriptor


class Ringer:
    """The sending end: rings every bell of a folder. Any thread may use it.

    Write descriptors are kept, and the folder is listed again only when its modification time changed, so
    a ring costs one ``stat`` and one ``write`` per bell.

    Args:
        folder: where the bells are; it may be missing.

    Example:
        >>> Ringer(Path("/tmp/no-such-folder")).ring()
        0
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._bells: dict[str, tuple[FileIdentity, int]] = {}
        self._listed: int | None = None
        self._closed = False
        on_fork(self, after_in_child=self._start_anew)

    def ring(self, token: bytes = b"r") -> int:
        """Put *token* into every bell that somebody listens to.

        Args:
            token: a few bytes, less than 4096, which arrive in one piece.

        Returns:
            How many bells were reached. A full bell counts: it was rung and not yet answered.

        Raises:
            ValueError: the ringer is closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the ringer is closed")
            try:
                changed = os.stat(self._folder).st_mtime_ns
            except (FileNotFoundError, NotADirectoryError):
                self._forget_all()
                return 0
            if changed != self._listed:
                self._list_again(changed)
            if not self._bells:
                return 0
            # Some programs restore SIGPIPE's default; a bell without a listener must not kill them.
            if signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:
                return self._write_all(token)
            with _block_sigpipe():
                return self._write_all(token)

    def close(self) -> None:
        """Close all descriptors; a second call does nothing."""
        forget_on_fork(self)
        with self._lock:
            self._closed = True
            self._forget_all()

    def _write_all(self, token: bytes) -> int:
        """Ring every known bell and strike off those nobody listens to any more."""
        silent: list[str] = []
        for name, (_, bell) in self._bells.items():
            try:
                os.write(bell, token)
            except BlockingIOError:
                continue  # full: rung long ago
            except BrokenPipeError:
                silent.append(name)
        for name in silent:
            os.close(self._bells.pop(name)[1])
        return len(self._bells)

    def _list_again(self, changed: int) -> None:
        """Open the bells that are new, close those that went."""
        try:
            names = {name for name in os.listdir(self._folder) if name.startswith(PREFIX)}
        except FileNotFoundError:
            names = set()
        for name in [name for name in self._bells if name not in names]:
            os.close(self._bells.pop(name)[1])
        for name in names:
            self._look_at(name)
        settled = abs(self._clock.now() * 1000 - changed) > _UNSETTLED_NS
        self._listed = changed if settled else None

    def _look_at(self, name: str) -> None:
        """Keep, replace or open one bell."""
        path = Path(self._folder, name)
        known = self._bells.get(name)
        if known is not None and identity_of(path) == known[0]:
            return
        if known is not None:
            os.close(self._bells.pop(name)[1])
        # ENXIO: nobody listens. A file that went meanwhile, or that we may not open, is not ours to ring.
        with contextlib.suppress(OSError):
            bell = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            status = os.fstat(bell)
            self._bells[name] = FileIdentity(status.st_dev, status.st_ino), bell

    def _forget_all(self) -> None:
        bells, self._bells, self._listed = self._bells, {}, None
        for _, bell in bells.values():
            os.close(bell)

    def _start_anew(self) -> None:
        # The lock may have been held by a thread that does not exist in the child.
        self._lock = threading.Lock()
        self._forget_all()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._forget_all()


@contextlib.contextmanager
def _block_sigpipe() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in old:
            # A failed write sends the signal to this thread; taken here, it is not delivered below.
            signal.sigtimedwait({signal.SIGPIPE}, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
