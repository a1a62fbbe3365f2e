"""The one error type for a user's mistake: printed as one line, exit status 2."""


class UserError(ValueError):
    """A mistake in the user's files, configuration or command line.

    The message is one line that names the file, key or line and says how to fix it.
    """
