"""Which networks of timm and Hugging Face can be inspected, searched, reloaded and exported, with random weights.

Command: python -m experiments.bench.support [--only TEXT]
Each network is inspected, searched by the knapsack, loaded in a new process that has only its code and this package,
compared, and exported. What fails is written down with its reason. Finished networks (JSON under runs/support) are not
repeated. Writes docs/reference/support.md; networks whose library cannot be imported here are left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import amc
from amc.export.stored import read_stored
from amc.storage.files import read_json, write_json, write_text
from amc.tasks.metrics import accuracy, perplexity
from amc.tasks.task import Task
from envs.units.anatomy import dissect
from hw_profiles.documents import one_line

ROOT = Path(__file__).resolve().parents[2]
RUNS, PAGE = ROOT / "runs" / "support", ROOT / "docs" / "reference" / "support.md"
IMAGE, CLASSES, SAMPLES, BUDGET, TOLERANCE = 64, 5, 32, 0.7, 1e-4
SETTINGS: dict[str, Any] = {
    "reward_images": 16,
    "confirm": 1,
    "compression": {"images": 16, "quick_images": 16},
    "knapsack": {"widths": 2, "images": 16},
}
SIZED = ("vit", "swin")
"""Networks of timm that are told the size of images."""
TIMM = (
    "convnext_atto",
    "densenet121",
    "efficientnet_lite0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "regnetx_002",
    "resnet10t",
    "resnet26d",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS, LENGTH = 50, 12
TEXT = {**SMALL, "vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**TEXT, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2}
HUGGING_FACE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ALBERT": ("AlbertConfig", "AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}),
    "BERT": ("BertConfig", "BertForSequenceClassification", TEXT),
    "BLOOM": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": WORDS}),
    "Cohere": ("CohereConfig", "CohereForCausalLM", GROUPED),
    "ConvNeXt": ("ConvNextConfig", "ConvNextForImageClassification", {"depths": [1, 1, 2, 1]}),
    "DINOv2": ("Dinov2Config", "Dinov2ForImageClassification", {**SMALL, "image_size": IMAGE, "patch_size": 8}),
    "DeBERTa-v2": ("DebertaV2Config", "DebertaV2ForSequenceClassification", TEXT),
    "DistilBERT": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": WORDS},
    ),
    "Falcon": ("FalconConfig", "FalconForCausalLM", TEXT),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", GPT),
    "GPT-J": ("GPTJConfig", "GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT),
    "Gemma 2": ("Gemma2Config", "Gemma2ForCausalLM", {**GROUPED, "head_dim": 8}),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "MPNet": ("MPNetConfig", "MPNetForSequenceClassification", TEXT),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 2}),
    "MobileNetV2": ("MobileNetV2Config", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}),
    "ModernBERT": (
        "ModernBertConfig",
        "ModernBertForSequenceClassification",
        {**TEXT, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "OLMo 2": ("Olmo2Config", "Olmo2ForCausalLM", TEXT),
    "OPT": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            **{name: TEXT[name] for name in TEXT if name != "intermediate_size"},
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "Phi-3": ("Phi3Config", "Phi3ForCausalLM", GROUPED),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "ResNet": ("ResNetConfig", "ResNetForImageClassification", {"depths": [1, 1, 1, 1], "embedding_size": 32}),
    "RoBERTa": ("RobertaConfig", "RobertaForSequenceClassification", TEXT),
    "ViT": ("ViTConfig", "ViTForImageClassification", {**SMALL, "image_size": IMAGE}),
}
"""Name -> configuration, class, and what of the configuration is set."""
STEPS = ("search", "reload", "onnx", "program", "timm text")


class Case(NamedTuple):
    """A network with what a task of it needs."""

    network: nn.Module
    inputs: Tensor
    output: str | None = None
    words: bool = False
    """Whether the next words are the targets, rather than a class of each sample."""


def of_timm(name: str) -> Case:
    """A network of timm for small images."""
    sized = {"img_size": IMAGE} if name.startswith(SIZED) else {}
    network = import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES, **sized)
    return Case(network.eval(), torch.randn(SAMPLES, 3, IMAGE, IMAGE))


def of_hugging_face(name: str) -> Case:
    """A small network of Hugging Face."""
    library = import_module("transformers")
    configuration, kind, settings = HUGGING_FACE[name]
    words = "LM" in kind
    classes = {} if words else {"num_labels": CLASSES}
    network = getattr(library, kind)(getattr(library, configuration)(**classes, **settings)).eval()
    if words or "Sequence" in kind:
        return Case(network, torch.randint(3, WORDS, (SAMPLES, LENGTH)), "logits", words)
    return Case(network, torch.randn(SAMPLES, 3, IMAGE, IMAGE), "logits")


CASES: dict[str, Callable[[], Case]] = {
    **{f"timm {name}": (lambda name=name: of_timm(name)) for name in TIMM},  # type: ignore[misc]
    **{f"Hugging Face {name}": (lambda name=name: of_hugging_face(name)) for name in HUGGING_FACE},  # type: ignore[misc]
}


def judge(name: str, folder: Path) -> dict[str, Any]:
    """What can be done with a network: "" for what can, a reason for what cannot, None for what was not reached.

    Args:
        name: Of `CASES`.
        folder: Where the run is written.

    Raises:
        ImportError: If the network's library is not here.
    """
    torch.manual_seed(0)
    network, inputs, output, words = CASES[name]()
    said: dict[str, Any] = {"name": name, "units": 0, "heads": 0, "fixed": [], **dict.fromkeys(STEPS)}
    targets = inputs.roll(-1, dims=1) if words else torch.arange(len(inputs)) % CLASSES
    splits: dict[str, Any] = dict.fromkeys(("calibration", "validation", "test"), (inputs.numpy(), targets.numpy()))

    def searched() -> None:
        metric = perplexity if words else accuracy
        task = Task(name="support", network=network, example_input=inputs[:1], metric=metric, output=output, **splits)
        anatomy = dissect(task.network, task.example_input, inputs[:4])
        said["units"], said["fixed"] = len(anatomy.units), sorted({one.reason for one in anatomy.fixed})
        said["heads"] = sum(unit.kind != "channels" for unit in anatomy.units)
        amc.search(task, {"macs": BUDGET}, searcher="knapsack", out=folder, progress=False, **SETTINGS)

    steps: dict[str, Callable[[], Any]] = {
        "search": searched,
        "reload": lambda: reloaded(folder, inputs[:3]),
        "onnx": lambda: read_stored(folder).write(folder / "small.onnx"),
        "program": lambda: read_stored(folder).write(folder / "small.pt2"),
        "timm text": lambda: read_stored(folder).write(folder / "small.txt"),
    }
    for step, act in steps.items():
        try:
            act()
            said[step] = ""
        except ImportError:
            raise
        except Exception as error:  # whatever stands in the way is what is asked for
            said[step] = one_line(error)
            if step == "search":
                break
    return said


LOADING = """
import sys
import numpy
import torch
import amc

