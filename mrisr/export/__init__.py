"""Out of Python: the bundle that other programs read, its ONNX graphs, and engines built of them.

Importing this package imports no torch.
"""
