"""What a refused call raises. Messages are one line: "ARGUMENT: expected X, got Y"."""

from typing import NoReturn


class ArgumentError(ValueError):
    """A value breaks the rules of the op; `argument` is its name as the caller wrote it."""

    def __init__(self, argument: str, message: str):
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.argument, str(self))


class UnsupportedError(NotImplementedError):
    """Legal, but no backend, or not the forced one, can run it here. The message has each one's
    reason."""


def refuse(argument: str, expected: str, got: object) -> NoReturn:
    """Raises ArgumentError for `argument`; of what came the first 200 characters."""
    line = " ".join(str(got).split())  # tensors and arrays print in many
    raise ArgumentError(argument, f"{argument}: expected {expected}, got {line[:200]}")
