"""``python -m lightning_freeze.cli`` is the command ``lightning-freeze``."""

from lightning_freeze.cli.command_line import main

if __name__ == "__main__":
    main()
