"""Named tensors at rest, read by rows: the hub between language-model formats."""
