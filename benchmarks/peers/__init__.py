"""The same interventions by other libraries, timed in turns with this project's.

Each library has an environment of its own. `python -m benchmarks.peers.compare` runs them.
"""
