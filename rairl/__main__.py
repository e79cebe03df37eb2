"""``python -m rairl``: the command line, also for launchers that start a module in several processes."""

from rairl.cli.main import main

main()
