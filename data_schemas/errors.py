"""The errors that a user can meet. The command turns them into one message and an exit code."""

_MOST = 2_000


class ReflogpError(Exception):
    """Something went wrong that the user should read as one message, without a traceback.

    A message that quotes a whole document loses its middle: the end says what to do.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        if len(message) > _MOST:
            message = f"{message[: _MOST // 2]} [...] {message[-_MOST // 2 :]}"
        super().__init__(message)


class InputError(ReflogpError):
    """What the user gave cannot be used: says what is wrong, where, and what to do."""

    exit_code = 2


class StorageError(ReflogpError):
    """The store where the cache is does not answer, or fails."""


class StorageRefusedError(StorageError):
    """The store cannot be used as it is given: no such bucket, or no right to it."""

    exit_code = 2
