"""Errors that are a user's to mend."""


class UserError(ValueError):
    """A mistake in what the user asked for: a path, a flag, a config value, a data file.

    The message is one line that says what was wrong, what was got and what was expected. The
    command line prints it without a traceback and exits with status 2.
    """


class NotFiniteError(RuntimeError):
    """Ten steps in a row had a loss or gradient that wasn't finite."""


class Interrupted(Exception):
    """A stage was told to stop by a signal, and wrote a checkpoint.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"interrupted; the same command continues at step {step}")
        self.number = number
