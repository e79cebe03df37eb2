"""The one exception type for mistakes a user can mend."""


class RairlError(Exception):
    """Something the user can put right; the message names what, where and what to do next.

    The command line prints the message without a traceback and exits with code 2.
    """
