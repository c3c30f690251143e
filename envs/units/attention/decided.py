"""What may be decided about attention. Imports no torch: a configuration is read without it."""

from __future__ import annotations

from typing import Literal

Decided = Literal["heads", "queries", "widths"]
"""Whole heads (or groups of heads that share keys and values); query heads, as many of each group; or the widths of
heads, the same of each. One of them for a network: together their costs would not be linear in the widths of units.
"""
Decision = Literal["auto", Decided]
"""One of them; or widths where all heads of the network have principal channels, else heads."""
