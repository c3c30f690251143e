"""The network as a graph of operators: traced, counted operator by operator, copied and made fast for inference.

What a network does stands here, and nothing of what could be taken out of it.
"""
