"""The root of all refusals."""


class ProactorError(ValueError):
    """Root of every refusal in this project: bad input, told in one line. Anything else that escapes is a bug."""


class KernelError(ProactorError):
    """Arguments that an operation cannot take, or a dispatch mode in which it cannot run."""
