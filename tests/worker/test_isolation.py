"""Attempts in processes of their own: what they come to, what their deaths cost, and that nothing outlives them."""

from __future__ import annotations

import importlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from treadle import AttemptOutcome, JobRecord, JobState, Treadle
from treadle.errors import ConfigurationError, JobFailed, ResultNotStored
from treadle.host.children import Child
from treadle.worker import wire
from worker.isolated import AT_IMPORT, CAP, TASKS, heard, place, say
from worker.kit import PATIENCE, SOURCE, eventually, every_job, states

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
MEGA = 1_000_000


def run(task: str, what: str, value: object = None) -> Any:
    """Let a job do something and return its result."""
    return TASKS[task].enqueue(what, value).result(PATIENCE)


def settled(job: Any) -> JobRecord:
    """The job's record once an attempt of it is over."""
    eventually(lambda: job.record().attempts and job.record().state is not JobState.RUNNING)
    record: JobRecord = job.record()
    return record


def alive(pid: int) -> bool:
    """True while a process can still do anything; one that has ended, or is about to without its memory, cannot."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
    except OSError:
        return False


# What comes back -----------------------------------------------------------------------------------------------------

ENDS: list[tuple[str, str, object, JobState, AttemptOutcome, str | None, str]] = [
    ("act", "give", [1, {"a": None}], JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, None, ""),
    ("aact", "give", "€", JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, None, ""),
    ("act", "fail", "value", JobState.FAILED, AttemptOutcome.FAILED, "ValueError", "no such page"),
    ("aact", "fail", "value", JobState.FAILED, AttemptOutcome.FAILED, "ValueError", "no such page"),
    ("act", "fail", "exit", JobState.FAILED, AttemptOutcome.FAILED, "SystemExit", "3"),
    ("aact", "fail", "exit", JobState.FAILED, AttemptOutcome.FAILED, "SystemExit", "3"),
    ("act", "fail", "interrupt", JobState.FAILED, AttemptOutcome.FAILED, "KeyboardInterrupt", ""),
    ("aact", "fail", "interrupt", JobState.FAILED, AttemptOutcome.FAILED, "KeyboardInterrupt", ""),
    ("act", "fail", "recursion", JobState.FAILED, AttemptOutcome.FAILED, "RecursionError", "maximum recursion"),
    ("act", "fail", "memory", JobState.FAILED, AttemptOutcome.FAILED, "MemoryError", "made up"),
    ("aact", "fail", "cancelled", JobState.FAILED, AttemptOutcome.FAILED, "asyncio.exceptions.CancelledError", ""),
    ("act", "fail", "surrogate", JobState.FAILED, AttemptOutcome.FAILED, "ValueError", "��"),
    ("act", "fail", "snooze", JobState.SCHEDULED, AttemptOutcome.SNOOZED, None, ""),
    ("aact", "hand_back", "snooze", JobState.SCHEDULED, AttemptOutcome.SNOOZED, None, ""),
    ("act", "fail", "endless", JobState.FAILED, AttemptOutcome.FAILED, "ValueError", "longer than 3650 days"),
    ("act", "fail", "nonsense", JobState.FAILED, AttemptOutcome.FAILED, "TypeError", ""),
    ("act", "hand_back", "nan", JobState.FAILED, AttemptOutcome.FAILED, "ValueError", "NaN"),
    ("ruled", "fail", "again", JobState.SCHEDULED, AttemptOutcome.FAILED, None, "busy"),
    ("ruled", "hand_back", "again", JobState.SCHEDULED, AttemptOutcome.FAILED, None, "the handler asked to retry"),
    ("act", "fail", "abort", JobState.FAILED, AttemptOutcome.ABORTED, None, "aborted: gone"),
    ("aact", "hand_back", "abort", JobState.FAILED, AttemptOutcome.ABORTED, None, "aborted: gone"),
    ("ruled", "fail", "mismatch", JobState.FAILED, AttemptOutcome.FAILED, "worker.isolated.Mismatch", "one flipped"),
]


def test_whatever_an_attempt_comes_to_is_told_by_its_process(shop: Treadle) -> None:
    """Return, every kind of raise, snooze, retry, abort: a child says what the worker itself would have found."""
    with shop.worker(concurrency=1):
        pids = {run("act", "pid")}
        jobs = [TASKS[task].enqueue(what, value) for task, what, value, *_ in ENDS]
        records = [settled(job) for job in jobs]
        pids.add(run("act", "pid"))
    for (task, what, value, state, outcome, kind, words), record in zip(ENDS, records, strict=True):
        (attempt,) = record.attempts
        assert (record.state, attempt.outcome, attempt.error_type) == (state, outcome, kind), (task, what, value)
        assert words in (attempt.message or ""), (task, what, value)
        assert (attempt.traceback is not None) == (kind is not None), (task, what, value)
    failed = records[2].attempts[0].traceback
    assert failed is not None
    assert 'in fail\n    raise errors[value]' in failed
    assert jobs[0].result(0) == [1, {"a": None}]
    assert len(pids) == 1, "none of it cost a process"


def test_retry_rules_go_by_class_across_processes(shop: Treadle) -> None:
    """An immediate retry of an error raised in a child is granted once, counted apart, and the rest is backoff."""
    with shop.worker(concurrency=1):
        job = TASKS["ruled"].enqueue("fail", "value")
        shop.wait([job], PATIENCE)
    record = job.record()
    assert (record.state, record.failures, record.attempt) == (JobState.FAILED, 6, 7)


def test_large_arguments_and_results_pass_through(shop: Treadle) -> None:
    """900 kB go in and out; a result beyond the cap is not stored, and says so."""
    with shop.worker(concurrency=1):
        text = "€" * 300_000
        assert run("act", "give", text) == text
        assert run("aact", "give", text) == text
        job = TASKS["act"].enqueue("allocate", MEGA * 2)
        assert job.result(PATIENCE) == MEGA * 2
        too_large = TASKS["act"].enqueue("grow", MEGA * 2)
        with pytest.raises(ResultNotStored) as caught:
            too_large.result(PATIENCE)
    assert caught.value.size == MEGA * 2 + 2


def test_the_context_works_in_a_child(shop: Treadle) -> None:
    """Checkpoints, counts, the key, and jobs that follow a success: as on the worker itself."""
    with shop.worker(concurrency=1):
        job = TASKS["remembering"].enqueue("remember", {"page": 7})
        found = job.result(PATIENCE)
        assert found[:4] == [2, 1, 0, "default"]
        assert found[4].startswith("treadle-")
        assert found[4].endswith(f"-{job.id}")
        assert found[5] == {"at": {"page": 7}}
        TASKS["act"].enqueue("follow", 5).result(PATIENCE)
        eventually(lambda: states(shop) == ["succeeded"] * 4)
    after = [shop.get(one.id) for one in every_job(shop)[2:]]
    assert [(one.queue, one.tags) for one in after] == [("default", ()), ("slow", ("late",))]


def test_a_child_may_enqueue(shop: Treadle) -> None:
    """A handler's plain enqueue goes into the same store as everybody's."""
    with shop.worker(concurrency=1):
        assert shop.result(run("act", "enqueue", 6), timeout=PATIENCE) == 6


def test_a_child_has_no_private_store(shop: Treadle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job stored in memory:// by a child would be lost with it, so that is refused in words."""
    monkeypatch.setenv("TREADLE_TEST_STORE", "memory://")
    with shop.worker(concurrency=1), pytest.raises(JobFailed, match=r"memory:// .* private to its process"):
        run("act", "enqueue", 6)


