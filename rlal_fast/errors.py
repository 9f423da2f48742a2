"""The exceptions a user is meant to read."""


class InputError(ValueError):
    """Something that was asked for or handed in cannot work.

    Its message is one line: what was wrong, what was expected, what to do. The command line prints
        it
    without a traceback and exits with status 2.
    """


class RunStopped(Exception):
    """A run reached its time limit after an epoch, which is in its checkpoint: it can go on.

    Attributes:
        done: epochs trained so far, those of fine-tuning included.
        total: epochs in all.
    """

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"stopped after {done} of {total} epochs; the same call goes on")
        self.done, self.total = done, total
