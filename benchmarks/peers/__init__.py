"""The same interventions by other libraries, each in an environment of its own, timed in turns with this project's: `python -m benchmarks.peers.compare`."""
