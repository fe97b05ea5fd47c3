"""A row that cannot be used says so once, where that is understood; the stage quarantines it."""

from data_schemas.quarantine import Reason


class RowFault(Exception):  # noqa: N818 - a fault of the data, not an error of the program
    """This row cannot be used.

    Attributes:
        reason: stands on disk and is counted.
        field: the column at fault, where one is.
        detail: what is wrong, for people.
    """

    def __init__(self, reason: Reason, field: str | None, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.field = field
        self.detail = detail
