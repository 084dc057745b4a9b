"""Read files of other programs: bounded, without following links, at a cost that follows what has changed."""
