"""Errors for users. The command line turns each into one message and an exit code."""

_MOST = 2_000


class ReflogpError(Exception):
    """An error that users see as one message, without a traceback.

    Long messages lose their middle, because the end says what to do.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        if len(message) > _MOST:
            message = f"{message[: _MOST // 2]} [...] {message[-_MOST // 2 :]}"
        super().__init__(message)


class InputError(ReflogpError):
    """Unusable input. The message says what is wrong, where, and what to do."""

    exit_code = 2


class StorageError(ReflogpError):
    """The object store that holds the cache fails or does not answer."""


class StorageRefusedError(StorageError):
    """The object store refuses access, or the bucket does not exist."""

    exit_code = 2
