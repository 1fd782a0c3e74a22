"""One exception for everything a person can mend.

A `UserError` is one line that names the thing, the value and the way out. The command line prints
it on stderr and exits with 2; a library user catches it as the `ValueError` it is. Our own
invariants are `assert`s and stay visible as such.
"""


class UserError(ValueError):
    """Wrong input: the message names the thing, the value and the way out, in one line."""
