"""From a config to a run: reading and checking it, building the runner, and keeping the run whole."""
