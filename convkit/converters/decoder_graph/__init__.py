"""ONNX graphs of decoder language models, built from a description instead of traced.

`blueprint` says what a network computes, as data; `families` reads it from a `config.json`; `build`
turns it into a graph, with the checkpoint's tensors as initializers that are read when they are
written.
"""
