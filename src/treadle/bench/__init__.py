"""``treadle bench``: how fast this machine starts jobs, measured with real processes on a real file."""
