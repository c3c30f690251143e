"""Timing a device: which kernels, in which order, by which script; also as a bundle for a device
with only Python, numpy and onnxruntime.

What comes out is a profile of `latency`.
"""
