"""Selections of weights and damages by name; `sparsify.selection_named` and `damage.damage_named` find them.

A new selection (`sparsify.Selection`) or damage (`damage.Damage`) is a file and a line here. Imports no torch.
"""

from __future__ import annotations

SELECTIONS = {
    "magnitude": "envs.compression.sparsify:Magnitude",
    "wanda": "envs.compression.sparsify:Wanda",
    "sparsegpt": "envs.compression.sparsify:SparseGPT",
}
"""Name -> where the class stands."""

DAMAGES = {
    "kl": "envs.compression.damage:divergence",
    "kl1": "envs.compression.damage:plain_divergence",
    "logits": "envs.compression.damage:output_error",
    "loss": "envs.compression.damage:cross_entropy_rise",
}
"""Name -> where the function stands."""
