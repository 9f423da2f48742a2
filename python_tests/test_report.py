"""report and plots: the numbers that reach the JSON, the page and the picture."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from rlal_fast import plots
from rlal_fast.errors import InputError
from rlal_fast.report import Report, html, write
from rlal_fast.run_folder import RunFolder

REPORT = Report(
    arch="resnet20",
    dataset="digits",
    seed=7,
    baseline_accuracy=0.9341,
    pruned_accuracy=0.9386,
    delta=0.0045,
    macs_full=40_551_168,
    macs=20_275_000,
    pruned_flops=1 - 20_275_000 / 40_551_168,
    pruned_flops_requested=0.5,
    params_full=269_722,
    params=140_001,
    widths={"layer1.0.conv1": [9, 16], "layer2.0.conv1 <b>$x$": [16, 32]},
    latency_ms={"full": {"256": 80.0, "1": 4.0}, "pruned": {"1": 2.0, "256": 50.0}},
    best_reward=0.921,
    episodes=5,
    seconds={"total": 100.0, "weights": 60.0, "episodes": 20.0, "agent": 10.0},
    evaluator="native avx512, 2 threads",
    split_sizes={"train": 900, "reward": 100, "test": 400},
    accuracy_before_finetuning=0.91,
    version="0.1.0",
    command="rlal run --out 'a & b'",
)


def joint(epoch: int, phase: str, rewards: list[float], structure: float | None) -> dict[str, Any]:
    return {
        "stage": "joint",
        "epoch": epoch,
        "phase": phase,
        "train_accuracy": 0.5 + epoch / 10,
        "reward_split_accuracy": 0.4 + epoch / 10,
        "rewards": rewards,
        "structure_reward": structure,
    }


METRICS = [
    joint(0, "warmup", [], None),
    joint(1, "random", [0.3, 0.2], 0.3),
    joint(2, "policy", [0.5, 0.4, 0.6], 0.55),
    {"stage": "finetune", "epoch": 0, "train_accuracy": 0.9, "reward_split_accuracy": None},
]


class Page(HTMLParser):
    """Text, ids and addresses of a page; complains about tags that do not match."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_json_round_trip_and_field_order() -> None:
    text = REPORT.to_json()
    assert Report.from_json(text) == REPORT
    assert list(json.loads(text)) == [field.name for field in dataclasses.fields(Report)]
    assert '"layer1.0.conv1": [9, 16]' in text


def test_from_json_names_what_does_not_fit() -> None:
    values = json.loads(REPORT.to_json())
    del values["macs"]
    values["colour"] = "red"
    with pytest.raises(InputError, match=r"missing \['macs'\], unknown \['colour'\]"):
        Report.from_json(json.dumps(values))
    for text in ("[1]", "{"):
        with pytest.raises(InputError):
            Report.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"baseline_accuracy": 93.41},
        {"pruned_flops": math.nan},
        {"best_reward": -0.1},
        {"widths": {"g": [17, 16]}},
        {"widths": {"g": [0, 16]}},
    ],
)
def test_report_refuses_percentages_and_impossible_widths(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        dataclasses.replace(REPORT, **change)


def test_curves_of_a_run() -> None:
    curves = plots.Curves.from_metrics([*METRICS[:1], joint(1, "random", [0.3, 0.2], None)])
    assert curves.structure == []
    curves = plots.Curves.from_metrics(METRICS)
    assert curves.rewards == [0.3, 0.2, 0.5, 0.4, 0.6]
    assert curves.best_so_far == [0.3, 0.3, 0.5, 0.5, 0.6]
    assert curves.structure == [(2, 0.3), (5, 0.55)]
    assert curves.episode_spans == [plots.Span("random", 1, 3), plots.Span("policy", 3, 6)]
    assert [span.phase for span in curves.epoch_spans] == [
        "warmup",
        "random",
        "policy",
        "finetune",
    ]
    assert curves.train == [0.5, 0.6, 0.7, 0.9]
    assert math.isnan(curves.held_out[3])
    assert curves.finetune_from == 3


def test_best_so_far_passes_over_missing_rewards() -> None:
    curves = plots.Curves.from_metrics([joint(0, "policy", [math.nan, 0.2, math.nan, 0.1], None)])
    assert math.isnan(curves.best_so_far[0])
    assert curves.best_so_far[1:] == [0.2, 0.2, 0.2]


def test_plots_show_the_data() -> None:
    curves = plots.Curves.from_metrics(METRICS)
    figure = Figure()
    rewards, accuracy, widths = figure.subplots(3)
    plots.draw_rewards(rewards, curves)
    lines = {line.get_label(): line for line in rewards.get_lines()}
    assert list(lines["one episode"].get_ydata()) == curves.rewards
    assert list(lines["best so far, as scored then"].get_ydata()) == curves.best_so_far
    assert list(lines["chosen structure, current weights"].get_xdata()) == [2, 5]

    plots.draw_accuracy(accuracy, curves, 0.9341, 0.9386)
    points = {line.get_label(): line.get_xydata().tolist() for line in accuracy.get_lines()}
    assert points["full, test: 93.41%"] == [[3, 0.9341]]
    assert points["pruned, test: 93.86%"] == [[4, 0.9386]]
    assert points["training images (augmented)"] == [[1, 0.5], [2, 0.6], [3, 0.7]]

    plots.draw_widths(widths, REPORT.widths)
    full, kept = widths.containers
    assert [bar.get_width() for bar in kept] == [100 * 9 / 16, 50.0]
    assert {bar.get_width() for bar in full} == {100.0}
    assert [text.get_text() for text in widths.texts] == ["9 / 16", "16 / 32"]


def test_legend_hides_nothing_and_names_each_shade_once() -> None:
    phases = ["random", "policy", "random", "policy"]
    curves = plots.Curves.from_metrics([joint(e, p, [0.5], 0.5) for e, p in enumerate(phases)])
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    plots.draw_rewards(axes, curves)
    figure.savefig(io.BytesIO(), format="png")
    legend = axes.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert words.count("random episodes") == words.count("policy episodes") == 1
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_no_two_group_names_overlap() -> None:
    widths = {f"layer{s}.{b}.conv1": [5, 16] for s in range(3) for b in range(9)}
    figure = Figure(figsize=(9, plots.widths_height(len(widths))), layout="constrained")
    axes = figure.add_subplot()
    plots.draw_widths(axes, widths)
    figure.savefig(io.BytesIO(), format="png")
    boxes = sorted(
        (label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: box.y0
    )
    assert len(boxes) == 27
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        first = plots.svg(lambda axes: axes.plot([1, 2]), width=3, height=2, label="x")
        assert dict(matplotlib.rcParams) == before
    assert first == plots.svg(lambda axes: axes.plot([1, 2]), width=3, height=2, label="x")


def test_svg_colours_follow_the_page() -> None:
    curves = plots.Curves.from_metrics(METRICS)
    text = plots.svg(lambda axes: plots.draw_rewards(axes, curves), width=9, height=4, label='a"b')
    assert text.startswith('<svg role="img" aria-label="a&quot;b" ')
    left = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r"var\(--plot-\w+, #[0-9a-f]{6}\)", "", text)))
    assert left == set()
    page = html(REPORT, METRICS)
    themed = set(re.findall(r"(--plot-\w+):", page))
    assert set(re.findall(r"var\((--plot-\w+),", page)) <= themed


