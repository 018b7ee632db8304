"""How importers read ONNX: one dialect, whatever opset the file was written in.

`reading.read_graph` gives a graph in which every node has the newest meaning of its operator and
every value the type that inference finds; `calls` binds a node to the Python function that computes
it. An importer is then a library of such functions and a core that calls them in order.
"""
