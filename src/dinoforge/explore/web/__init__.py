"""The explorer in a browser: pages rendered here, a little plain JavaScript, and the same answers as JSON."""
