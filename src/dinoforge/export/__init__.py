"""A backbone for other runtimes: written, opened again there, and compared."""
