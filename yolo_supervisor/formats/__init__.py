"""Files of other programs and of ours: one module a format, parse and dump side by side."""
