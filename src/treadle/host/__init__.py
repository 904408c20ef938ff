"""The only room that talks to the operating system: locks, FIFOs, fork hooks, signals, /proc, processes.

Linux is the proven platform. Elsewhere the modules fall back to plain POSIX means or raise
:class:`treadle.errors.NotSupportedHere`. Import the modules by name; nothing is exported here.
"""
