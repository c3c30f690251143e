"""Banks of layer-wise fits: each consumer fitted to its dense output from the dense features it still reads.

AMC's scheme (He et al., ECCV 2018; He, Zhang & Sun, ICCV 2017). Because features are the dense network's and
channel orders are fixed, a fit depends on nothing but the layer and its kept inputs: one Gram matrix and one
nested Cholesky factor give every width exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from envs.regression.ridge import Fit, Sums, add, curvature_of, dual, factor, missing, penalty_of
from envs.regression.rows import column_indices, kernel_size, weight_rows
from envs.regression.shrinkage import UNDIVIDED_RIDGE, best_ridge
from envs.regression.statistics import Moments, gram_of
from envs.units.units import Unit


class LayerwiseBank:
    """Fits of all consumers at all widths, from input moments of the dense network.

    The fit minimizes |x W0 - x_K W|^2 / m + penalty |W - W0_K|^2 over kept columns K, with intercept if asked;
    penalty = ridge x mean diagonal of the Gram matrix of *all* columns, so that every width has the same one.
    """

    def __init__(
        self, network: nn.Module, moments: Moments, ridge: float | None = None, unseen: int | None = None
    ) -> None:
        """Holds moments; factors are computed when first needed.

        Args:
            network: The dense network.
            moments: Input moments per layer, from `input_moments`.
            ridge: Penalty relative to the mean diagonal of the Gram matrix; None: chosen for each layer.
            unseen: Fold of images that no fit sees, None: all are fitted to.
        """
        self._network = network
        self._moments = moments
        self._ridge = ridge
        self._unseen = unseen
        self._ridges: dict[tuple[str, bool, bool], float] = {}
        self._factors: dict[tuple[str, tuple[int, ...], bool], tuple[Tensor, Tensor]] = {}

    def leaving_out(self, fold: int) -> LayerwiseBank:
        """A bank whose fits do not see one fold; of undivided images the same."""
        divided = all(len(folds) > 1 for folds in self._moments.values())
        twin = LayerwiseBank(self._network, self._moments, self._ridge, fold if divided else None)
        twin._ridges = self._ridges  # chosen on all folds, whichever is left out
        return twin

    def fits(self, name: str) -> bool:
        """Whether the layer's moments are known."""
        return name in self._moments

    def fit(self, name: str, kept: Tensor, order: Sequence[int] | None, *, intercept: bool) -> Fit:
        """Weights of one layer for its kept inputs.

        Args:
            name: Layer name.
            kept: Kept positions on its input axis, ascending.
            order: All input positions by descending importance, if one unit feeds the layer; where `kept` is a
                prefix of it the nested factor is used.
            intercept: Fit an intercept as well.
        """
        module = self._network.get_submodule(name)
        ridge = self.ridge(name, order, intercept=intercept)
        weights = weight_rows(module).double()
        kernel = kernel_size(module)
        groups, per_group = len(weights), weights.shape[1] // kernel
        places = kept[kept < per_group].tolist() if groups > 1 else kept.tolist()
        columns = column_indices(places, kernel, weights.device)
        mean = self._mean(name) if intercept else weights.new_zeros(weights.shape[:2])
        gathered = self._moments[name][0].xx is not None
        if gathered and order is not None and groups == 1 and set(order[: len(places)]) == set(places):
            ranks = column_indices(_ranks(places, order), kernel, weights.device)
            new = self._nested(name, order, len(places), intercept)[:, ranks]
        elif not gathered:
            x = torch.cat([x for x, _ in self._sums(name).rows], dim=1).double() - mean[:, None, :]
            lost = x @ weights - x[:, :, columns] @ weights[:, columns]
            new = weights[:, columns] + dual(x[:, :, columns], x, lost, ridge)
        else:
            sums = self._sums(name)
            gram = gram_of(sums) - mean[:, :, None] * mean[:, None, :]
            inner = gram[:, columns[:, None], columns]
            residual = gram[:, columns] @ weights - inner @ weights[:, columns]
            lower, _ = factor(inner, penalty_of(gram, ridge))
            new = weights[:, columns] + torch.cholesky_solve(residual, lower)
        shift = torch.einsum("gn,gno->go", mean, weights) - torch.einsum("gn,gno->go", mean[:, columns], new)
        return Fit(weights=new, shift=shift)

    def compensation(self, name: str, kept: Tensor) -> Fit:
        """The weights of one layer on its kept inputs as they are, and the mean of what the others gave it.

        Args:
            name: Layer name.
            kept: Kept positions on its input axis, ascending.
        """
        module = self._network.get_submodule(name)
        weights = weight_rows(module).double()
        per_group = _inputs_per_group(module)
        places = kept[kept < per_group] if len(weights) > 1 else kept
        columns = column_indices(places.tolist(), kernel_size(module), weights.device)
        gone = self._mean(name)
        gone[:, columns] = 0
        return Fit(weights=weights[:, columns], shift=torch.einsum("gn,gno->go", gone, weights))

    def curvature(self, name: str, kept: Tensor | None, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """[G, n, n] what changing the layer's weights costs (its diagonal [G, n] where rows were kept), [G, n] means.

        Args:
            name: Layer name.
            kept: Kept positions on its input axis, None for all.
            intercept: Whether an intercept follows the weights; otherwise the means are 0.
        """
        module = self._network.get_submodule(name)
        sums = self._sums(name)
        groups = len(sums.x)
        per_group = _inputs_per_group(module)
        every = torch.arange(per_group, device=sums.x.device)
        places = every if kept is None else kept[kept < per_group] if groups > 1 else kept
        columns = column_indices(places.tolist(), sums.x.shape[1] // per_group, sums.x.device)
        mean = sums.x.double() / sums.count if intercept else torch.zeros_like(sums.x, dtype=torch.float64)
        full = curvature_of(sums, mean, self.ridge(name, None, intercept=intercept))
        return full[:, columns] if full.ndim == 2 else full[:, columns[:, None], columns], mean[:, columns]

    def ridge(self, name: str, order: Sequence[int] | None, *, intercept: bool) -> float:
        """Penalty of a layer's fits: that which serves best when half of its inputs are gone.

        Args:
            name: Layer name.
            order: All input positions by descending importance; None: every second one is taken to be gone.
            intercept: Whether an intercept is fitted.
        """
        if self._ridge is not None:
            return self._ridge
        folds = len(self._moments[name])
        if folds < 2 or _inputs_per_group(self._network.get_submodule(name)) < 2:
            return UNDIVIDED_RIDGE
        key = (name, order is None, intercept)
        if key not in self._ridges:
            self._ridges[key] = self._chosen(name, order, intercept)
        return self._ridges[key] * folds / (folds - (self._unseen is not None))  # fewer images, more shrinkage

    def _chosen(self, name: str, order: Sequence[int] | None, intercept: bool) -> float:
        module = self._network.get_submodule(name)
        folds = self._moments[name]
        per_group = _inputs_per_group(module)
        weights = weight_rows(module).double()
        places = list(range(0, per_group, 2))
        if order is not None and len(weights) == 1:
            places = sorted(order[: -(-per_group // 2)])
        columns = column_indices(places, kernel_size(module), weights.device)
        return best_ridge([missing(sums, weights, columns) for sums in folds], intercept=intercept)

    def _seen(self, name: str) -> list[Sums]:
        return [fold for index, fold in enumerate(self._moments[name]) if index != self._unseen]

    def _sums(self, name: str) -> Sums:
        return add(self._seen(name))

    def _mean(self, name: str) -> Tensor:
        """[G, n] float64 mean input."""
        seen = self._seen(name)
        total = torch.stack([sums.x.double() for sums in seen]).sum(dim=0)
        return total / sum(sums.count for sums in seen)

    def _nested(self, name: str, order: Sequence[int], width: int, intercept: bool) -> Tensor:
        """[1, width x kernel, o] fit for the first `width` inputs of `order`, in that order."""
        key = (name, tuple(order), intercept)
        if key not in self._factors:
            self._factors[key] = self._factorize(name, order, intercept)
        lower, forward = self._factors[key]
        size = width * kernel_size(self._network.get_submodule(name))
        block = lower[:, :size, :size]
        solution: Tensor = torch.linalg.solve_triangular(block.transpose(1, 2), forward[:, :size], upper=True)
        return solution

    def _factorize(self, name: str, order: Sequence[int], intercept: bool) -> tuple[Tensor, Tensor]:
        """Cholesky factor of the permuted Gram and the forward-substituted cross moments.

        The leading block of the factor is the factor of the leading block, and forward substitution of the
        first rows does not look at later ones: that is what makes one factorization serve every width.
        """
        module = self._network.get_submodule(name)
        sums = self._sums(name)
        columns = column_indices(list(order), kernel_size(module), sums.x.device)
        weights = weight_rows(module).double()[:, columns]
        gram = gram_of(sums)[:, columns[:, None], columns]
        if intercept:
            mean = (sums.x.double() / sums.count)[:, columns]
            gram = gram - mean[:, :, None] * mean[:, None, :]
        lower, penalty = factor(gram, penalty_of(gram, self.ridge(name, order, intercept=intercept)))
        cross = gram @ weights + penalty[:, None, None] * weights
        return lower, torch.linalg.solve_triangular(lower, cross, upper=False)


class Banks:
    """The fits to all calibration images, and to all but one fold; the moments are read again where they were freed."""

    def __init__(self, read: Callable[[], LayerwiseBank] | None = None, whole: LayerwiseBank | None = None) -> None:
        """Holds no fit of a fold yet.

        Args:
            read: Reads the moments anew and makes the bank of all images; None: what was freed cannot come back.
            whole: The bank of all images, where it is at hand.
        """
        self._read = read
        self._banks: dict[int | None, LayerwiseBank] = {} if whole is None else {None: whole}

    def get(self, unseen: int | None = None) -> LayerwiseBank:
        """Fits to all images, or to all but one fold.

        Raises:
            ValueError: If moments were freed that cannot be read again.
        """
        if None not in self._banks:
            if self._read is None:
                raise ValueError("layer-wise fits need input moments, but this copy, made for quick repair, has none")
            self._banks[None] = self._read()
        if unseen is not None and unseen not in self._banks:
            self._banks[unseen] = self._banks[None].leaving_out(unseen)
        return self._banks[unseen]

    def forget_folds(self) -> None:
        """Frees what fits that left out a fold have computed; it is computed again when asked for."""
        self._banks = {key: bank for key, bank in self._banks.items() if key is None}

    def clear(self) -> None:
        """Frees everything."""
        self._banks.clear()

    def whole(self) -> Banks:
        """The fits to all images alone, which cannot be read again; for workers."""
        return Banks(whole=self.get())


def input_orders(units: Sequence[Unit], orders: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Positions on a consumer's input axis by importance, for consumers that one unit alone feeds fully."""
    feeding: dict[str, list[Unit]] = {}
    for unit in units:
        for member in unit.role("consumer"):
            feeding.setdefault(member.module, []).append(unit)
    result: dict[str, list[int]] = {}
    for name, sources in feeding.items():
        if len(sources) == 1:
            member = next(m for m in sources[0].role("consumer") if m.module == name)
            result[name] = [p for channel in orders[sources[0].name] for p in member.positions[channel]]
    return result


def _ranks(places: Sequence[int], order: Sequence[int]) -> list[int]:
    rank = {place: index for index, place in enumerate(order)}
    return [rank[place] for place in places]


def _inputs_per_group(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    return int(module.in_channels) // int(module.groups)  # type: ignore[arg-type]
