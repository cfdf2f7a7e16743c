"""The one exception for input that the user can mend."""

LONGEST = 1200  # characters of a text: a damaged file's cells can be of any length


class InputError(ValueError):
    """Bad input. Its text is one line that names the offending value and the remedy.

    Scripts print it and exit with 2. `reason`: why, in words that several stimuli share, for lists of what
    was left out; the text where none is given.
    """

    def __init__(self, text: str, reason: str | None = None) -> None:
        super().__init__(text if len(text) <= LONGEST else f"{text[:LONGEST - 300]} ... {text[-300:]}")
        self.reason = reason or str(self)
