"""A task whose searches take a fraction of a second: digits for a small residual network, fitted in closed form."""

import torch
from torch import Tensor, nn

from amc.tasks.models.digits import ResidualBlock
from amc.tasks.task import Task, load_task


def make_task() -> Task:
    """The splits of `digits`; random features, and a classifier by ridge regression on the calibration images."""
    digits = load_task("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 6, 3, 2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            ResidualBlock(6, 6, 1),
            ResidualBlock(6, 12, 2),
            nn.Flatten(),
        ).eval()
        classifier = nn.Linear(12 * 4 * 4, 10)
    inputs, targets = digits.calibration.batch(range(len(digits.calibration)))
    _fit(classifier, features(inputs), targets)
    network = nn.Sequential(*features, classifier)
    return Task(
        name="small",
        network=network,
        example_input=digits.example_input,
        calibration=digits.calibration,
        validation=digits.validation,
        test=digits.test,
    )


@torch.no_grad()
def _fit(classifier: nn.Linear, features: Tensor, targets: Tensor) -> None:
    """Least squares from [N, F] features to the one-hot [N] targets; a little ridge keeps it unique."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    y = nn.functional.one_hot(targets.long(), classifier.out_features).double()
    ridge = 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    classifier.weight.copy_(solution[:-1].T)
    classifier.bias.copy_(solution[-1])


def make_trainable() -> Task:
    """The same with training samples, for fine-tuning."""
    small = make_task()
    return Task(
        name="small",
        network=small.network,
        example_input=small.example_input,
        calibration=small.calibration,
        validation=small.validation,
        test=small.test,
        training=small.calibration,
    )
