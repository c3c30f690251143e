"""The same loop on several processes or GPUs: Ray Train starts them, DistributedDataParallel averages gradients.

Every process reads its part of each batch. The first one scores, keeps the state's file and says how far it is; the
folder of that file must be one that it and the caller share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amc.runs.finetuning.batches import World
from amc.runs.finetuning.settings import FinetuneConfig
from amc.runs.finetuning.subject import Finetuned, Subject
from amc.runs.finetuning.trainer import Told, alone, finetune, train_together


def finetune_on_workers(subject: Subject, config: FinetuneConfig, path: Path, told: Told | None = None) -> Finetuned:
    """`finetune` on `config.workers` processes of Ray Train.

    Args:
        subject: What is trained.
        config: How.
        path: The state's file.
        told: Is told after each epoch, in the first process.

    Raises:
        ValueError: If it cannot be trained; before any process is started.
        ray.train.base_trainer.TrainingFailedError: If a process failed.
    """
    from ray.train import RunConfig, ScalingConfig  # heavy
    from ray.train.torch import TorchTrainer

    subject.check(config)
    with TemporaryDirectory() as storage:  # for what Ray Train writes of its own
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"subject": subject, "config": config, "path": str(path.resolve()), "told": told},
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.device == "cuda"),
            run_config=RunConfig(name="finetune", storage_path=storage),
        )
        trainer.fit()
    # The best epoch stands in the state's file: here nothing is trained any more.
    return finetune(subject, config, path)


def _loop(given: Mapping[str, Any]) -> None:
    """What every process runs."""
    from ray.train import get_context
    from ray.train.torch import prepare_model

    context = get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    wrap = prepare_model if world.size > 1 else alone
    train_together(given["subject"], given["config"], Path(given["path"]), given["told"], world, wrap)
