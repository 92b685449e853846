"""The exceptions that a user is meant to read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """Something supplied by the user (a file, a column, a configuration value) cannot be used.

    The message is one sentence that names the file, the row or key, what was found and what is expected. The
    scripts print it without a stack trace; any other exception is a defect of jaxcxr and keeps its trace.
    """


class OthersEndedError(InputError):
    """Another process of this job has ended: whatever waits for it waits in vain, JAX's own end included."""


def faults_in(error: "ValidationError") -> list[str]:
    """What pydantic found: the field, where it is one, and what is wrong with it, for a user's sentence."""
    found = [(".".join(str(part) for part in fault["loc"]), fault["msg"]) for fault in error.errors()]
    return [f"{field}: {message}" if field else message for field, message in found]
