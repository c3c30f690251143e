"""Principal channels: the network stays what it is, and where channels go, the least of their products is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.runs.finetuning.schedule import stages
from amc.runs.finetuning.settings import FinetuneConfig
from amc.runs.finetuning.start import sliced
from envs.compression.compress import Compressor
from envs.compression.preparation import with_turns
from envs.compression.settings import CompressionSettings
from envs.network.copies import same_output
from envs.regression.ridge import add
from envs.regression.statistics import Sampling, input_moments
from envs.space.policy import Policy, PolicyMismatch
from envs.units.anatomy import Anatomy, dissect
from envs.units.attention.decided import Decided
from envs.units.principal import SecondMoments, sides, turned, turns_of
from envs.units.units import Member, Unit

WIDTH, HEADS = 16, 4


class Attending(nn.Module):
    """Attention with biases, behind a layer that makes some inputs much larger than others."""

    def __init__(self, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        with torch.no_grad():
            self.first.weight *= torch.logspace(0.5, -1, WIDTH)[:, None]

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = (self.scores(q, k) / 2).softmax(-1) @ v
        out: Tensor = self.last(x + self.out(mixed.transpose(-3, -2).flatten(-2)))
        return out


class Rectified(Attending):
    """Something stands between queries, keys and their products."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q.relu() @ k.relu().transpose(-1, -2)


class Placed(Attending):
    """Queries meet a table of places, too."""

    def __init__(self) -> None:
        super().__init__(heads=1)
        self.table = nn.Parameter(torch.randn(6, WIDTH))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ (k + self.table).transpose(-1, -2)


class Normalized(Attending):
    """Queries of length 1: with orthogonal weights only what is no rotation changes them."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.q, self.k):
            nn.init.orthogonal_(layer.weight)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores: Tensor = 4 * q / q.norm(dim=-1, keepdim=True) @ k.transpose(-1, -2)
        return scores


class Shared(Attending):
    """All heads read the same keys and values, and nothing is written."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // HEADS) for _ in range(2))
        nn.init.zeros_(self.out.weight)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2)


class Sized(Attending):
    """Asks how many tokens there are, and has numbers in its code."""

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], HEADS, 4).transpose(1, 2)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if q.shape[2] > 1:
            return q @ k.transpose(-1, -2)
        return q @ k.transpose(-1, -2) * 0


class Around(nn.Sequential):
    """A network that such attention is a part of."""

    def __init__(self) -> None:
        super().__init__(Sized())


def built(kind: type[nn.Module] = Attending, *args: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*args).eval()


def inputs(count: int = 3) -> Tensor:
    return torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(1))


@cache
def read(kind: type[nn.Module] = Attending, *args: Any) -> Anatomy:
    return dissect(built(kind, *args), inputs()[:1], inputs(), "widths")


def compressor(
    anatomy: Anatomy, repair: str = "none", sparse: tuple[str, ...] = (), importance: str = "obs"
) -> Compressor:
    settings = CompressionSettings(repair=repair, positions=6, quick_positions=6, importance=importance)
    chunks = torch.split(inputs(64), 16)
    return Compressor(
        anatomy.network,
        anatomy.graph,
        anatomy.family,
        anatomy.units,
        chunks,
        settings,
        sparse=sparse,
        forms=anatomy.forms,
    )


def principal(anatomy: Anatomy) -> set[str]:
    return {unit.name.rpartition(".")[2] for unit in anatomy.units if unit.principal}


@pytest.mark.parametrize("heads", [1, HEADS])
def test_channels_of_attention_are_principal_and_the_network_stays_what_it_is(heads: int) -> None:
    anatomy = read(Attending, heads)
    assert {name.partition("_")[0] for name in principal(anatomy)} == {"q", "v"}
    made = compressor(anatomy)
    assert same_output(built(Attending, heads)(inputs()), made.network(inputs()), 1e-5)
    weights = [sides(unit)[0].module for unit in anatomy.units if unit.principal]
    for name in weights:
        before, after = (one.get_submodule(name).get_parameter("weight") for one in (anatomy.network, made.network))
        assert not torch.allclose(before, after)


def test_what_stands_between_the_factors_is_noticed() -> None:
    assert {name.partition("_")[0] for name in principal(read(Rectified))} == {"v"}
    assert {name.partition("_")[0] for name in principal(read(Placed))} <= {"v"}
    assert {name.partition("_")[0] for name in principal(read(Normalized))} == {"v"}


