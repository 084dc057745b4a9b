"""Write: the journaled store, the only package that changes documents."""
