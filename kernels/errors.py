"""The errors of this project: `ProactorError` is the root of all that are raised on purpose."""


class ProactorError(ValueError):
    """Root of every refusal in this project: bad input, in one line. Anything else that escapes is a bug."""


class KernelError(ProactorError):
    """An argument that an operation cannot take, or a dispatch mode that cannot run here."""