@pytest.mark.parametrize(
    ("kind", "decided"), [(Attending, "widths"), (Sized, "widths"), (Normalized, "heads"), (Shared, "heads")]
)
def test_widths_are_decided_where_all_heads_have_principal_channels(kind: type[nn.Module], decided: Decided) -> None:
    network = built(Around) if kind is Sized else built(kind)
    anatomies = [dissect(network, inputs()[:1], inputs(), how) for how in ("auto", decided)]
    first, second = ([(unit.name, unit.kind, unit.principal) for unit in one.units] for one in anatomies)
    assert first == second
    assert any(unit.kind == "heads" for unit in anatomies[0].units) == (decided == "heads")


def test_one_attention_without_principal_channels_keeps_all_heads_whole() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between, self.after = built(Attending), nn.Linear(3, 5), built(Normalized)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.after(self.between(self.before(x)))
            return out

    kinds = {unit.name: unit.kind for unit in dissect(built(Both), inputs()[:1], inputs(), "auto").units}
    assert {name: kind for name, kind in kinds.items() if kind == "heads"}.keys() == {"before.q", "after.q"}


def test_whole_heads_are_no_channels() -> None:
    anatomy = dissect(built(Shared), inputs()[:1], inputs())
    assert "heads" in [unit.kind for unit in anatomy.units]
    assert principal(anatomy) == set()


