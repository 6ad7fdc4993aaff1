"""What shards of a curation run on, a file each."""
