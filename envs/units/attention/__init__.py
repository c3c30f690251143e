"""Attention in traced networks: where it stands (`found`), its units (`heads`, read and verified in `reading`), and
explicit modules in the place of those that hide it (`explicit`, tried in `trial`).

The explicit modules themselves stand in `network.attention`.
"""
