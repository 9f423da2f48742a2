"""JointConfig: the settings of a joint run, and what follows from them epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from rlal_fast.agents import SACConfig
from rlal_fast.assistant import AssistantConfig
from rlal_fast.device import check_name
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.errors import InputError
from rlal_fast.kernels.cuda import PRECISIONS
from rlal_fast.screening import ScreeningConfig
from rlal_fast.transfer import HistoryConfig
from rlal_fast.walk import STATES
from rlal_fast.weights import WeightsConfig

_MOST_EPISODES = 10_000_000
_STEEPEST = 100  # of beta_growth: all of the push is in the last epochs already


@dataclass(frozen=True)
class JointConfig:
    """Settings of a joint run; None means the default named beside it (method.md §2, §4).

    Raises:
        InputError: a setting that cannot work (named).
    """

    epochs: int = 200
    """E: epochs that train the weights. 0: the weights stay as they are, only search."""
    episodes_per_epoch: int = 10  # P
    pruned_flops: float = 0.5
    search_epochs: int | None = None
    """Epochs after those that only search. None: 0, or 20 if epochs is 0."""
    warmup_epochs: int | None = None  # weights only; None: 5 % of epochs, at most 10
    random_epochs: int | None = None  # random episodes; None: 5 % of all epochs, at most 10
    episodes: int | None = None
    """Episodes in all, for an equal number whatever P is: the last epoch has what is left of them.
    None: P in each epoch."""
    finetune_epochs: int | None = None  # None: max(1, epochs / 4)
    finetune_lr: float = 0.01
    alignment: bool = True  # False: beta = 0, the ablation "w/o SR"
    beta: float | None = None  # [P] 1e-4; None: by the number of steps, see alignment.default_beta
    beta_growth: float = 0.0
    """beta's mean over the epochs is `beta`; it grows as the epoch to this power. [P] 0: it stands
    still. See alignment.beta_in."""
    epoch_embedding: bool = True  # False: no z, the ablation "w/o EE"
    agent: str = "sac"  # one of agents.AGENTS
    agent_updates: int | None = None  # per epoch; None: one per transition of an epoch
    a_max: float = 0.8
    min_width: int = 1
    round_to: int = 1
    groups: str = "internal"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    importance: str = "l1"
    bn_recalibrate: int | None = None
    """Training images whose batch norm statistics each sub-network is scored with. 0: the running
    statistics. None: 0, or where epochs is 0 as many as recalibration.image_count says."""
    structures: int = 4  # best structures that are evaluated again each epoch
    race_share: float | None = None
    """Where weights move: the share of the reward images, at least 100 of them, after which what is
    clearly behind is stopped. 1: all are scored on all images. None: 0.25, or 1 with
    bn_recalibrate, which would be paid twice."""
    evaluator: str = "auto"
    evaluator_precision: str = "fp32"
    """Of the CUDA evaluator's products: "fp32", "tf32", "fp16" or "bf16"."""
    device: str = "cpu"
    """Where the weights are trained: "cpu", "cuda", "cuda:<number>", or "auto": a GPU where there
    is one. The agent stays on the CPU."""
    seed: int = 0
    state: str = "profile"
    """What the agent sees: "profile", or "basic", the components of method.md §3 alone."""
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)
    """Which of many walked episodes are scored. For the agent "sac" alone: it has the critics."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    environment: EnvironmentModelConfig = field(default_factory=EnvironmentModelConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    """What is learned from past runs, where the trainer is given any."""
    assistant: AssistantConfig = field(default_factory=AssistantConfig)

    def __post_init__(self) -> None:
        self._check_types()
        check_name(self.device)
        if self.evaluator_precision not in PRECISIONS:
            raise InputError(
                f"evaluator_precision={self.evaluator_precision!r} must be one of "
                f"{', '.join(PRECISIONS)}"
            )
        if self.state not in STATES:
            raise InputError(f"state={self.state!r} must be one of {', '.join(STATES)}")
        for name, least in (
            ("epochs", 0),
            ("episodes_per_epoch", 1),
            ("structures", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        optional = (
            "search_epochs",
            "warmup_epochs",
            "random_epochs",
            "finetune_epochs",
            "agent_updates",
            "bn_recalibrate",
        )
        for name in optional:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name}={value} must be at least 0")
        if not 0 < self.race <= 1:
            raise InputError(f"race_share={self.race_share} must be in (0, 1]")
        beta = 0.0 if self.beta is None else self.beta
        if not (self.finetune_lr > 0 and beta >= 0):  # nan is neither
            raise InputError(
                f"finetune_lr={self.finetune_lr} must be positive, beta={self.beta} at least 0"
            )
        if not 0 <= self.beta_growth <= _STEEPEST:
            raise InputError(f"beta_growth={self.beta_growth} must be in 0..{_STEEPEST}")
        if self.total_epochs * self.episodes_per_epoch > _MOST_EPISODES:
            raise InputError(
                f"{self.total_epochs} epochs of episodes_per_epoch={self.episodes_per_epoch} are "
                f"more than {_MOST_EPISODES} episodes, which the replay could not hold"
            )
        self._check_agent()
        if self.seed >= 2**63:
            raise InputError(f"seed={self.seed} must be below 2**63, as torch's generators ask")
        if self.warmup >= self.total_epochs:
            raise InputError(
                f"warmup_epochs={self.warmup} leaves none of {self.total_epochs} epochs for "
                "episodes"
            )
        most = (self.total_epochs - self.warmup) * self.episodes_per_epoch
        if self.episodes is not None and not 0 <= most - self.episodes < self.episodes_per_epoch:
            raise InputError(
                f"episodes={self.episodes} must leave some for each epoch and none over: give "
                f"{most - self.episodes_per_epoch + 1}..{most}, or another number of epochs"
            )

    def _check_agent(self) -> None:
        if not 0 < self.a_max < 1:
            raise InputError(f"a_max={self.a_max} must be above 0 and below 1")
        if self.sac.a_max not in (SACConfig.a_max, self.a_max):
            raise InputError(
                f"sac.a_max={self.sac.a_max} is not a_max={self.a_max}, which holds for every "
                "agent: give a_max alone"
            )
        if not self.history.assistant:
            return
        needs = {
            f"agent=sac (not {self.agent})": self.agent == "sac",
            "candidates above 1": (
                self.screening.candidates > 1 or self.history.predicted_episodes > 0
            ),
            "sac.scale_rewards (off in preset paper)": self.sac.scale_rewards,
        }
        if missing := [what for what, there in needs.items() if not there]:
            raise InputError(
                "the assistant screens candidates beside SAC's critics, on their scale: it needs "
                f"{' and '.join(missing)}; or leave the assistant out"
            )

    def _check_types(self) -> None:
        """A config.yaml is edited by hand: 2.5 epochs or "yes" must not come out as a traceback."""
        kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
        for item in fields(self):
            words = str(item.type).split(" | ")
            value = getattr(self, item.name)
            if words[0] not in ("int", "float", "str", "bool") or (
                value is None and len(words) > 1
            ):
                continue
            fits = isinstance(value, kinds.get(words[0], (bool,)))
            if not fits or (isinstance(value, bool) and words[0] != "bool"):
                raise InputError(f"{item.name}={value!r} must be of type {item.type}")

    @property
    def total_epochs(self) -> int:
        """Epochs that train and epochs that only search."""
        default = 20 if self.epochs == 0 else 0
        return self.epochs + (default if self.search_epochs is None else self.search_epochs)

    @property
    def warmup(self) -> int:
        default = min(10, round(0.05 * self.epochs))
        return default if self.warmup_epochs is None else self.warmup_epochs

    @property
    def random(self) -> int:
        default = min(10, round(0.05 * self.total_epochs))
        return default if self.random_epochs is None else self.random_epochs

    @property
    def race(self) -> float:
        default = 1.0 if self.bn_recalibrate else 0.25
        return default if self.race_share is None else self.race_share

    @property
    def finetune(self) -> int:
        return max(1, self.epochs // 4) if self.finetune_epochs is None else self.finetune_epochs

    def episodes_in(self, epoch: int) -> int:
        """How many episodes an epoch has: P, but in warm-up and perhaps in the last one."""
        earlier = (epoch - self.warmup) * self.episodes_per_epoch
        if earlier < 0:
            return 0
        left = self.episodes_per_epoch if self.episodes is None else self.episodes - earlier
        return min(self.episodes_per_epoch, left)

    def phase(self, epoch: int) -> str:
        """ "warmup", "random", "policy" or (weights stand still) "search"."""
        if epoch < self.warmup:
            return "warmup"
        if epoch < self.warmup + self.random:
            return "random"
        return "policy" if epoch < self.epochs else "search"


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {  # method.md's settings, all of them [P] or its own readings
        "sac": SACConfig.paper(),
        "state": "basic",
        "screening": ScreeningConfig(candidates=1),
        "beta": 1e-4,
        "beta_growth": 0.0,
        "bn_recalibrate": 0,
        "race_share": 1.0,
    },
}
"""Fields of a JointConfig by the name of a preset."""
