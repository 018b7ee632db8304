"""One file per `<format>_<precision>`."""
