"""``python -m dinoforge`` is ``dinoforge``."""

from dinoforge.cli import main

main()
