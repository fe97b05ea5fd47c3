"""The errors that a user can meet. The command turns them into one message and an exit code."""


class ReflogpError(Exception):
    """Something went wrong that the user should read as one message, without a traceback."""

    exit_code = 1


class InputError(ReflogpError):
    """What the user gave cannot be used: says what is wrong, where, and what to do."""

    exit_code = 2
