"""What a command may end with besides success and a defect.

A command (iqa_jax/command.py) tells of these in one line. Any other exception,
a library's ValueError included, is a defect and shows its traceback.
"""

from collections.abc import Iterable
import signal


class UserError(Exception):
  """Something that the user can mend; the message says what and how.

  A command ends with exit code 1 and the message alone, without a traceback.
  """


class InvalidValue(UserError, ValueError):
  """A field, a flag or an argument is none of the values that it may have."""


def one_of(what: str, value: str, allowed: Iterable[str]) -> None:
  """Raises InvalidValue unless a value is one of those allowed.

  >>> one_of('data.name=', 'eyeq', ['brset', 'eyeq'])

  Args:
    what: it is, for the message; with '=' where a field is named.
    value: what was given.
    allowed: what may be.
  """
  allowed = list(allowed)
  if value not in allowed:
    between = '' if what.endswith('=') else ' '
    raise InvalidValue(
      f'{what}{between}{value!r} is none of {", ".join(allowed)}'
    )


class Interrupted(Exception):
  """A signal ended the work early, and what was done is saved.

  Attributes:
    exit_code: 128 + the signal's number: 130 for SIGINT, 143 for SIGTERM.
  """

  def __init__(self, number: int, message: str):
    super().__init__(f'{signal.Signals(number).name}: {message}')
    self.exit_code = 128 + number
