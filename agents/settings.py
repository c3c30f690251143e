"""What may be set of a learner. Imports neither torch nor stable-baselines3: a configuration is read without them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Algorithm = Literal["ddpg", "td3", "sac"]
Width = Annotated[int, Field(ge=1, le=2048)]


class LearningConfig(BaseModel):
    """How DDPG, TD3 and SAC learn and explore; "paper" is He et al. 2018 (AMC). Sigmas are in units of the action."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: tuple[Width, ...] = Field(
        (128, 128),
        min_length=1,
        max_length=8,
        description="widths of the hidden layers of actor and critic (paper: 300, 300)",
    )
    actor_lr: float = Field(1e-4, gt=0, description="Adam's learning rate of the actor (paper: 1e-4)")
    critic_lr: float = Field(1e-3, gt=0, description="Adam's learning rate of the critic (paper: 1e-3)")
    tau: float = Field(
        0.05, ge=0, le=1, description="step of the target networks towards the trained ones (paper: 0.01)"
    )
    gamma: float = Field(
        0.5, ge=0, le=1, description="discount per step; the final reward stands on every transition (paper: 1)"
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="transitions per gradient step (paper: 64)")
    replay_episodes: int = Field(
        40,
        ge=1,
        le=100_000,
        description="episodes kept for replay, the oldest are overwritten (paper: 2000 transitions)",
    )
    steps_per_transition: int = Field(
        1, ge=1, le=1000, description="gradient steps per transition told (AMC's code: 1)"
    )
    most_steps: int | None = Field(
        None,
        ge=1,
        description="maximum of gradient steps after one round, so that large rounds do not keep workers waiting; "
        "larger batches make up for it; left out: no bound (AMC's code)",
    )
    rank_rewards: bool = Field(
        True,
        description="learn from the normal scores of the rewards' ranks in the replay, instead of from reward less "
        "baseline (paper: false)",
    )
    baseline_decay: float = Field(
        0.95,
        ge=0,
        le=1,
        description="weight of the past in the moving-average baseline, per episode (AMC's code: 0.5 per gradient "
        "step, on batch means); unused with rank_rewards",
    )
    elite_episodes: int = Field(
        8,
        ge=1,
        description="the actor imitates that many of the best episodes in the replay (paper: none); unused with "
        "whole_critic",
    )
    imitation_steps: int = Field(
        60,
        ge=0,
        le=100_000,
        description="supervised steps per round that it does so (paper: 0); unused with whole_critic",
    )
    whole_critic: bool = Field(
        True,
        description="with starts, the actor becomes after each round the clone of what a critic of whole assignments "
        "prefers, which learns from all episodes; its gradient steps serve its own critic then, and SAC's width; not "
        "with clone_start=false or agent_from; over a range of budgets a surrogate of whole assignments proposes most "
        "episodes and the answers (paper: false)",
    )
    best_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of all episodes around whose mean that critic is fitted, 5 at least: more where rewards are "
        "of different budgets",
    )
    step_code: bool = Field(True, description="append one indicator per step to the observation (paper: false)")
    warmup_sigma: float = Field(
        0.5, ge=0, description="width of the truncated normal around 0.5 in warm-up without starts (paper: 0.5)"
    )
    warmup_start_sigma: float = Field(
        0.1, ge=0, description="its width around the best start's actions in warm-up with starts"
    )
    sigma: float = Field(0.3, ge=0, description="width around the actor in its first episode (paper: 0.5)")
    cloned_sigma: float = Field(0.1, ge=0, description="the same for an actor that was cloned from a start")
    sigma_decay: float = Field(
        0.99, gt=0, le=1, description="factor on the width, per learned episode (AMC's code: 0.95)"
    )
    sigma_floor: float = Field(0.02, ge=0, description="minimum of the width (paper: 0)")
    critic_first: bool = Field(
        True,
        description="at the end of warm-up train the critic alone, as many steps as there are transitions in the "
        "replay (paper: false)",
    )
    clone_start: bool = Field(
        True, description="with starts, the actor begins as the clone of the best one (paper: false)"
    )
    noiseless_first: bool = Field(
        True, description="after warm-up, the first episode of every round is the actor without noise (paper: false)"
    )
    along_budget: bool = Field(
        True, description="around a start or an actor, noise is drawn along the budget (paper: false)"
    )

    def changed(self, **values: Any) -> Self:
        """These settings with some values changed, checked again.

        Raises:
            ValueError: If there is no such setting, or its value is not allowed.
        """
        return type(self)(**(self.model_dump() | values))


class DDPGSettings(LearningConfig):
    """What a learner is made with: what may be set of it, and what the search's agent and warm-up say."""

    algorithm: Algorithm = Field("ddpg", description="which actor-critic of stable-baselines3 learns (paper: ddpg)")
    warmup_episodes: int = Field(
        20,
        ge=0,
        description="episodes after the starts and before learned ones; whole rounds, so that the round in which "
        "they end belongs to warm-up as a whole (paper: 100)",
    )


PAPER_SETTINGS = DDPGSettings(
    hidden=(300, 300),
    tau=0.01,
    gamma=1.0,
    replay_episodes=100,
    imitation_steps=0,
    rank_rewards=False,
    whole_critic=False,
    step_code=False,
    warmup_episodes=100,
    sigma=0.5,
    cloned_sigma=0.5,
    sigma_decay=0.95,
    sigma_floor=0.0,
    critic_first=False,
    clone_start=False,
    noiseless_first=False,
    along_budget=False,
)
"""As He et al. 2018 and, where the paper is silent, AMC's code: 100 episodes of replay."""
