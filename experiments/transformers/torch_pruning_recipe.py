"""Torch-Pruning's recipe for BERT, run as it is on MiniLM; writes experiments/results/torch_pruning.md.

Command: python -m experiments.transformers.torch_pruning_recipe --data DIR
The recipe (examples/transformers/prune_hf_bert.py of Torch-Pruning) removes the same share of the residual stream, the
heads and the neurons of every layer, by mean magnitude, with nothing repaired: what is left is meant to be trained
again. Here nothing is trained, as everywhere in this project. Needs the package transformers.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from safetensors.torch import load_file
from torch import Tensor, nn

from amc.storage.files import write_text
from experiments.chain import commit, processor
from experiments.transformers.minilm import (
    EPSILON,
    HIDDEN,
    LAYERS,
    LENGTH,
    POSITIONS,
    WIDTH,
    WORDS,
    cosines,
    pairs,
    trimmed,
)
from experiments.transformers.sts import counted_macs, spearman_of

TABLE = Path(__file__).resolve().parents[1] / "results" / "torch_pruning.md"
HEADS, BATCH = 12, 64
RATIOS = {"none": 0.0, "half of the MACs": 0.29, "as published": 0.5}
"""What is removed of every width; the recipe's own is 0.5."""


class Sentences(nn.Module):
    """A BERT of Hugging Face whose mean hidden state is a sentence's vector."""

    def __init__(self, bert: nn.Module) -> None:
        """Takes the encoder."""
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, 2, D] vectors of length 1 of pairs [B, 2, T] and of what of them is no padding."""
        hidden = self.bert(ids.flatten(0, 1), attention_mask=mask.flatten(0, 1)).last_hidden_state.unflatten(0, (-1, 2))
        counted = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * counted).sum(dim=-2) / counted.sum(dim=-2), dim=-1)


def minilm(file: Path) -> Any:
    """The published network in the classes of Hugging Face."""
    library = import_module("transformers")
    config = library.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=POSITIONS,
        layer_norm_eps=EPSILON,
        attn_implementation="eager",
    )
    bert = library.BertModel(config)
    weights = {name: value.float() for name, value in load_file(file).items()}
    lacking = bert.load_state_dict(weights, strict=False).missing_keys
    if any(not name.startswith("pooler") for name in lacking):
        raise ValueError(f"MiniLM's weights must fill BERT, but these are missing: {lacking}")
    return bert.eval()


def prune(bert: Any, ratio: float) -> None:
    """The recipe's steps, with the ratio for widths and heads."""
    attentions = [layer.attention.self for layer in bert.encoder.layer]
    words = torch.ones(1, LENGTH, dtype=torch.int64)
    pruner = torch_pruning.pruner.BasePruner(
        bert,
        {"input_ids": words, "token_type_ids": 0 * words, "attention_mask": words},
        global_pruning=False,
        importance=torch_pruning.importance.MagnitudeImportance(p=2, group_reduction="mean"),
        iterative_steps=1,
        pruning_ratio=ratio,
        num_heads={layer: HEADS for one in attentions for layer in (one.query, one.key, one.value)},
        prune_head_dims=False,
        prune_num_heads=True,
        head_pruning_ratio=ratio,
        output_transform=lambda out: out.pooler_output.sum(),
        ignored_layers=[bert.pooler],
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for one in attentions:
        one.num_attention_heads = pruner.num_heads[one.query]
        one.attention_head_size = one.query.out_features // one.num_attention_heads
        one.all_head_size = one.query.out_features


def measured(ratio: float, data: Path) -> dict[str, Any]:
    """Widths, costs and the rank correlation on all dev pairs."""
    bert = minilm(data / "model_fp16.safetensors")
    if ratio:
        prune(bert, ratio)
    network, (words, scores) = Sentences(bert).eval(), pairs(data / "stsb_dev.npz")
    with torch.no_grad():
        batches = (trimmed(torch.as_tensor(words[place : place + BATCH])) for place in range(0, len(words), BATCH))
        vectors = torch.cat([network(**batch) for batch in batches])
    found = cosines(vectors).double().numpy()
    example = torch.ones(1, 2, LENGTH, dtype=torch.int64)
    layer = bert.encoder.layer[0]
    return {
        "spearman": float(spearman_of(found[None], scores[None].astype(float))[0]),
        "macs": counted_macs(network, {"ids": example, "mask": example}),
        "widths": (
            layer.output.dense.out_features,
            layer.attention.self.num_attention_heads,
            layer.output.dense.in_features,
        ),
    }


def main() -> None:
    """Runs the recipe at each ratio and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    found = {name: measured(ratio, options.data) for name, ratio in RATIOS.items()}
    rows = []
    for name, one in found.items():
        width, heads, neurons = one["widths"]
        share = one["macs"] / found["none"]["macs"]
        rows.append(
            f"| {name} | {RATIOS[name]:g} | {width} | {heads} | {neurons} | {share:.1%} | {one['spearman']:.2f} |"
        )
    write_text(TABLE, page(rows))


def page(rows: list[str]) -> str:
    """The page of results."""
    lines = "\n".join(rows)
    return f"""# Torch-Pruning's recipe for BERT on MiniLM, no fine-tuning

`python -m experiments.transformers.torch_pruning_recipe --data DIR`, commit {commit()}, {processor()},
Torch-Pruning {torch_pruning.__version__}. Spearman's rank correlation x 100 on the 1,250 dev pairs of STS-B, as in
[minilm.md](minilm.md), whose budgets are of the same count of MACs. The recipe prunes the residual stream as well,
which every layer writes to and reads.

| removed | share of each width | residual width | heads | neurons | MACs | Spearman x 100 |
|---|---|---|---|---|---|---|
{lines}

Its recipe for ViT (Taylor, 0.54) needs ImageNet and a pretrained ViT, and was not run; its authors give 0.16 % top-1
for the pruned ViT before fine-tuning.
"""


if __name__ == "__main__":
    main()
