#!/usr/bin/env python3
"""Run this project with nothing but python3 and pip: `python3 dev.py demo`; without a word it names the others.

Words after the command go to the program it starts; its exit code comes back. The first run makes .venv.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OWN = ROOT / ".uv"  # uv itself, the lock, and a cache when the home is read-only
VENV = ROOT / ".venv"
BIN = VENV / "bin"
BASE = getattr(sys, "_base_executable", sys.executable)
COMMANDS = {
    "demo": [["python", "-m", "treadle", "demo"]],
    "test": [["python", "-m", "pytest", "-n", "4", "--dist", "worksteal", "-q"]],
    "check": [["ruff", "check"], ["mypy"], ["lint-imports"]],
    "chaos": [["python", "tests/faults/chaos.py"]],
    "siege": [["python", "tests/faults/siege.py"]],
    "faults": [["python", "tests/faults"]],
    "signals": [["python", "tests/faults/signals.py"]],
    "powercut": [["python", "tests/faults/powercut.py"]],
    "hosts": [["python", "-m", "pytest", "-q", "tests/hosts", "--timeout", "0", "--rounds", "25"]],
    "effects": [["python", "tests/faults/effects.py"]],
    "bench": [["python", "-m", "benchmarks"]],
}


def environment():
    """Return the variables for pip and uv: nothing a user has set for other projects may stop them."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
    env.update(PIP_REQUIRE_VIRTUALENV="0", PIP_USER="0", UV_PYTHON_DOWNLOADS="never")
    if env.get("PIP_INDEX_URL") and not env.get("UV_INDEX_URL"):
        env.setdefault("UV_DEFAULT_INDEX", env["PIP_INDEX_URL"])  # uv does not read pip's settings
    known = env.get("PIP_CERT") or "/etc/ssl/certs/ca-certificates.crt"
    if os.path.exists(known):
        env.setdefault("SSL_CERT_FILE", known)  # a proxy's own certificate authority is only there
    try:
        cache = env.get("UV_CACHE_DIR") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
        os.makedirs(str(cache), exist_ok=True)
        tempfile.TemporaryFile(dir=str(cache)).close()
    except (OSError, RuntimeError):  # read-only or no home
        env["UV_CACHE_DIR"] = str(OWN / "cache")
    return env


def run(argv, env):
    """Run a step of the set-up; stop with its name and code if it fails."""
    code = subprocess.run(argv, check=False, env=env).returncode
    if code:
        sys.exit(f"dev.py: `{' '.join(argv)}` failed with exit code {code}; see above, then run again.")


def find_uv(env):
    """Return a uv that starts: the one on PATH, or our own, installed by pip into .uv."""
    own = OWN / "tool" / "bin" / "uv"
    for found in filter(None, (shutil.which("uv"), shutil.which(str(own)))):
        # a version manager's shim may be on PATH and still have no uv behind it
        if subprocess.run([found, "-V"], check=False, capture_output=True).returncode == 0:
            return found
    if importlib.util.find_spec("pip") is None:
        sys.exit("dev.py: this Python has neither uv nor pip. Install one: apt install python3-pip")
    for old in ("part", "tool"):
        shutil.rmtree(str(OWN / old), ignore_errors=True)
    run([BASE, "-m", "pip", "install", "-q", "--target", str(OWN / "part"), "uv>=0.8"], env)
    (OWN / "part").rename(OWN / "tool")  # so an interrupted install is never used
    return str(own)


def prepare(env, pins, *, fresh):
    """Install a file of pins into .venv, unless the stamp says that exactly this was done."""
    files = [ROOT / "requirements" / pins, ROOT / "pyproject.toml"]
    known = [sys.version, BASE, str(ROOT)] + [file.read_text(encoding="utf-8") for file in files]
    key = hashlib.sha256("\0".join(known).encode()).hexdigest()
    stamp = VENV / f"stamp-{pins}"
    if stamp.exists() and stamp.read_text() == key and shutil.which("python", path=str(BIN)):
        return
    print(f"dev.py: installing requirements/{pins} into .venv", file=sys.stderr, flush=True)
    uv = find_uv(env)
    if fresh:
        if VENV.exists():  # of another Python, of older pins or interrupted: start again
            shutil.rmtree(str(VENV))
        run([uv, "venv", "-q", "--python", BASE, str(VENV)], env)
    install = [uv, "pip", "install", "-q", "--python", str(VENV)]
    run([*install, "--require-hashes", "-r", str(files[0])], env)
    if fresh:
        run([*install, "--no-deps", "-e", "."], env)
    stamp.write_text(key)


def main(name="", *rest):
    """Prepare .venv under a lock, then become the command."""
    if sys.version_info < (3, 11):
        sys.exit("dev.py: Treadle needs Python 3.11 or newer; this is {}.{}.".format(*sys.version_info))
    if name not in COMMANDS:
        sys.exit(f"usage: python3 dev.py {'|'.join(COMMANDS)} [arguments]")
    os.chdir(str(ROOT))
    env = environment()
    OWN.mkdir(exist_ok=True)
    with open(OWN / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first runs at once take turns; the kernel frees a dead one's
        prepare(env, "dev.txt", fresh=True)
        if name == "bench":
            prepare(env, "bench.txt", fresh=False)
    env = {**os.environ, "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}", "VIRTUAL_ENV": str(VENV)}
    if name == "check":
        tools = [[str(BIN / tool), *words, *rest] for tool, *words in COMMANDS[name]]
        return int(any([subprocess.run(argv, check=False, env=env).returncode for argv in tools]))
    tool, *words = COMMANDS[name][0]
    os.execve(str(BIN / tool), [tool, *words, *rest], env)  # signals and exit code need no passing on


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
