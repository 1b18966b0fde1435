"""The errors of this project: `ProactorError` is the root of all that are raised on purpose."""

LONGEST_MESSAGE = 2000
"""Characters of a message; the middle of a longer one, as of a file's content in it, is left out."""


class ProactorError(ValueError):
    """Root of every refusal in this project: bad input, in one line. Anything else that escapes is a bug.

    What a file or a server chose, as a name with a line feed or an escape code, is shown escaped.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in parts))


class KernelError(ProactorError):
    """An argument that an operation cannot take, or a dispatch mode that cannot run here."""


def printable(text: str) -> str:
    """``text`` on one line, without control characters or halves of surrogate pairs: those are escaped."""
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} … {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
