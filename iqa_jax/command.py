"""What all commands share: arguments, logging, errors and exit codes.

  if __name__ == '__main__':
    command.run(main)

Exit codes: what `main` returns (None is 0); 1 for an error that the last line
explains, and for a defect, which shows its traceback; 128 plus the signal's
number (130 SIGINT, 143 SIGTERM) for an interruption.
"""

from __future__ import annotations

from collections.abc import Callable
import signal

from absl import app, flags, logging

from iqa_jax import errors


def run(
  main: Callable[[], int | None],
  flags_parser: Callable[[list[str]], list[str]] = app.parse_flags_with_usage,
) -> None:
  """Runs a command and exits; it takes flags and no other argument.

  Args:
    main: the command, called when the flags are parsed.
    flags_parser: as of absl.app.run; config.parse_flags where --config is.
  """

  def guarded(argv: list[str]) -> int:
    if len(argv) > 1:
      raise app.UsageError(f'unexpected argument {argv[1]!r}')
    if flags.FLAGS['verbosity'].using_default_value:
      logging.set_verbosity(logging.INFO)
    return exit_code(main)

  app.run(guarded, flags_parser=flags_parser)


def exit_code(main: Callable[[], int | None]) -> int:
  """Calls `main`; returns its exit code, having logged an expected error.

  Raises:
    Exception: a defect: whatever is neither a UserError, an interruption nor
      the operating system's own error.
  """
  try:
    return main() or 0
  except errors.Interrupted as interruption:
    logging.warning('%s', interruption)
    return interruption.exit_code
  except KeyboardInterrupt:
    logging.warning('interrupted')
    return 128 + signal.SIGINT
  except (errors.UserError, OSError) as error:
    # A library that raises OSError by itself gives it no number.
    if not isinstance(error, errors.UserError) and error.errno is None:
      raise
    logging.error('%s', error)
    logging.debug('raised here:', exc_info=True)  # --verbosity=1
    return 1
