"""The vocabulary of changes: frozen values that say what is done, why, and on what evidence."""
