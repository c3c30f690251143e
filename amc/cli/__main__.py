"""Where the command line begins, as `amc` and as `python -m amc.cli`: Ctrl-C is taken care of before long imports."""

import signal

from amc.cli.interrupts import exit_at_once, interrupt_between_imports


def main() -> None:
    """Imports the command line and runs it."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # such as in the background of a shell
    if not ignored:
        signal.signal(signal.SIGINT, exit_at_once)
    from amc.cli.main import main as run

    if not ignored:
        interrupt_between_imports()
    run()


if __name__ == "__main__":
    main()
