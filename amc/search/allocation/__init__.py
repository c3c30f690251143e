"""Allocation without a search: damage curves and a constraint in, widths and patterns out. `curves` measures; no other
module runs a network.
"""
