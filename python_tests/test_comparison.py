"""comparison/: what its folder keeps, and the figures of its table and pictures, by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rlal_fast import comparison_plots
from rlal_fast.comparison import ResultsFolder, Row, report, summarise, tables
from rlal_fast.comparison.summary import course, evaluations_to, mean_course
from rlal_fast.errors import InputError

SETTINGS = {
    "arch": "resnet8",
    "dataset": "digits",
    "evaluations": 4,
    "epochs": 0,
    "reward_images": 50,
    "bn_recalibrate": 0,
    "contenders": {},
}


def row(agent: str, seed: int, rewards: Sequence[Sequence[float]], **changes: Any) -> Row:
    """A finished run on standing weights; its test accuracy is its best reward less a tenth."""
    flat = [reward for part in rewards for reward in part]
    so_far = [max(flat[: sum(map(len, rewards[: n + 1]))]) for n in range(len(rewards))]
    made = Row(
        agent=agent,
        pruned_flops=0.5,
        episodes_per_epoch=2,
        seed=seed,
        evaluations=len(flat),
        best_reward=max(flat),
        test_accuracy=max(flat) - 0.1,
        widths=[3, 4],
        pruned_flops_reached=0.51,
        rewards=[list(part) for part in rewards],
        structure_rewards=list(so_far),
        full_accuracies=[0.9] * len(rewards),
        seconds={"total": 2.0 + seed, "weights": 0.0, "episodes": 1.0, "agent": 1.0},
        evaluator="native",
        version="0",
        commit=None,
    )
    return replace(made, **changes)


ROWS = [
    row("uniform", 0, [[0.25]], episodes_per_epoch=1),
    row("random", 0, [[0.1, 0.3], [0.2, 0.4]]),
    row("random", 1, [[0.2, 0.6], [0.5, 0.1]]),
    row("sac", 0, [[0.1, 0.3], [0.5, 0.2]]),
    row("sac", 1, [[0.1, 0.3], [0.4, 0.2]]),
    row("sac", 2, [[0.6, 0.3], [0.7, 0.7]]),
]


# -- the folder ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ResultsFolder]:
    with ResultsFolder(tmp_path / "results") as folder:
        folder.share(SETTINGS)
        yield folder


def test_a_torn_line_is_left_out_and_rows_go_on(
    folder: ResultsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (0, 1):
        folder.append(ROWS[number])
    whole = folder.results_path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[1])):
        caplog.clear()
        folder.results_path.write_bytes(whole[: -cut - 1])
        assert folder.rows() == ROWS[:1]
        folder.append(ROWS[1])
        folder.append(ROWS[2])
        assert folder.rows() == ROWS[:3]
    assert caplog.messages == []  # said once for this line
    ResultsFolder(folder.path).rows()
    folder.results_path.write_bytes(whole[:-1])  # only the end of the line is missing
    caplog.clear()
    assert folder.rows() == ROWS[:2]
    folder.append(ROWS[2])
    assert folder.rows() == ROWS[:3]
    assert caplog.messages == []


def test_of_two_rows_of_one_run_the_first_counts(folder: ResultsFolder) -> None:
    folder.append(ROWS[1])
    folder.append(replace(ROWS[1], best_reward=0.9))
    assert folder.rows() == ROWS[1:2]


def test_a_row_of_another_version_is_one_line(folder: ResultsFolder) -> None:
    strange = asdict(ROWS[0])
    del strange["rewards"]
    folder.results_path.write_text(json.dumps(strange) + "\n")
    with pytest.raises(InputError, match=r"line 1 lacks rewards: .* another version"):
        folder.rows()


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"arch": "resnet20"}, "arch"), ({"evaluations": 5, "epochs": 3}, "evaluations")],
)
def test_other_settings_are_refused(
    folder: ResultsFolder, changes: dict[str, Any], name: str
) -> None:
    folder.share(SETTINGS)
    with pytest.raises(InputError, match=rf"compares with {name}={SETTINGS[name]}, not "):
        folder.share({**SETTINGS, **changes})
    with pytest.raises(InputError, match="compares with new=None, not 1"):
        folder.share({**SETTINGS, "new": 1})


def test_contenders_join_and_keep_their_own_settings(folder: ResultsFolder) -> None:
    folder.share({**SETTINGS, "contenders": {"sac": {"critics": 5}}})
    folder.share({**SETTINGS, "contenders": {"random": {}}})
    assert folder.settings() == {**SETTINGS, "contenders": {"sac": {"critics": 5}, "random": {}}}
    with pytest.raises(InputError, match=r"compares with contenders\.sac\.critics=5, not 2"):
        folder.share({**SETTINGS, "contenders": {"sac": {"critics": 2}}})


# -- the table -------------------------------------------------------------------------------------


def test_evaluations_until_a_level() -> None:
    points = course(ROWS[1], joint=False)
    assert points == [(1, 0.1), (2, 0.3), (3, 0.3), (4, 0.4)]
    assert [evaluations_to(level, points) for level in (0.05, 0.3, 0.31, 0.4, 0.41)] == [
        *(1, 2, 4, 4),
        None,
    ]
    moving = replace(ROWS[1], rewards=[[], [0.1, 0.3]], structure_rewards=[None, 0.2])
    assert course(moving, joint=True) == [(2, 0.2)]
    later = replace(moving, rewards=[[], [0.1, 0.3], [0.2]], structure_rewards=[None, 0.4, 0.5])
    assert mean_course([moving, later], joint=True) == [(2, pytest.approx(0.3))]


def test_the_figures_by_hand() -> None:
    uniform, random, sac = summarise(ROWS[::-1], joint=False)
    assert [line.agent for line in (uniform, random, sac)] == ["uniform", "random", "sac"]
    for line in (uniform, random, sac):  # P does not change random search
        assert line.level == pytest.approx(0.5)  # mean of 0.4 and 0.6
    assert summarise(ROWS, joint=True)[0].level is None  # in joint training it does
    assert random.bests == {0: 0.4, 1: 0.6}
    assert random.best_mean == pytest.approx(0.5)
    assert random.best_deviation == pytest.approx(0.02**0.5)
    assert random.mean_of_all == pytest.approx(2.4 / 8)
    assert (random.reached, random.evaluations_to_level) == (1, 2)
    assert random.seconds == pytest.approx(2.5)
    assert random.rl_share == pytest.approx((2 / 2 + 2 / 3) / 2)
    assert sac.bests == {0: 0.5, 1: 0.4, 2: 0.7}
    assert sac.best_mean == pytest.approx(1.6 / 3)
    assert sac.best_deviation == pytest.approx(((0.16 / 3) * 0.4375) ** 0.5)
    assert sac.test_mean == pytest.approx(1.3 / 3)
    assert (sac.reached, sac.evaluations_to_level) == (2, pytest.approx((3 + 1) / 2))
    assert (uniform.best_deviation, uniform.evaluations) == (None, 1)
    assert [(line.mean_to_level, line.speed_up) for line in (uniform, random, sac)] == [
        (None, None),
        (4, 1.0),
        (3, pytest.approx(4 / 3)),
    ]
    (never,) = summarise(ROWS[3:5], joint=False, level=0.6)
    assert (never.mean_to_level, never.speed_up) == (None, None)
    (late,) = summarise(ROWS[3:5], joint=False, level=0.45)
    assert (late.mean_to_level, late.speed_up, late.reached) == (3, None, 1)
    assert (never.reached, never.evaluations_to_level, never.level) == (0, None, 0.6)


def test_one_sub_network_gives_the_level_whatever_p_is() -> None:
    uniform, random, sac = summarise(ROWS, joint=False, level_of="uniform")
    assert [line.level for line in (uniform, random, sac)] == [0.25] * 3
    assert (uniform.mean_to_level, sac.mean_to_level) == (1, 1)


def test_a_level_of_somebody_who_is_not_there_is_refused(folder: ResultsFolder) -> None:
    for found in ROWS[1:]:
        folder.append(found)
    with pytest.raises(InputError, match=r"uniform's reward, .* must be one of random, sac"):
        report.write(folder, level_of="uniform")
    assert not (folder.path / "table.md").exists()


def test_damaged_settings_are_one_line(folder: ResultsFolder) -> None:
    folder.append(ROWS[1])
    folder.settings_path.write_text('{"arch": "resnet8"}')
    for call in (lambda: report.write(folder), lambda: folder.share(SETTINGS)):
        with pytest.raises(InputError, match=r"settings\.json lacks bn_recalibrate, contenders, "):
            call()


def test_the_table_says_who_never_arrives() -> None:
    text = tables.markdown(SETTINGS, summarise(ROWS, joint=False), None)
    heading = "# resnet8 on digits: 4 evaluations on weights that stand still, 50 reward images"
    assert text.startswith(heading + "\n")
    text = tables.markdown(SETTINGS | {"bn_recalibrate": 9}, summarise(ROWS, joint=False), None)
    assert text.startswith(heading + " (batch norm of 9)\n")
    assert "with batch norm statistics of 9 training images" in text
    assert "## 50 % of the FLOPs pruned\n\nLevel: 50.00 %.\n" in text
    assert "| random | 2 | 4 | 2 | 50.00 ± 14.14 | 0: 40.00, 1: 60.00 |" in text
    assert "| 2 (2 of 3) | 3 (1.3x) | 3.0 |" in text
    assert (
        "| uniform | 1 | 1 | 1 | 25.00 | 0: 25.00 | 15.00 | 25.00 | never (0 of 1) | never |"
        in text
    )
    text = tables.markdown(SETTINGS, summarise(ROWS, joint=False, level=0.99), 0.99)
    assert "Level: 99.00 %." in text
    assert "never (0 of 3)" in text
    assert "for the search" not in text


def test_the_table_of_joint_training_says_what_rl_took() -> None:
    joint = {**SETTINGS, "evaluations": None, "epochs": 2}
    text = tables.markdown(joint, summarise(ROWS, joint=True), None)
    assert "| seconds | of them for the search |" in text
    assert "| 2.5 | 83.3 % |" in text
    assert "Seconds: without fine-tuning" in text


def test_pictures_show_every_course() -> None:
    courses = report.courses(ROWS, joint=False)
    uniform, random, sac = courses
    assert uniform.constant
    assert sac.at == (1, 2, 3, 4)
    assert sac.mean() == pytest.approx([0.8 / 3, 1.2 / 3, 1.6 / 3, 1.6 / 3])
    assert sac.low() == [0.1, 0.3, 0.4, 0.4]
    assert random.high() == [0.2, 0.6, 0.6, 0.6]
    panel = comparison_plots.by_evaluations(courses, "title", "reward").axes[0]
    assert panel.get_title() == "50 % of the FLOPs pruned"
    assert [line.get_label() for line in panel.lines] == ["uniform", "random", "sac"]
    assert list(panel.lines[2].get_ydata()) == sac.mean()
    of_two = [*ROWS, *(replace(found, episodes_per_epoch=4) for found in ROWS[1:])]
    courses = [c for c in report.courses(of_two, joint=False, by_epochs=True) if c.agent == "sac"]
    panel = comparison_plots.by_epochs(courses, "title", "reward").axes[0]
    assert [line.get_label() for line in panel.lines] == ["sac, P = 2", "sac, P = 4"]
