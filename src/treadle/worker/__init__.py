"""The engine that runs jobs: claimer, runner, settler, upkeep; started and stopped by :class:`Worker`."""
