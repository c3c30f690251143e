"""What leaves: ONNX compared with torch, the folder of an applied policy, checks of sparsity patterns in files."""
