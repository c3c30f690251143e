"""Allocation without a search: damage curves and a constraint in, widths and patterns out. Runs no network."""
