"""ONNX operators as TensorFlow functions, one file per family, each with its table `OPERATORS`."""
