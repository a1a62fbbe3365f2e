"""The one error type for a user's mistake: printed as one line, exit status 2."""


class UserError(ValueError):
    """A mistake in the user's files, configuration or command line.

    The message is one line that names the file, key or line and says how to fix it.
    """


def printable(text: str) -> str:
    """The text on one line; control characters and others that cannot be shown are escaped."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
