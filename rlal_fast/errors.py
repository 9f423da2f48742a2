"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something that was asked for or handed in cannot work.

    Its message is one line: what was wrong, what was expected, what to do. The command line prints
        it
    without a traceback and exits with status 2.
    """