def test_a_flood_of_progress_stores_the_last_word(shop: Treadle) -> None:
    """However often a child reports, the worker keeps up and the last report counts."""
    with shop.worker(concurrency=2):
        job = TASKS["act"].enqueue("chatter", 50_000)
        assert run("loop", "give", 1) == 1
        eventually(lambda: (found := job.record().progress) is not None and found.message == "the last word")
        say("chatter go")
        job.result(PATIENCE)
    assert job.record().progress.fraction == 1


def test_notes_of_an_attempt_that_is_over_hurt_no_other(shop: Treadle) -> None:
    """A thread that a handler left behind in its child cannot write for the job that runs there next."""
    with shop.worker(concurrency=2):
        run("act", "leave_a_thread", "stray")
        job = TASKS["act"].enqueue("wait", "next")
        heard("next begun")
        say("stray go")
        assert heard("stray refused") == "LeaseLost"
        # What is reported is written together: with the probe's progress all that came before it.
        probe = TASKS["thread"].enqueue("report", "probe")
        eventually(lambda: probe.record().progress)
        record = job.record()
        say("probe go")
        say("next go")
        assert job.result(PATIENCE) == "went on"
    assert record.progress is None
    assert job.record().progress is None
    assert shop.logs(job) == ()
    with shop.worker(concurrency=1):
        assert run("act", "last_checkpoint") is None


