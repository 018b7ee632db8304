"""convkit: convert trained models between formats and precisions, proven and measured."""

__version__ = "0.1.0"
