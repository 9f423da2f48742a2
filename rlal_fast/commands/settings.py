"""What a command's options mean: a plain dict of them becomes a JointConfig, or a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlal_fast.errors import InputError

if TYPE_CHECKING:
    from rlal_fast.data import ImageData
    from rlal_fast.joint_config import JointConfig

Settings = dict[str, Any]
_MOST_THREADS = 1024
_LEARNING = ("transfer", "augmented", "assistant")  # options of `rlal run` on past runs


def joint_config(settings: Settings) -> JointConfig:
    """The options as a JointConfig; those that are none of its fields are left out."""
    import dataclasses

    from rlal_fast.environment_model import EnvironmentModelConfig
    from rlal_fast.joint_config import PRESETS, JointConfig
    from rlal_fast.transfer import HistoryConfig
    from rlal_fast.weights import WeightsConfig

    if settings["preset"] not in PRESETS:
        raise InputError(f"unknown preset {settings['preset']!r}: known are {', '.join(PRESETS)}")
    threads = settings["threads"]
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"threads={threads} must be in 1..{_MOST_THREADS}")
    names = {field.name for field in dataclasses.fields(JointConfig)} & set(settings)
    names -= {"history", "assistant"}  # options of these names are not these fields
    values = {name: settings[name] for name in names}
    for name in ("include", "exclude"):
        values[name] = tuple(values[name])
    preset = JointConfig(epochs=1, **PRESETS[settings["preset"]])
    for name in ("beta", "beta_growth", "bn_recalibrate", "race_share"):
        if values[name] is None:
            values[name] = getattr(preset, name)
    screening = preset.screening
    if settings["candidates"] is not None:
        screening = dataclasses.replace(screening, candidates=settings["candidates"])
    return JointConfig(
        **values,
        state=preset.state,
        screening=screening,
        weights=WeightsConfig(
            lr=settings["lr"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            batch_size=settings["batch_size"],
            amp=settings["amp"],
            capture=settings["capture"],
        ),
        sac=preset.sac,
        environment=EnvironmentModelConfig(steps_per_epoch=settings["environment_steps"]),
        history=HistoryConfig(
            **{name: settings[name] for name in _LEARNING if settings.get(name) is not None}
        ),
    )


def load_data(settings: Settings, progress: Callable[[int, int], None] | None = None) -> ImageData:
    """The data set that the options name."""
    from rlal_fast import data

    return data.load(
        settings["dataset"],
        settings["data_dir"],
        image_size=settings["image_size"],
        reward_fraction=settings["reward_fraction"],
        seed=settings["seed"],
        crop_padding=settings["crop_padding"],
        flip=settings["flip"],
        on_corrupt=settings["on_corrupt"],
        train_limit=settings["train_limit"],
        memory_limit_gib=settings["memory_limit_gib"],
        progress=progress,
    )