def test_context_variables_of_one_job_are_not_seen_by_the_next_in_its_process(shop: Treadle) -> None:
    """A child is used again and again; what a handler sets there is over with its attempt."""
    with shop.worker(concurrency=1):
        for task in ("act", "aact"):
            assert [run(task, "tenant", name) for name in ("ada", "bob")] == ["nobody", "nobody"]


@pytest.mark.parametrize("task", ["trapped", "trapped_thread", "trapped_loop"])
def test_nothing_that_comes_out_of_code_of_others_costs_a_slot(shop: Treadle, task: str) -> None:
    """Errors that cannot be named, codecs that would end the program at arguments or results: the attempt ends."""
    with shop.worker(concurrency=1):
        jobs = [TASKS[task].enqueue(*deed) for deed in (("fail", "untellable"), ("give", "trap"), ("give", "pit"))]
        assert run(task, "give", "fine") == "fine"
        shop.wait(jobs, PATIENCE)
    assert [job.record().attempts[0].error_type for job in jobs] == ["BaseException", "SystemExit", "KeyboardInterrupt"]
    assert states(shop) == ["failed"] * 3 + ["succeeded"]


# Deaths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "cap", "how", "code", "words"),
    [
        ("act", 3, "SIGKILL", -9, "its process was killed by SIGKILL (9)"),
        ("fragile", 1, "SIGSEGV", -11, "its process was killed by SIGSEGV (11)"),
        ("fragile", 1, 0, 0, "its process exited with code 0 before it said what came of it"),
        ("fragile", 1, 3, 3, "its process exited with code 3 before it said what came of it"),
    ],
)
def test_a_crash_costs_one_attempt_of_one_job(
    shop: Treadle, task: str, cap: int, how: object, code: int, words: str
) -> None:
    """The worker and its other jobs go on; crashes are counted apart from retries, and hold the job at their cap."""
    with shop.worker(concurrency=2) as worker:
        neighbour = TASKS["act"].enqueue("wait", "neighbour")
        heard("neighbour begun")
        job = TASKS[task].enqueue("die", how)
        eventually(lambda: job.record().state is JobState.HELD)
        say("neighbour go")
        assert neighbour.result(PATIENCE) == "went on"
        assert worker.failure is None
    record = job.record()
    assert (record.attempt, record.failures, record.crashes) == (cap, 0, cap)
    often = f"its attempts ended with their process {cap} times; the last time"
    often = often if cap > 1 else "an attempt ended with its process:"
    assert str(record.reason).startswith(f"crash cap: {often} {words}")
    for attempt in record.attempts:
        assert attempt.outcome is AttemptOutcome.CRASHED
        assert (attempt.message or "").startswith(f"crash: {words}")
        assert attempt.usage is not None
        assert attempt.usage.exit_code == code
        assert attempt.usage.peak_rss is not None
    assert neighbour.record().crashes == 0


def test_work_that_must_not_be_repeated_is_held_at_its_first_crash(shop: Treadle) -> None:
    """on_crash="hold": the job is held as "outcome unknown", and runs again only when a person says so."""
    with shop.worker(concurrency=1):
        job = TASKS["careful"].enqueue("die", "SIGKILL")
        eventually(lambda: job.record().state is JobState.HELD)
        record = job.record()
        assert record.attempt == 1
        assert record.reason is not None
        assert record.reason.startswith("outcome unknown: its process was killed by SIGKILL (9)")
        job.retry(arguments={"what": "give", "value": "looked at"})
        assert job.result(PATIENCE) == "looked at"


