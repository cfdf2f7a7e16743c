"""The one exception for input that the user can mend."""


class InputError(ValueError):
    """Bad input. Its text is one line that names the offending value and the remedy; scripts print it and exit with 2."""