def test_a_forward_that_asks_for_sizes_is_recorded_for_each() -> None:
    anatomy = read(Around)
    made = compressor(anatomy)
    assert len(made.principal) == 2
    small: Any = made.compress(made.policy({name: WIDTH // 2 for name in made.principal})).network
    assert (small[0].resized_class, small[0].q.out_features) == (Sized, WIDTH // 2)
    x = inputs(5)
    for tokens in (6, 3, 1, 6):
        assert small(x[:, :tokens]).shape == (5, tokens, 3)
    counts = []
    for _ in range(2):  # recording is not counted
        with FlopCounterMode(display=False) as counter:
            small(x[:, :5])
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.no_grad():
        program = torch.export.export(small, (x,), strict=False).module()
        assert torch.allclose(program(x), small(x), atol=1e-6)
    whole: Any = made.compress(made.policy({})).network
    assert same_output(built(Around)(x[:, :1]), whole(x[:, :1]), 1e-5)


def test_the_first_channels_of_each_head_stay_whatever_scores_others() -> None:
    made = compressor(read(), importance="random")
    policy = made.policy({unit.name: HEADS * 2 for unit in made.units if unit.principal})
    for entry in policy.units:
        if entry.unit.principal:
            assert entry.indices == (0, 1, 4, 5, 8, 9, 12, 13)


def test_a_policy_that_counts_in_other_channels_is_refused() -> None:
    anatomy = read()
    made = compressor(anatomy)
    policy = made.policy({})
    units = tuple(replace(entry, unit=replace(entry.unit, principal=False)) for entry in policy.units)
    with pytest.raises(PolicyMismatch, match="has principal channels, and the policy its own: search again"):
        made.compress(replace(policy, units=units))


def test_stages_of_training_cut_the_channels_that_the_policy_counts_in() -> None:
    anatomy = read()
    policy = compressor(anatomy).policy({unit.name: HEADS for unit in anatomy.units if unit.principal})
    dense = policy.turned(anatomy.network)
    first = stages(FinetuneConfig(schedule="iterative", epochs=3, steps=3), policy, dense)[0]
    cut = sliced(dense, dense, policy, {}, first.kept)
    x = inputs(50)
    last = policy.apply(built())
    errors = [float((network(x) - anatomy.network(x)).detach().square().mean()) for network in (cut, last)]
    assert errors[0] < errors[1]


class Gained(nn.Linear):
    """A layer with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


WEIGHTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "normalized": nn.utils.parametrizations.weight_norm,
    "spectral": nn.utils.parametrizations.spectral_norm,
    "with a hook": nn.utils.spectral_norm,
    "with an older hook": nn.utils.weight_norm,
    "of another class": lambda layer: Gained(),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("how", WEIGHTED)
@pytest.mark.parametrize("decided", ["heads", "widths"])
def test_layers_with_weights_of_another_kind_are_left_as_they_are(how: str, decided: Decided) -> None:
    torch.manual_seed(0)
    network: Any = Attending().eval()
    for name in ("q", "k", "v", "out"):
        setattr(network, name, WEIGHTED[how](getattr(network, name)))
    network.eval()
    before = network(inputs())
    anatomy = dissect(network, inputs()[:1], inputs(), decided)
    assert principal(anatomy) == set()
    assert torch.equal(network(inputs()), before)


def test_keys_that_do_not_vary_are_no_trouble() -> None:
    network: Any = built()
    with torch.no_grad():
        network.first.weight.zero_()
    anatomy = dissect(network, inputs()[:1], inputs(), "widths")
    made = compressor(anatomy)
    assert same_output(network(inputs()), made.network(inputs()), 1e-4)
    small = made.compress(made.policy({unit.name: unit.channels // 2 for unit in made.units})).network
    assert bool(small(inputs()).isfinite().all())


def test_an_applied_policy_keeps_the_best_low_rank_product_of_the_weights() -> None:
    """Without data both sides count alike: what is left is the truncated singular value decomposition."""
    anatomy = read()
    dense: Any = built()
    queries, values = (unit for unit in anatomy.units if unit.principal)
    policy = compressor(anatomy, importance="l2").policy({queries.name: 2 * HEADS, values.name: HEADS})
    small: Any = Policy.from_json(policy.to_json()).apply(built())
    pairs = [
        (dense.q.weight, dense.k.weight, small.q.weight, small.k.weight, 2),
        (dense.out.weight.T, dense.v.weight, small.out.weight.T, small.v.weight, 1),
    ]
    for *before, first, second, rank in pairs:
        parts = zip(*(one.detach().double().chunk(HEADS) for one in (*before, first, second)), strict=True)
        for a, b, new_a, new_b in parts:
            u, s, v = torch.linalg.svd(a.T @ b, full_matrices=False)
            assert torch.allclose(new_a.T @ new_b, u[:, :rank] * s[:rank] @ v[:rank], atol=1e-4)


def test_calibration_tells_which_channels_hold_the_products() -> None:
    anatomy = read()
    made = compressor(anatomy)
    policy = made.policy({unit.name: unit.channels // 2 for unit in made.units if unit.principal})
    x = inputs(200)
    with torch.no_grad():
        errors = [
            float((network(x) - anatomy.network(x)).square().mean())
            for network in (made.compress(policy).network, policy.apply(built()))
        ]
    assert errors[0] < 0.9 * errors[1]


def test_moments_are_those_of_the_changed_network() -> None:
    anatomy = read()
    made = compressor(anatomy)
    names = ["q", "out"]
    chunks = torch.split(inputs(64), 16)
    before = input_moments(anatomy.network, names, chunks, Sampling(positions=6))
    turns = turns_of(anatomy.network, made.units)
    after = input_moments(turned(anatomy.network, made.units, turns), names, chunks, Sampling(positions=6))
    for name, sums in with_turns(before, made.units, turns).items():
        got, wanted = add(sums), add(after[name])
        assert torch.allclose(got.x, wanted.x, rtol=1e-3, atol=1e-2)
        assert got.xx is not None
        assert wanted.xx is not None
        assert torch.allclose(got.xx, wanted.xx, rtol=1e-3, atol=1e-2)


def test_layers_that_may_take_a_pattern_keep_their_channels() -> None:
    anatomy = read()
    reader = next(sides(unit)[0].module for unit in anatomy.units if unit.principal and unit.role("consumer"))
    made = compressor(anatomy, sparse=(reader,))
    assert len(made.principal) == 1
    assert torch.equal(
        made.network.get_submodule(reader).get_parameter("weight"),
        anatomy.network.get_submodule(reader).get_parameter("weight"),
    )


def test_a_side_without_weights_stays_as_it_is() -> None:
    places = tuple((channel,) for channel in range(3))
    unit = Unit(
        name="0",
        channels=3,
        granules=places,
        members=(
            Member(module="0", role="producer", positions=places),
            Member(module="1", role="consumer", positions=places),
        ),
        principal=True,
    )
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    zero, one = torch.zeros(1, 3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[None]
    turn = turns_of(network, [unit], lambda _: SecondMoments(zero, one))["0"]
    assert torch.equal(turn.forward, one)


def test_a_policy_with_principal_channels_of_other_layers_is_refused() -> None:
    anatomy = read()
    policy = compressor(anatomy).policy({})
    units = tuple(
        replace(entry, unit=replace(entry.unit, members=entry.unit.members[:1])) if entry.unit.principal else entry
        for entry in policy.units
    )
    with pytest.raises(PolicyMismatch, match="principal channels must be those of two linear layers"):
        replace(policy, units=units).apply(built())
