"""This process and others: who they are, whether they are gone, fork hooks, signals, spawning."""

from __future__ import annotations

import atexit
import contextlib
import getpass
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

_log = logging.getLogger(__name__)

Hook = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """What tells one process from every other one that ever ran on this machine.

    Attributes:
        pid: the process id, as its own pid namespace counts.
        started: start time in clock ticks since boot; 0 where the system does not tell.
        boot_id: the kernel's id of this boot; empty where the system does not tell.
        namespace: inode of the pid namespace; 0 where there are none.
    """

    pid: int
    started: int
    boot_id: str
    namespace: int


def own_identity() -> ProcessIdentity:
    """Say who this process is."""
    pid = os.getpid()
    return ProcessIdentity(
        pid=pid, started=_start_ticks(pid) or 0, boot_id=_boot_id(), namespace=_pid_namespace()
    )


def is_gone(identity: ProcessIdentity, own: ProcessIdentity) -> bool:
    """Say whether *identity* has certainly ended; doubt counts as alive.

    Args:
        identity: the process in question.
        own: the caller, from :func:`own_identity`.

    Example:
        >>> is_gone(own_identity(), own_identity())
        False
    """
    if identity.boot_id != own.boot_id:
        return bool(identity.boot_id and own.boot_id)
    if identity.namespace != own.namespace:
        return False
    if not _pid_exists(identity.pid):
        return True
    started = _start_ticks(identity.pid)
    return started is not None and identity.started > 0 and started != identity.started


def _pid_exists(pid: int) -> bool:
    if pid <= 0:
        return True  # kill() gives these a meaning of its own, and they prove nothing
    if sys.platform == "win32":
        return True  # there, os.kill(pid, 0) ends the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _start_ticks(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name may hold spaces and brackets, so fields are counted from the last bracket.
    fields = text[text.rfind(b")") + 1 :].split()
    return int(fields[19]) if len(fields) > 19 else None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class _ForkHooks(NamedTuple):
    """The weak bound methods of one owner."""

    owner: weakref.ref[object]
    before: weakref.WeakMethod[Hook] | None
    after_in_parent: weakref.WeakMethod[Hook] | None
    after_in_child: weakref.WeakMethod[Hook] | None


_hooks: dict[int, _ForkHooks] = {}
_fork_lock = threading.RLock()


def no_fork() -> AbstractContextManager[object]:
    """Keep other threads from forking for a moment, so a descriptor and its fork hook appear together.

    Inside, take no other lock and wait for nothing.
    """
    return _fork_lock


def on_fork(
    owner: object,
    *,
    before: Hook | None = None,
    after_in_parent: Hook | None = None,
    after_in_child: Hook | None = None,
) -> None:
    """Call bound methods of *owner* around every ``os.fork`` for as long as *owner* lives.

    Only weak references are kept. ``before`` runs newest owner first, the others oldest first. A hook that
    raises is logged and the rest still run. A second call for one owner replaces the first. Forks made
    by C code that bypasses Python are not seen.

    Args:
        owner: the object the methods belong to; it must allow weak references.
        before: bound method called in the parent before the fork.
        after_in_parent: bound method called in the parent after the fork.
        after_in_child: bound method called in the child.

    Raises:
        TypeError: a hook is not a bound method.
    """
    # Dead owners are swept here and not by weakref callbacks: those may run in the middle of anything.
    for key, hooks in list(_hooks.items()):
        if hooks.owner() is None:
            _hooks.pop(key, None)
    _hooks[id(owner)] = _ForkHooks(
        weakref.ref(owner), _weak(before), _weak(after_in_parent), _weak(after_in_child)
    )


def forget_on_fork(owner: object) -> None:
    """Call nothing of *owner* at forks any more; unknown owners are fine."""
    hooks = _hooks.get(id(owner))
    if hooks is not None and hooks.owner() is owner:
        _hooks.pop(id(owner), None)


def _weak(hook: Hook | None) -> weakref.WeakMethod[Hook] | None:
    return None if hook is None else weakref.WeakMethod(hook)


def _call(reference: weakref.WeakMethod[Hook] | None) -> None:
    hook = None if reference is None else reference()
    if hook is None:
        return
    try:
        hook()
    except Exception:
        # os.fork goes on whatever we do; the owners after this one must still be told.
        _log.exception("A fork hook failed: %r", hook)


def _before_fork() -> None:
    for hooks in reversed(list(_hooks.values())):
        _call(hooks.before)
    # Last, and given back first: hooks may wait for locks whose holders are about to open a descriptor.
    _fork_lock.acquire()


def _after_fork_in_parent() -> None:
    _fork_lock.release()
    for hooks in list(_hooks.values()):
        _call(hooks.after_in_parent)


