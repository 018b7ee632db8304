"""ONNX operators as torch functions, one file per family; each file ends with its `OPERATORS`.

A function implements the newest version of its operator: its positional parameters are the
operator's inputs, its keyword-only parameters the attributes. Parameters annotated `Ints`, `Int`,
`Floats` or `Number` (see `values`) take plain Python values or a tensor; `torch.export` takes all.
Functions are copied as they stand into the folders that users get, so they import nothing but
`torch`, `math` and each other.
"""