network = amc.load(sys.argv[1]).eval()
with torch.no_grad():
    outputs = network(torch.from_numpy(numpy.load(sys.argv[2])))
numpy.save(sys.argv[3], getattr(outputs, "logits", outputs).numpy())
"""


def reloaded(folder: Path, inputs: Tensor) -> None:
    """Loads the network in a new process, and compares its outputs.

    Raises:
        ValueError: If it does not load, or computes something else.
    """
    np.save(folder / "inputs.npy", inputs.numpy())
    places = [str(folder), str(folder / "inputs.npy"), str(folder / "outputs.npy")]
    done = subprocess.run([sys.executable, "-c", LOADING, *places], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    with torch.no_grad():
        expected = read_stored(folder).network(inputs)
    difference = float((torch.from_numpy(np.load(folder / "outputs.npy")) - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max().clamp_min(1)):
        raise ValueError(f"its outputs differ by {difference:.1e}")


def versions() -> str:
    """Of the libraries that the networks are from."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers"))


def page(rows: list[dict[str, Any]]) -> str:
    """docs/reference/support.md."""
    lines = [
        "# Networks of timm and Hugging Face",
        "",
        f"Random weights, random data, the knapsack at {BUDGET:.0%} of the MACs; written by",
        f"`python -m experiments.bench.support` with {versions()}.",
        "*Reload*: `amc.load` in a new process gives equal outputs. *timm text*: sizes that timm's",
        "`adapt_model_from_string` reads ([reloading](../guides/reloading.md)). *units* and *of attention* are those",
        "of `--attention heads`; the search takes the default, `auto`.",
        "",
        f"| network | units | of attention | {' | '.join(STEPS)} |",
        "|---" * (len(STEPS) + 3) + "|",
    ]
    for row in rows:
        marks = " | ".join(_mark(row[step]) for step in STEPS)
        lines.append(f"| {row['name']} | {row['units']} | {row['heads']} | {marks} |")
    for row in rows:
        reasons = [f"{step}: {row[step]}" for step in STEPS if row[step]]
        lines += ["", f"**{row['name']}**", "", *(f"- {reason}" for reason in reasons)]
        lines += [f"- stays whole: {reason}" for reason in row["fixed"]]
    return "\n".join(lines) + "\n"


def _mark(said: str | None) -> str:
    return "-" if said is None else "no" if said else "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names that hold this text")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in (name for name in CASES if options.only in name):
        path = RUNS / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    write_json(path, judge(name, Path(folder) / "run"))
                except (ImportError, RuntimeError) as error:
                    print(f"{name} is left out: {one_line(error)}")
                    continue
        print(name, read_json(path, "a judgement"), flush=True)
    write_text(PAGE, page([read_json(path, "a judgement") for path in sorted(RUNS.glob("*.json"))]))


if __name__ == "__main__":
    main()
