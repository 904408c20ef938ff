"""Verified copy: the task of the demonstration. One job copies a few files and proves each copy by its SHA-256.

This is an ordinary Treadle application. ``treadle demo`` stores the jobs and starts workers on :data:`app`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from treadle.app import Treadle
from treadle.demo.tree import digest, write_copy
from treadle.model.retry import Retry
from treadle.worker.context import current_job

app = Treadle()  # the store comes from TREADLE_STORE or from `treadle worker --store`

QUEUE = "copy"
TASK = "demo.copy_files"
PARTIAL = b".treadle-part-"


class CopyDiffers(Exception):
    """What was read back is not what was read from the source; the job is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What one job did.

    Attributes:
        files: how many files are copied and verified, symlinks included.
        size: their bytes.
        sha256: the digest of every regular file, in the order of the names; empty for the others.
        problems: what could not be copied, each with its reason: names are bytes, as the file system has them.
    """

    files: int
    size: int
    sha256: list[str]
    problems: list[tuple[bytes, str]]


# A file name on Linux is bytes, not text, so paths travel as bytes (base64 inside the stored JSON).
@app.task(name=TASK, queue=QUEUE, retry=Retry(3, backoff=(0.5, 1, 2)))
def copy_files(source: bytes, target: bytes, names: list[bytes]) -> Copied:
    """Copy *names* from the folder *source* to the folder *target*; safe to run again at any point.

    A source file that vanished or cannot be read is told in the result. Anything wrong with the target raises, and
    the job is tried again.
    """
    job = current_job()
    size, digests, problems = 0, [], []
    for name in names:
        path = os.path.join(target, name)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        _remove_leftovers(folder, job.id, job.attempt)
        partial = os.path.join(folder, PARTIAL + b"%d-%d" % (job.id, job.attempt))
        try:
            found = os.lstat(os.path.join(source, name))
            sha256 = _copy_one(os.path.join(source, name), path, partial, found)
        except SourceProblem as problem:
            problems.append((name, str(problem)))
            continue
        except OSError as error:
            if error.filename != os.path.join(source, name):
                raise
            problems.append((name, error.strerror or type(error).__name__))
            continue
        size += found.st_size
        digests.append(sha256)
    for folder in {os.path.dirname(os.path.join(target, name)) for name in names}:
        _sync_folder(folder)
    return Copied(files=len(digests), size=size, sha256=digests, problems=problems)


class SourceProblem(Exception):
    """This source file cannot be copied at all; the text says why."""


def _copy_one(source: bytes, path: bytes, partial: bytes, found: os.stat_result) -> str:
    try:
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(source), partial)
            os.replace(partial, path)
            return ""
        if not stat.S_ISREG(found.st_mode):
            raise SourceProblem("not a regular file, folder or symlink")
        read = write_copy(source, partial, found)
        written = digest(partial)
        if read != written:
            raise CopyDiffers(f"{os.fsdecode(source)!r} was read as {read} and its copy reads as {written}")
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise
    return written


def _remove_leftovers(folder: bytes, job_id: int, attempt: int) -> None:
    """Remove what earlier attempts of this job left here when their process was killed."""
    for earlier in range(1, attempt):
        _remove(os.path.join(folder, PARTIAL + b"%d-%d" % (job_id, earlier)))


def _remove(partial: bytes) -> None:
    if os.path.lexists(partial):
        os.unlink(partial)


def _sync_folder(folder: bytes) -> None:
    """A rename is durable once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
