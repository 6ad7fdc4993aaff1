"""Where images come from: one class a kind of address, all with the interface of ``source.Source``."""