def test_page_is_whole_self_contained_and_says_the_numbers() -> None:
    text = html(REPORT, METRICS, {"epochs": 4, "sac": {"alpha": 0.1}, "data_dir": None})
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for words in (
        "93.41 %",
        "93.86 %",
        "+0.45 points",
        "50.00 % asked: 50.00 %",
        "140.0 k of 269.7 k, 48.1 % fewer",
        "1.60 × batch 256: 80.0 ms → 50.0 ms",
        "Latency, batch 1 4.00 ms 2.00 ms 2.00 × as fast",
        "one seed (7)",
        "test split chose nothing",
        'rlal_fast.load("model")',
        "layer2.0.conv1 <b>$x$ 16 32 50.0 %",
        "rlal run --out 'a & b'",
        "sac.alpha 0.1 data_dir not set",
        "900 trained the weights, 100 (the reward split)",
        "everything else 10.0 s 10.0 %",
        "standard error of about 1.20 points",
        "trained on cpu",
        "Latencies are of PyTorch on the CPU.",
    ):
        assert words in page.text, words
    assert "round-to" not in page.text


def test_page_says_when_pruning_did_not_speed_up() -> None:
    slower = {"full": {"1": 1.0}, "pruned": {"1": 1.1}}
    page = Page(html(dataclasses.replace(REPORT, latency_ms=slower, delta=-0.0045), METRICS))
    assert "0.91 × batch 1" in page.text
    assert "--round-to 8" in page.text
    assert "−0.45 points" in page.text


def test_page_of_a_run_without_episodes_latency_or_fine_tuning() -> None:
    bare = dataclasses.replace(
        REPORT,
        latency_ms={},
        best_reward=None,
        episodes=0,
        accuracy_before_finetuning=None,
        seconds={},
        command=None,
    )
    page = Page(html(bare, []))
    assert "No episode was evaluated" in page.text
    for words in ("Speed-up", "Latenc", "fine-tuned, test", "Configuration", "nan"):
        assert words not in page.text, words


def test_write_and_what_a_full_disk_leaves(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"arch": "resnet20", "lr": 0.1})
    write(REPORT, METRICS, folder.path)
    assert folder.finished
    assert Report.from_json(folder.report_path.read_text()) == REPORT
    height, width, _ = imread(folder.path / "report.png").shape
    assert (width, height) == (1540, 880)
    assert "lr 0.1" in Page((folder.path / "report.html").read_text()).text

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    before = {path.name: path.read_bytes() for path in folder.path.glob("report.*")}
    (folder.path / ".report.html.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"no space left on device while writing .*report\.html"):
        write(dataclasses.replace(REPORT, seed=8), METRICS, folder.path)
    after = {path.name: path.read_bytes() for path in folder.path.glob("report.*")}
    assert after["report.html"] == before["report.html"]
    assert after["report.json"] == before["report.json"]


@pytest.mark.parametrize("groups", [1, 3, 60])
def test_picture_grows_with_the_groups(groups: int) -> None:
    curves = plots.Curves.from_metrics(METRICS)
    widths = {f"features.{g}.conv": [3, 8] for g in range(groups)}
    image = imread(io.BytesIO(plots.picture("title", curves, 0.9, 0.9, widths)))
    assert image.shape[0] == int(110 * max(8.0, 0.8 + plots.widths_height(groups)))
    assert image.min() < 0.2
    assert image[0].min() == 1.0  # nothing touches the edge
