"""One file per family; each holds a `FAMILY`."""