def _after_fork_in_child() -> None:
    _fork_lock.release()
    for hooks in list(_hooks.values()):
        _call(hooks.after_in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def stop_signals(callback: Callable[[int], None]) -> AbstractContextManager[None]:
    """Call *callback* with the signal's number on SIGTERM and SIGINT while the context is open.

    The old handlers come back at the end. The callback runs in the main thread between two bytecodes; to
    reach an event loop it must use ``call_soon_threadsafe``. In any other thread nothing is installed,
    because Python allows handlers only in the main one.
    """
    return _stop_signals(callback)


def end_at_late_signals(code: Callable[[], int]) -> None:
    """Let SIGTERM and SIGINT end this process with *code* once the last :func:`stop_signals` is over.

    Whoever was told to stop has stopped by then. Under the old handlers, one more signal would make a process that
    ended as it was asked to look as if it had been killed.
    """
    global _late_code  # noqa: PLW0603 - of the process, like its handlers
    _late_code = code


def _ignore_stop_signals() -> None:
    for number in _StopSignals.NUMBERS:
        signal.signal(number, signal.SIG_IGN)


_late_code: Callable[[], int] | None = None


class _StopSignals:
    """Our handlers for SIGTERM and SIGINT while they are installed; forked children get the old ones back.

    A signal that reaches a child before Python has set itself up there is dropped, and the parent that sent it
    (a ``multiprocessing.Pool`` that ends its workers) waits for ever. So both signals are held back over the
    fork, and let in once the child has its old handlers again.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, callback: Callable[[int], None]) -> None:
        self._callback = callback
        self._old: dict[int, Any] = {}

    def install(self) -> None:
        """Put our handlers in place."""
        self._old = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
        if hasattr(signal, "pthread_sigmask"):
            on_fork(
                self, before=self._hold_back, after_in_parent=self._let_in, after_in_child=self._give_up_in_child
            )

    def leave(self) -> None:
        """Put the old handlers back, or leave ours for the rest of the process where that was asked for."""
        code = _late_code
        if code is None:
            self.restore()
            return
        self._callback = lambda _: exit_now(code())
        atexit.register(_ignore_stop_signals)  # Python takes its own handlers away at the very end

    def restore(self) -> None:
        """Put the old handlers back."""
        forget_on_fork(self)
        for number, handler in self._old.items():
            # None: the old handler was set by C code and cannot be put back from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._callback(number)

    def _hold_back(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self.NUMBERS)

    def _let_in(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.NUMBERS)

    def _give_up_in_child(self) -> None:
        self.restore()
        self._let_in()


@contextlib.contextmanager
def _stop_signals(callback: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        _log.debug("Not in the main thread: SIGTERM and SIGINT keep their handlers.")
        yield
        return
    signals = _StopSignals(callback)
    signals.install()
    try:
        yield
    finally:
        signals.leave()


def stop_own_process() -> None:
    """Send this process SIGTERM, as a service manager would; it reaches the main thread even while that waits."""
    os.kill(os.getpid(), signal.SIGTERM)


def host_name() -> str:
    """The name of this machine, for people; it identifies nothing."""
    return socket.gethostname()


def exit_now(code: int) -> NoReturn:
    """End this process at once, without any clean-up; the kernel frees its locks."""
    os._exit(code)


def flush_outputs() -> None:
    """Write out what is buffered for standard output and standard error; outputs that are gone are left alone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def account_name() -> str:
    """Who runs this process and where, for people, such as ``ada@host``; it proves nothing."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name, as in many containers
        account = f"uid {os.getuid()}" if hasattr(os, "getuid") else "somebody"
    return f"{account}@{host_name()}"


def running(module: str, *words: str) -> list[str]:
    """Arguments that let a fresh Python run *module* as ``-m`` does, with the import path of this process.

    ``PYTHONPATH`` is inherited anyhow; what a program has changed in ``sys.path`` is not.

    Example:
        >>> spawn_python(running("this"), stdout=subprocess.DEVNULL).wait()
        0
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    start = f"import runpy, sys; sys.path[:] = {path!r}; runpy.run_module({module!r}, None, '__main__', True)"
    return ["-c", start, *words]


def spawn_python(args: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
    """Start a fresh Python of the same interpreter; it inherits no descriptor but those asked for.

    Args:
        args: what follows the interpreter, such as those of :func:`running`.
        popen: further options of :class:`subprocess.Popen`.

    Raises:
        ValueError: ``preexec_fn`` is given; it would run our code in a forked child.

    Example:
        >>> spawn_python(["-c", "pass"]).wait()
        0
    """
    if popen.get("preexec_fn") is not None:
        raise ValueError("preexec_fn runs Python in a forked child; pass start_new_session or process_group")
    process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, *args], **{"close_fds": True, **popen}
    )
    return process
