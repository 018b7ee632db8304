"""One file per edge of the converter graph: `<source>_to_<target>`."""
