"""``python -m dinoforge`` is ``dinoforge``."""

from dinoforge.start import main

main()
