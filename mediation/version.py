"""The version of the software."""

# raised whenever a number may change: what an unfinished run kept under another version is computed again
VERSION = "0.3.0"
