"""Importance: one score per channel of a unit. The best-scored channels stay, so kept sets are nested.

Scores read statistics and weights; they change neither. `scores.IMPORTANCES` names them; a new one is a file with a
class and a line there, such as `"bias": "envs.importance.bias:BiasScore"`:

    class BiasScore(Importance):  # channels whose producers add most
        def __call__(self, unit: Unit, evidence: Evidence) -> Tensor:
            scores = torch.zeros(unit.channels, dtype=torch.float64, device=evidence.device)
            for member in unit.role("producer"):
                bias = evidence.network.get_submodule(member.module).bias
                if bias is not None:
                    scores += bias.detach().double().abs()[torch.tensor(member.positions)].sum(dim=1)
            return scores

A score that reads input moments or gradients says so (`reads_moments`, `reads_gradients`): they are computed, and
charged, only where they are needed.
"""
