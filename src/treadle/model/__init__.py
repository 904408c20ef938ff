"""Pure policy: what a job is, what an outcome means, how a retry is timed. No I/O, no clock, no threads."""
