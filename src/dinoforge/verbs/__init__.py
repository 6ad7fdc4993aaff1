"""Floor 4: the verbs, one file each, with the words of the command line as keywords."""
