"""The network as a graph of operators: traced, counted operator by operator, copied and made fast for inference.

What a network does stands here, and nothing of what could be taken out of it. A rule for an operator is one line:
what it multiplies in `counting.FORMULAS` (with a function of its shapes), how it behaves in `kinds.FUNCTION_KINDS`
or `kinds.MODULE_KINDS`.
"""
