"""An app whose jobs run in processes of their own. A child imports it again, so its store comes from the environment.

Handlers and tests talk by files in one folder: ``say`` makes one, ``heard`` waits for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

from treadle import Abort, JobContext, Retry, RetryAfter, Snooze, Treadle, current_job
from treadle.errors import LeaseLost, StoreLost
from treadle.model.codec import JsonCodec

STORE, FOLDER, AT_IMPORT = "TREADLE_TEST_STORE", "TREADLE_TEST_FOLDER", "TREADLE_TEST_AT_IMPORT"
LOOKS = 12_000
FAMILY = """
import os, signal, subprocess, sys
son = subprocess.Popen(["sleep", "3600"])
reader, writer = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(writer, str(os.getpid()).encode())
        while True:
            signal.pause()
    os._exit(0)
os.wait()
with open(sys.argv[1] + ".new", "w") as out:
    out.write(f"{son.pid} {os.read(reader, 20).decode()}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    signal.pause()
"""
SLEEPER = "import time\nwhile True: time.sleep(1)"
CAP = 200_000_000
TENANT = ContextVar("tenant", default="nobody")


class Mismatch(Exception):
    """An error with a rule of its own."""


class Unnamed:
    """The name of a module that cannot be had."""

    def __str__(self) -> str:
        raise ZeroDivisionError


Untellable: Any = type("Untellable", (Exception,), {"__module__": Unnamed()})


class Trap(JsonCodec):
    """A codec that would end the program at some values."""

    name = "trap"

    def encode(self, value: object) -> bytes:
        if value == "trap":
            raise SystemExit(7)
        return super().encode(value)

    def decode(self, data: bytes, type_: object) -> object:
        if b"pit" in data:
            raise KeyboardInterrupt
        return super().decode(data, type_)


# Signals by files ----------------------------------------------------------------------------------------------------


def place(name: str) -> Path:
    """Where a signal lies."""
    return Path(os.environ[FOLDER]) / name


def say(name: str, text: object = "") -> None:
    """Give a signal, with a text; it appears whole or not at all."""
    new = place(f".{name}-{os.getpid()}")
    new.write_text(str(text))
    new.rename(place(name))


def heard(name: str) -> str:
    """Wait for a signal and return its text."""
    quiet = select.poll()
    for _ in range(LOOKS):
        if place(name).exists():
            return place(name).read_text()
        quiet.poll(5)
    raise AssertionError(f"nobody said {name!r}")


# What handlers do ----------------------------------------------------------------------------------------------------

Deed = Callable[[JobContext, Any], Any]
DEEDS: dict[str, Deed] = {}


def deed(function: Deed) -> Deed:
    """Something that a test can ask a job to do."""
    DEEDS[function.__name__] = function
    return function


@deed
def give(_: JobContext, value: Any) -> Any:
    return value


@deed
def pid(_: JobContext, value: Any) -> int:
    return os.getpid()


@deed
def fail(_: JobContext, value: Any) -> Any:
    errors: dict[str, Any] = {
        "value": ValueError("no such page"), "exit": SystemExit(3), "interrupt": KeyboardInterrupt(),
        "memory": MemoryError("made up"), "cancelled": asyncio.CancelledError(), "mismatch": Mismatch("one flipped"),
        "snooze": Snooze(3600), "endless": Snooze(timedelta.max), "nonsense": Snooze("soon"),  # type: ignore[arg-type]
        "again": RetryAfter(3600, "busy"), "abort": Abort("gone"), "surrogate": ValueError("\ud800\0"),
        "untellable": Untellable(),
    }  # fmt: skip
    if value == "recursion":
        return [*fail(_, value), fail(_, value)]
    raise errors[value]


@deed
def hand_back(_: JobContext, value: Any) -> Any:
    found = {"snooze": Snooze(3600), "abort": Abort("gone"), "again": RetryAfter(60), "nan": Snooze(float("nan"))}
    return found[value]


@deed
def die(_: JobContext, value: Any) -> None:
    """End this process: by a signal, or with an exit code."""
    if isinstance(value, str):
        os.kill(os.getpid(), signal.Signals[value])
        while True:
            signal.pause()
    os._exit(value)


@deed
def wait(job: JobContext, value: Any) -> str:
    """Say that it begins, and wait until the test lets it go or asks it to stop."""
    say(f"{value} begun", os.getpid())
    while not place(f"{value} go").exists():
        if job.cancelled:
            say(f"{value} stopped")
            return "stopped"
        select.poll().poll(5)
    return "went on"


@deed
def ignore(job: JobContext, value: Any) -> str:
    """The same, but nothing stops it."""
    say(f"{value} begun", os.getpid())
    heard(f"{value} go")
    return "went on"


@deed
def grind(_: JobContext, value: Any) -> int:
    """Never come back from C code, with the interpreter locked."""
    say(f"{value} begun", os.getpid())
    return sum(range(10**15))


@deed
def tarry(_: JobContext, value: Any) -> str:
    """Take longer than the timeout of "brief", and end by itself all the same."""
    time.sleep(value)
    return "late"


@deed
def give_up(job: JobContext, value: Any) -> None:
    """Raise once asked to stop."""
    say(f"{value} begun", os.getpid())
    while not job.cancelled:
        select.poll().poll(5)
    raise ValueError("not finished")


TICKER = """
import os, sys, time
out = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
while True:
    os.write(out, b"%d\\n" % time.monotonic_ns())
    time.sleep(0.001)
"""


@deed
def tick(job: JobContext, value: Any) -> int:
    """The first attempt goes on for ever, with two programs, and all write down when they live; the next one returns.

    What comes back is the moment at which that began.
    """
    if job.attempt > 1:
        return time.monotonic_ns()
    for number in range(2):
        told = str(place(f"ticks {number}"))
        subprocess.Popen([sys.executable, "-c", TICKER, told], start_new_session=bool(number))
        while not place(f"ticks {number}").exists():
            time.sleep(0.001)
    say(f"{value} begun", os.getpid())
    with place("ticks 2").open("a") as out:
        while True:
            print(time.monotonic_ns(), file=out, flush=True)
            time.sleep(0.001)


@deed
def freeze(_: JobContext, value: Any) -> None:
    """Stop this whole process, as a debugger would."""
    os.kill(os.getpid(), signal.SIGSTOP)
    heard(f"{value} go")


@deed
def employ(job: JobContext, value: Any) -> Any:
    """Start a program by the job's own means, which starts another one and a daemon, and wait for it."""
    if job.attempt > 1:
        return [pid for pid in map(int, place(f"{value} begun").read_text().split()) if alive(pid)]
    program = job.popen([sys.executable, "-c", FAMILY, str(place(f"{value} family"))])
    say(f"{value} begun", f"{program.pid} {heard(f'{value} family')}")
    return program.wait() if value != "left" else None


def alive(pid: int) -> bool:
    """True while a process can still do anything; one that has ended, or is about to without its memory, cannot."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
    except OSError:
        return False


@deed
def leave_behind(job: JobContext, value: Any) -> dict[str, int]:
    """Start programs and return, or wait, without looking after them."""
    found = {"program": subprocess.Popen([sys.executable, "-c", SLEEPER]).pid}
    found["session"] = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True).pid
    found["daemon"] = daemon()
    if value is not None:
        say(f"{value} begun", " ".join(map(str, (os.getpid(), *found.values()))))
        heard(f"{value} go")
    return found


def daemon() -> int:
    """Start a program the old way: forked twice, in a session of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        grandchild = os.fork()
        if grandchild:
            os.write(writer, str(grandchild).encode())
            os._exit(0)
        os.execv(sys.executable, [sys.executable, "-c", SLEEPER])
    os.waitpid(child, 0)
    os.close(writer)
    return int(os.read(reader, 100))


@deed
def hoard(_: JobContext, value: Any) -> int:
    """Allocate until there is no more: in large pieces or in small ones."""
    kept: list[Any] = []
    while True:
        kept.append(bytearray(1_000_000) if value == "large" else [object()])


@deed
def allocate(_: JobContext, value: Any) -> int:
    return len(bytearray(value))


@deed
def grow(_: JobContext, value: Any) -> str:
    return "x" * int(value)


@deed
def hoard_elsewhere(_: JobContext, value: Any) -> int:
    """Let two programs have more together than one may have."""
    code = f"held = bytearray({CAP * 6 // 10}); import time; time.sleep(600)"
    for one in [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]:
        one.wait()
    return 0


@deed
def close_outputs(_: JobContext, value: Any) -> str:
    """Be as rude to standard output as can be."""
    print("before", flush=True)
    if value == "descriptors":
        print("never seen", end="")
        os.close(1)
        os.close(2)
    elif value == "files":
        sys.stdout.close()
    else:
        sys.stdout = None  # type: ignore[assignment]
    return "done"


@deed
def talk(_: JobContext, value: Any) -> None:
    """Say something in every way there is."""
    logging.getLogger("shop").warning("logged")
    print("printed")
    print("complained", file=sys.stderr)
    os.write(1, b"raw \xff\xfe bytes\n")
    subprocess.run(["/bin/sh", "-c", "echo by a program"], check=True)
    current_job().log("told", logging.ERROR)
    thread = threading.Thread(target=lambda: logging.getLogger("shop").error("from a thread"))
    thread.start()
    thread.join()
    print("without an end", end="")


@deed
def talk_and_die(job: JobContext, value: Any) -> None:
    """Say something, then be killed."""
    talk(job, value)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


@deed
def log_and_wait(job: JobContext, value: Any) -> None:
    job.log("so far")
    say(f"{value} begun")
    heard(f"{value} go")


@deed
def shout(_: JobContext, value: Any) -> None:
    """Print *value* bytes without one line end."""
    for _number in range(value // 10_000):
        os.write(1, b"x" * 10_000)


@deed
def letters(_: JobContext, value: Any) -> None:
    """Print text byte by byte, each once the one before it was read."""
    import fcntl
    import termios

    for byte in (value + "\n").encode():
        os.write(1, bytes([byte]))
        while any(fcntl.ioctl(1, termios.FIONREAD, bytes(4))):
            time.sleep(0.001)


@deed
def chatter(job: JobContext, value: Any) -> None:
    """Report far more progress than anybody stores, then wait."""
    for number in range(value):
        job.progress(number / value, f"step {number}")
    job.progress(1, "the last word")
    heard("chatter go")


@deed
def report(job: JobContext, value: Any) -> None:
    """Report progress once, and wait."""
    job.progress(0.25, value)
    heard(f"{value} go")


@deed
def tenant(_: JobContext, value: Any) -> str:
    """Set a context variable and tell what it was before."""
    before = TENANT.get()
    TENANT.set(value)
    return before


@deed
def leave_a_thread(job: JobContext, value: Any) -> None:
    """Return while a thread goes on, and writes for the job later."""

    def go_on() -> None:
        heard(f"{value} go")
        job.progress(0.5, "by a stray thread")
        job.log("by a stray thread")
        try:
            job.checkpoint("by a stray thread")
        except LeaseLost as error:
            say(f"{value} refused", type(error).__name__)

    threading.Thread(target=go_on, daemon=True).start()


@deed
def last_checkpoint(job: JobContext, value: Any) -> Any:
    return job.last_checkpoint()


@deed
def lines(job: JobContext, value: Any) -> None:
    """Log and print so many lines each."""
    for number in range(value):
        job.log(f"log {number} {'.' * 90}")
        print(f"print {number} {'.' * 90}")


@deed
def remember(job: JobContext, value: Any) -> Any:
    """Checkpoint in the first attempt, which fails; the second one tells what it found."""
    if job.failures == 0:
        job.checkpoint({"at": value})
        raise ValueError("not yet")
    return [job.attempt, job.failures, job.crashes, job.queue, job.idempotency_key, job.last_checkpoint()]


@deed
def follow(job: JobContext, value: Any) -> None:
    job.on_success(TASKS["act"].job("give", value), TASKS["act"].using(queue="slow", tags=["late"]).job("give", value))


@deed
def enqueue(_: JobContext, value: Any) -> int:
    number: int = TASKS["act"].enqueue("give", value).id
    return number


@deed
def stop_worker(job: JobContext, value: Any) -> str:
    job.stop_worker("leaks")
    return "stopped it"


@deed
def burn(_: JobContext, value: Any) -> int:
    """Use processor time, and memory on top of what the process has."""
    held = bytearray(value)
    held[::4096] = b"x" * len(held[::4096])
    return sum(range(3_000_000)) + len(held)


@deed
def complete(job: JobContext, value: Any) -> str:
    """Commit a row with the success, then end in another way."""
    job.log("before")
    with job.transaction() as tx:
        tx.execute("INSERT INTO effects (job, pid) VALUES (?, ?)", (job.id, os.getpid()))
        tx.succeed("completed")
        job.log("inside")
    job.log("after")
    if value == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if value == "raise":
        raise ValueError("too late")
    return "ignored"


# The app -------------------------------------------------------------------------------------------------------------

TASKS: dict[str, Any] = {}


def build(url: str | None = None) -> Treadle:
    """The app; *url* is by default that of the environment."""
    made = Treadle(url or os.environ.get(STORE, "memory://"), codecs=[Trap()])

    def act(job: JobContext, what: str, value: object = None) -> object:
        return DEEDS[what](job, value)

    async def aact(job: JobContext, what: str, value: object = None) -> object:
        """Deeds that wait are done as a coroutine would."""
        if what == "complete":
            async with job.transaction() as tx:
                await tx.execute("INSERT INTO effects (job, pid) VALUES (?, ?)", (job.id, os.getpid()))
                tx.succeed("completed")
            raise ValueError("too late")
        if what not in ("wait", "swallow"):
            return DEEDS[what](job, value)
        say(f"{value} begun", os.getpid())
        while not place(f"{value} go").exists():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                say(f"{value} stopped")
                if what == "wait":
                    raise
        return "went on"

    rules = Retry(0, never=(Mismatch,))
    policies: dict[str, dict[str, Any]] = {
        "act": {"isolation": "process", "retry": 0},
        "impatient": {"isolation": "process", "retry": 0, "grace": 0},
        "ruled": {"isolation": "process", "retry": Retry(5, never=(Mismatch,), immediately={ValueError: 1}, backoff=0)},
        "remembering": {"isolation": "process", "retry": Retry(1, backoff=0)},
        "capped": {"isolation": "process", "retry": 0, "memory": CAP},
        "brief": {"isolation": "process", "retry": 0, "timeout": 0.4},
        "fragile": {"isolation": "process", "retry": 0, "crashes": 1},
        "careful": {"isolation": "process", "retry": 0, "on_crash": "hold"},
        "twice": {"retry": 0, "crashes": 2},
        "thread": {"retry": 0},
        "trapped": {"isolation": "process", "retry": 0, "codec": "trap"},
        "trapped_thread": {"retry": 0, "codec": "trap"},
    }
    for name, policy in policies.items():
        TASKS[name] = made.task(name=name, **policy)(act)
    TASKS["aact"] = made.task(name="aact", isolation="process", retry=rules)(aact)
    TASKS["loop"] = made.task(name="loop", retry=0)(aact)
    TASKS["trapped_loop"] = made.task(name="trapped_loop", retry=0, codec="trap")(aact)
    return made


def at_import(what: str) -> None:
    """What happens in a child while it imports this module."""
    if what == "fail":
        raise ImportError("the shop is closed")
    if what == "hang":
        say("importing", os.getpid())
        heard("import go")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        sys.exit(4)


with contextlib.suppress(KeyError):
    at_import(os.environ[AT_IMPORT])
app = build()


def main(name: str, concurrency: str = "10") -> None:
    """Work until a signal: ``python -m worker.isolated NAME [CONCURRENCY]``; exit code 70 when the store is lost."""
    logging.basicConfig(level=logging.INFO)
    try:
        app.worker(name=name, concurrency=int(concurrency)).run()
    except StoreLost as error:
        print(f"StoreLost: {error}", file=sys.stderr, flush=True)
        sys.exit(70)
    app.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
