"""The stages of a curation, a file each."""
