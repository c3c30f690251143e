"""Attention in traced networks: where it stands (`found`), and explicit modules in the place of those that hide it.

Which heads or widths may go is the business of `units`; the explicit modules themselves stand in `network.attention`.
"""
