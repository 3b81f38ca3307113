"""Has the errors that end a command with a line in place of a traceback."""


class UserError(ValueError):
    """Tells of a mistake in what the user asked for: a path, a flag, a config value, a data file.

    The message is one line that says what was wrong, what was got and what was expected. The
    command line prints it without a traceback and exits with status 2.
    """


class NotFiniteError(RuntimeError):
    """Tells that ten steps in a row had a loss or gradient that wasn't finite."""


class Interrupted(Exception):
    """Tells that a stage was stopped by a signal, after it wrote a checkpoint.

    Attributes:
      number: number of the signal.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"interrupted; the same command continues at step {step}")
        self.number = number