@pytest.mark.parametrize("task", ["act", "careful"])
def test_a_child_that_dies_while_idle_is_nobodys_crash(shop: Treadle, task: str) -> None:
    """The next job gets another child and is charged with nothing, however soon it comes."""
    with shop.worker(concurrency=1):
        for _ in range(3):
            first = run("act", "pid")
            os.kill(first, signal.SIGKILL)
            job = TASKS[task].enqueue("pid")
            assert job.result(PATIENCE) != first
            assert (job.record().crashes, job.record().attempt) == (0, 1)


def test_a_stopped_child_waits_and_goes_on(shop: Treadle) -> None:
    """SIGSTOP is not the end: its job runs on when the child does."""
    with shop.worker(concurrency=1):
        job = TASKS["act"].enqueue("wait", "job")
        child = int(heard("job begun"))
        os.kill(child, signal.SIGSTOP)
        say("job go")
        assert job.record().state is JobState.RUNNING
        os.kill(child, signal.SIGCONT)
        assert job.result(PATIENCE) == "went on"


@pytest.mark.parametrize(
    ("how", "words"),
    [("fail", "ImportError: the shop is closed"), ("exit", "SystemExit: 4")],
)
def test_an_app_that_cannot_be_imported_holds_the_job(
    shop: Treadle, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    """No handler has begun, so nothing is spent; the reason is the error of the import. Repaired, it runs."""
    with shop.worker(concurrency=1):
        monkeypatch.setenv(AT_IMPORT, how)
        jobs = [TASKS["act"].enqueue("give", number) for number in range(2)]
        eventually(lambda: states(shop) == ["held"] * 2)
        for job in jobs:
            assert job.record().reason == f"its process could not be started: {words}"
            assert (job.record().failures, job.record().crashes) == (0, 0)
        monkeypatch.delenv(AT_IMPORT)
        for number, job in enumerate(jobs):
            job.retry()
            assert job.result(PATIENCE) == number


def test_an_import_that_kills_comes_to_the_crash_cap(shop: Treadle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that dies while it imports the app is tried as often as any crash; careful work is held at once."""
    with shop.worker(concurrency=1):
        monkeypatch.setenv(AT_IMPORT, "die")
        job, careful = TASKS["act"].enqueue("give", 1), TASKS["careful"].enqueue("give", 1)
        eventually(lambda: states(shop) == ["held"] * 2)
    assert (job.record().crashes, job.record().attempt) == (3, 3)
    assert (careful.record().crashes, careful.record().attempt) == (0, 1)
    assert careful.record().reason.startswith("its process could not be started: its process was killed by SIGKILL")


def test_a_child_that_does_not_understand_its_worker_ends(shop: Treadle, tmp_path: Path) -> None:
    """It would never notice that the worker is gone, and never end: as after an upgrade under a running worker."""
    ended = threading.Event()
    child = Child("treadle.worker.child", f"{tmp_path.name}-{os.getpid()}", lambda end: ended.set())
    hello = wire.Hello("worker.isolated:app", "", list(sys.path), str(tmp_path / "children"), 1, "store", 30)
    os.write(child.inward, wire.packed(hello))
    eventually(lambda: select.select([child.outward], [], [], 0)[0])
    assert isinstance(wire.for_parent(os.read(child.outward, 1 << 16)[wire.LENGTH :]), wire.Ready)
    os.write(child.inward, (3).to_bytes(wire.LENGTH, "big") + b"\xc1\xc1\xc1")
    assert ended.wait(PATIENCE)
    assert b"A child process cannot go on." in os.read(child.errors, 1 << 16)
    child.close()


def test_a_process_that_cannot_be_had_fails_the_attempt(shop: Treadle, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses a new process the attempt fails in words, and its slot is free."""
    with shop.worker(concurrency=1):
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        job = TASKS["act"].enqueue("give", 1)
        with pytest.raises(JobFailed):
            job.result(PATIENCE)
        monkeypatch.undo()
        monkeypatch.setenv("TREADLE_TEST_STORE", f"sqlite:///{shop.store.path}")
        assert run("act", "give", 2) == 2
    assert job.record().attempts[0].error_type == "FileNotFoundError"


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", ["large", "small"])
def test_beyond_its_memory_an_attempt_fails(shop: Treadle, pieces: str) -> None:
    """MemoryError in the handler, however it fills its memory; the child lives, and the next job has no cap of it."""
    with shop.worker(concurrency=1):
        child = run("act", "pid")
        job = TASKS["capped"].enqueue("hoard", pieces)
        with pytest.raises(JobFailed):
            job.result(PATIENCE)
        (attempt,) = job.record().attempts
        assert (attempt.outcome, attempt.error_type) == (AttemptOutcome.FAILED, "MemoryError")
        assert attempt.usage.peak_rss > CAP * 9 // 10
        assert run("act", "allocate", CAP * 2) == CAP * 2
        assert run("act", "pid") == child


def test_what_programs_of_a_handler_have_counts_too(shop: Treadle) -> None:
    """Each within the cap, together beyond it: the attempt is killed with them, and fails for want of memory."""
    with shop.worker(concurrency=1):
        job = TASKS["capped"].enqueue("hoard_elsewhere")
        with pytest.raises(JobFailed):
            job.result(PATIENCE)
    (attempt,) = job.record().attempts
    assert (attempt.outcome, attempt.error_type) == (AttemptOutcome.FAILED, "MemoryError")
    assert f"more than the cap of {CAP:,}" in attempt.message
    assert attempt.usage.exit_code == -9
    assert (job.record().failures, job.record().crashes) == (1, 0)


def test_usage_is_that_of_one_attempt(shop: Treadle) -> None:
    """Peak memory and processor time are the attempt's own, also in a warm child, and when it is killed."""
    with shop.worker(concurrency=1):
        jobs = [TASKS["act"].enqueue(*deed) for deed in (("burn", 100 * MEGA), ("give", 1), ("die", "SIGKILL"))]
        eventually(lambda: jobs[2].record().attempts)
        first, second, third = (job.record().attempts[0].usage for job in jobs)
    assert first.peak_rss > 100 * MEGA
    assert first.cpu > second.cpu
    assert second.peak_rss < 100 * MEGA
    assert third.peak_rss < 100 * MEGA
    assert third.cpu < first.cpu
    assert (first.exit_code, second.exit_code, third.exit_code) == (None, None, -9)


# What it starts ------------------------------------------------------------------------------------------------------


def test_what_a_handler_starts_ends_with_its_attempt(shop: Treadle) -> None:
    """A program, one in another session and a daemon are gone once the outcome is told; the child is used again."""
    with shop.worker(concurrency=1):
        child = run("act", "pid")
        for _ in range(2):
            started = run("act", "leave_behind")
            assert [name for name, pid in started.items() if alive(pid)] == []
        assert run("act", "pid") == child


@pytest.mark.parametrize("how", ["crash", "cancel", "stop"])
def test_what_a_handler_starts_ends_with_its_process(shop: Treadle, how: str) -> None:
    """However the child is killed, nothing that it started lives on when its job is told to be over."""
    worker = shop.worker(concurrency=1, grace=0)
    with worker:
        job = TASKS["impatient"].enqueue("leave_behind", "job")
        pids = [int(word) for word in heard("job begun").split()]
        assert all(map(alive, pids))
        if how == "crash":
            os.kill(pids[0], signal.SIGKILL)
            eventually(lambda: job.record().attempts)
        elif how == "cancel":
            job.cancel()
            eventually(lambda: job.record().state is JobState.CANCELLED)
        if how != "stop":
            assert list(map(alive, pids)) == [False] * 4
    assert list(map(alive, pids)) == [False] * 4
    place("job go").touch()


def test_a_worker_that_stops_leaves_no_process(shop: Treadle, path: Path) -> None:
    """Children that are idle or busy are gone when stop returns; what ran goes back unspent."""
    with shop.worker(concurrency=3, grace=0):
        jobs = [TASKS["act"].enqueue("ignore", name) for name in ("one", "two")]
        pids = [int(heard(f"{name} begun")) for name in ("one", "two")]
        pids.append(run("act", "pid"))
    assert list(map(alive, pids)) == [False] * 3
    for job in jobs:
        record = job.record()
        assert (record.state, record.attempt, record.failures, record.crashes) == (JobState.READY, 1, 0, 0)
        assert [one.outcome for one in record.attempts] == [AttemptOutcome.RELEASED]
    assert list(Path(f"{path}-treadle").glob("children-*")) == []


def test_two_workers_of_one_process_have_children_of_their_own(shop: Treadle) -> None:
    """Stopping one worker kills its own children only."""
    with shop.worker(concurrency=1, name="stays"):
        job = TASKS["act"].enqueue("wait", "first")
        first = int(heard("first begun"))
        with shop.worker(concurrency=1, name="leaves", grace=0):
            other = TASKS["act"].enqueue("ignore", "second")
            second = int(heard("second begun"))
        assert not alive(second)
        assert alive(first)
        say("first go")
        assert job.result(PATIENCE) == "went on"
        say("second go")
        assert other.result(PATIENCE) == "went on"


# Rudeness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["descriptors", "files", "none"])
def test_a_handler_may_close_its_outputs(shop: Treadle, what: str) -> None:
    """The attempt has succeeded all the same, and what later handlers print is kept."""
    with shop.worker(concurrency=1):
        assert run("act", "close_outputs", what) == "done"
        job = TASKS["act"].enqueue("talk")
        job.result(PATIENCE)
        assert {"printed", "complained"} <= {line.text for line in shop.logs(job)}


# Where the app is ----------------------------------------------------------------------------------------------------


def test_a_task_that_needs_a_process_needs_a_module(app: Treadle) -> None:
    """An app that nobody can import is refused when the worker starts, with the remedy; nothing is left registered."""
    app.task(name="cut", isolation="process")(lambda: None)
    with pytest.raises(ConfigurationError, match=r"cut should run in a process of its own, .* top of a module"):
        app.worker().__enter__()
    assert app.workers() == ()


IMPORTS = """
import sys
sys.path[:0] = {paths!r}
from worker.isolated import app, TASKS
with app.worker(concurrency=1):
    print(TASKS["act"].enqueue("give", "done").result(30))
app.close()
"""
DECLARES = """
import sys
sys.path[:0] = {paths!r}
from worker.isolated import app
@app.task(name="own", isolation="process")
def own():
    return "done in " + __name__
if __name__ == "__main__":
    with app.worker(concurrency=1):
        print(own.enqueue().result(30))
    app.close()
"""


@pytest.mark.parametrize(("text", "told"), [(IMPORTS, "done"), (DECLARES, "done in __mp_main__")], ids=["no", "yes"])
@pytest.mark.usefixtures("shop")
def test_a_script_runs_again_only_for_tasks_of_its_own(tmp_path: Path, text: str, told: str) -> None:
    """A script of three lines that imports its app needs no guard; one that declares tasks is imported by the child."""
    script = tmp_path / "script.py"
    script.write_text(text.format(paths=[str(Path(__file__).parents[1]), SOURCE]))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == f"{told}\n", ended.stderr


def test_tasks_of_a_module_that_the_app_does_not_import_are_found(
    shop: Treadle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child imports the module that declares a task when its app does not know it; else the job is held in words."""
    module = "from worker import isolated\n@isolated.app.task(name='{0}', isolation='process')\ndef {0}(): return 7\n"
    for name in ("extra", "lost"):
        (tmp_path / f"{name}_tasks.py").write_text(module.format(name))
    monkeypatch.syspath_prepend(tmp_path)
    found = [importlib.import_module(f"{name}_tasks") for name in ("extra", "lost")]
    (tmp_path / "lost_tasks.py").unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with shop.worker(concurrency=1):
        assert found[0].extra.enqueue().result(PATIENCE) == 7
        job = found[1].lost.enqueue()
        eventually(lambda: job.record().state is JobState.HELD)
    assert job.record().reason.startswith("its process cannot import lost_tasks, which declares 'lost': ModuleNotFound")
