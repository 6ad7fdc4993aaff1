"""Published evaluation sets read as they lie on disk: one file a form or a family of them, listed in ``table``."""
