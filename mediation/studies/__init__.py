"""Which sweeps make a study: the professions, the attention study, one's own question; selection; checks and the error budget."""
