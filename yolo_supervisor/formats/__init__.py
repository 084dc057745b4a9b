"""Parse and dump files, of other programs and the supervisor's: one module for each format."""
