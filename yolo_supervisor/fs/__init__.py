"""Read files of other programs: bounded, and again only if they have changed."""
