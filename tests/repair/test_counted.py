"""Padding is computed like all else, but enters no statistic, no fit, no gradient and no damage."""

from collections.abc import Iterator
from operator import itemgetter

import pytest
import torch
from torch import Tensor, nn

from envs.compression.compress import Compressor
from envs.compression.damage import damage_of, divergence, output_error
from envs.compression.settings import CompressionSettings
from envs.importance.taylor import gate_sensitivities
from envs.network.inputs import Inputs
from envs.regression.counted import counted_rows
from envs.regression.rows import Positions, draw_positions
from envs.regression.statistics import Sampling, gram_of, input_moments, totals
from envs.repair.targets import Target
from envs.units.anatomy import Anatomy, dissect

LENGTHS = (3, 6, 1, 5, 2, 6, 4, 3)
MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]


class Reader(nn.Module):
    """Words to one score per word (or per text), with a feed-forward block on a residual stream."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.words, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        x = x + self.narrow(torch.relu(self.wide(self.norm(x))))
        kept = mask[..., None].float()
        found: Tensor = self.head((x * kept).sum(1) / kept.sum(1) if self.pooled else x)
        return found


@pytest.fixture(params=[True, False], ids=["pooled", "per token"])
def network(request: pytest.FixtureRequest) -> Iterator[Reader]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield Reader(pooled=request.param).eval()


def texts(padding: int, seed: int) -> dict[str, Tensor]:
    words = torch.randint(1, 20, MASK.shape, generator=torch.Generator().manual_seed(seed))
    return {"ids": torch.where(MASK, words, padding), "mask": MASK.long()}


def dissected(network: nn.Module) -> Anatomy:
    return dissect(network, {name: one[1:2] for name, one in texts(0, 0).items()}, texts(0, 0))


def repaired(network: Reader, padding: int, *, counted: bool) -> Tensor:
    """Weights of the layer behind 16 neurons of which 8 stay."""
    anatomy = dissected(network)
    chunks: list[Inputs] = [texts(padding, seed) for seed in range(4)]
    settings = CompressionSettings(positions=4, quick_images=16)
    counts = itemgetter("mask") if counted else None
    compressor = Compressor(
        anatomy.network, anatomy.graph, anatomy.family, anatomy.units, chunks, settings, counts=counts
    )
    unit = next(unit for unit in anatomy.units if unit.channels == 16)
    small = compressor.compress(compressor.policy({unit.name: 8})).network
    weight = small.get_submodule("narrow").weight
    assert isinstance(weight, Tensor)
    return weight


def test_what_stands_in_padding_changes_no_repaired_weight(network: Reader) -> None:
    assert torch.equal(repaired(network, 0, counted=True), repaired(network, 7, counted=True))
    assert not torch.equal(repaired(network, 0, counted=False), repaired(network, 7, counted=False))


def test_moments_are_those_of_the_tokens_that_count(network: Reader) -> None:
    inputs = texts(0, 1)
    seen: list[Tensor] = []
    network.narrow.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    sums = totals(input_moments(network, ["narrow"], [inputs], Sampling(positions=6, counted=(MASK,))))["narrow"]
    rows = seen[0][MASK]
    assert sums.count == sum(LENGTHS)
    torch.testing.assert_close(gram_of(sums)[0], (rows.T @ rows).double() / len(rows), rtol=1e-5, atol=1e-6)


def test_no_gradient_comes_from_outputs_at_padding() -> None:
    network = Reader(pooled=False).eval()
    units = dissected(network).units

    def found(padding: int) -> list[Tensor]:
        chunks: list[Inputs] = [texts(padding, 0)]
        scores = gate_sensitivities(network, units, chunks, at_once=8, seed=0, counts=itemgetter("mask"))
        return list(scores.values())

    for first, second in zip(found(0), found(7), strict=True):
        assert float(first.sum()) > 0
        torch.testing.assert_close(first, second)


def test_positions_are_drawn_among_those_that_count_and_fewer_are_the_first_of_more() -> None:
    def drawn(per_image: int) -> Positions:
        return draw_positions(8, 6, per_image, torch.Generator().manual_seed(0), counted=MASK)

    every, few = drawn(6), drawn(2)
    assert MASK[every.image, every.place].all()
    assert torch.bincount(every.image, minlength=8).tolist() == list(LENGTHS)
    first = Target(at=every, own=every.place[:, None].float(), images=8).first(2)
    assert torch.equal(first.at.image, few.image)
    assert torch.equal(first.at.place, few.place)
    assert torch.equal(first.own[:, 0].long(), few.place)
    assert Target(at=every, own=every.place[:, None].float(), images=8).count(2) == len(few.place)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((8, 6), MASK), ((48,), MASK.flatten()), ((6, 8), MASK.T), ((4, 2, 6), MASK.reshape(4, 2, 6)), ((8,), None)],
)
def test_tokens_are_found_in_the_rows_of_an_activation(shape: tuple[int, ...], wanted: Tensor | None) -> None:
    found = counted_rows(MASK, shape)
    assert found is None if wanted is None else found is not None and torch.equal(found, wanted)


def test_damage_of_tokens_is_the_mean_over_those_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(8, 6, 3, generator=generator) for _ in range(2))
    targets = torch.randint(3, (8, 6), generator=generator)
    each = output_error(new.flatten(0, 1), old.flatten(0, 1), targets.flatten()).view(8, 6)
    wanted = torch.stack([row[kept].mean() for row, kept in zip(each, MASK, strict=True)])
    torch.testing.assert_close(damage_of(output_error, new, old, targets, MASK), wanted)
    torch.testing.assert_close(damage_of(output_error, new, old, targets), each.mean(dim=1))


def test_damage_of_texts_hears_no_mask() -> None:
    new, old, targets = torch.randn(8, 3), torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)
    assert torch.equal(damage_of(divergence, new, old, targets, MASK), divergence(new, old, targets))
