"""Which sweeps make a study: tasks in stages and their engine; the studies; selection; checks, the error
budget."""
