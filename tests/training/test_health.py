"""Health: formulas against plain numpy, verdicts on made readings, and runs that health does not change."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from ssl.checkpoints import torch_file
from ssl.faultcheck.small_run import TIMES, SmallRun, make_images
from ssl.files import json_lines
from ssl.losses import BarlowTwinsLoss, InfoNCELoss, SupConLoss
from ssl.optim import parameter_groups
from ssl.training import feature_spread, health_rules
from ssl.training.health import Health
from ssl.training.log import Metrics

N, D = 96, 40


def rows(kind: str) -> torch.Tensor:
    """Rows (N, D) that are spread in a known way."""
    rng = np.random.default_rng(0)
    if kind == "collapsed":
        x = np.tile(rng.normal(size=(1, D)), (N, 1))
    elif kind == "rank 3":
        x = np.linalg.qr(rng.normal(size=(N, 4)) @ np.eye(4, 4))[0]
        x = np.linalg.qr(x - x.mean(0))[0][:, :3] @ np.linalg.qr(rng.normal(size=(D, 3)))[0].T
    elif kind == "wide":
        x = rng.normal(size=(N, D)) + 2
    elif kind == "tall":
        x = rng.normal(size=(D, N))
    else:
        x = rng.normal(size=(N, D))
    return torch.from_numpy(x)


KINDS = ["collapsed", "rank 3", "healthy", "wide", "tall"]


def numpy_rank(x: np.ndarray, eps: float = 0.0) -> float:
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + eps
    p = p[p > 1e-15]
    return float(np.exp(-(p * np.log(p)).sum()))


def numpy_sphere(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_formulas_are_those_of_plain_numpy(kind):
    x = rows(kind)
    plain = x.numpy()
    assert float(feature_spread.rankme(x)) == pytest.approx(numpy_rank(plain, 1e-7), rel=1e-4)
    if kind != "collapsed":
        assert float(feature_spread.effective_rank(x)) == pytest.approx(numpy_rank(plain - plain.mean(0)), rel=1e-6)
    ball = numpy_sphere(plain)
    pairs = [np.exp(-2 * ((ball[i] - ball[j]) ** 2).sum()) for i in range(len(ball)) for j in range(i)]
    assert float(feature_spread.uniformity(x)) == pytest.approx(np.log(np.mean(pairs)), abs=1e-9)
    assert float(feature_spread.relative_std(x)) == pytest.approx(ball.std(0).mean() * np.sqrt(x.shape[1]), abs=1e-9)
    other = x.flip(0)
    expected = ((ball - ball[::-1]) ** 2).sum(1).mean()
    assert float(feature_spread.alignment(x, other)) == pytest.approx(expected, abs=1e-9)


def test_constructed_cases_have_the_values_they_must_have():
    assert float(feature_spread.effective_rank(rows("collapsed"))) == 0
    assert float(feature_spread.rankme(rows("collapsed"))) == pytest.approx(1, abs=1e-3)
    assert float(feature_spread.uniformity(rows("collapsed"))) == pytest.approx(0, abs=1e-9)
    assert float(feature_spread.relative_std(rows("collapsed"))) == pytest.approx(0, abs=1e-6)
    assert float(feature_spread.effective_rank(rows("rank 3"))) == pytest.approx(3, rel=1e-6)
    assert float(feature_spread.effective_rank(rows("rank 3") + 5)) == pytest.approx(
        3, rel=1e-6
    )  # a mean is no direction
    many = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    assert float(feature_spread.relative_std(many)) == pytest.approx(1, abs=0.02)
    assert float(feature_spread.uniformity(many)) == pytest.approx(-4, abs=0.15)
    assert float(feature_spread.alignment(many, many)) == 0
    assert float(feature_spread.alignment(many, -many)) == pytest.approx(4)
    assert float(feature_spread.alignment(many, many.flip(0))) == pytest.approx(2, abs=0.1)
    assert float(feature_spread.effective_rank(many)) > 60


@pytest.mark.parametrize("count", [2, 3, 8])
def test_alignment_is_the_mean_over_all_pairs_of_views(count):
    views = torch.randn(count, N, D, generator=torch.Generator().manual_seed(1)).double()
    ball = views / views.norm(dim=2, keepdim=True)
    pairs = [(ball[i] - ball[j]).square().sum(1).mean() for i in range(count) for j in range(i)]
    expected = float(sum(pairs) / len(pairs))
    assert float(feature_spread.alignment(*views)) == pytest.approx(expected, rel=1e-12)
    assert float(feature_spread.alignment(*[views[0]] * count)) == 0
    assert feature_spread.geometry(views, views[0])["alignment"] == pytest.approx(expected, rel=1e-12)


def test_losses_of_unrelated_views_are_what_is_expected():
    torch.manual_seed(0)
    n, dim = 64, 32
    parts = []
    for _ in range(50):
        criterion = BarlowTwinsLoss(lambd=0.01, check=False)
        parts += [criterion(*torch.randn(views, n, dim)) for views in (2, 4)]
    expected = feature_spread.barlow_twins_of_unrelated(n, dim, 0.01)
    assert float(torch.stack(parts).mean()) == pytest.approx(expected, rel=0.01)
    one_point = torch.ones(n, dim)  # nothing is nearer than anything
    labels = torch.arange(n) % 4
    for views in (2, 3, 8):
        z = [one_point] * views
        for loss in (InfoNCELoss(0.1)(*z), SupConLoss(0.1)(*z, labels)):
            expected = feature_spread.info_nce_of_unrelated(n, views)
            assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_redundancy_is_the_variance_that_dimensions_share_beyond_chance():
    generator = torch.Generator().manual_seed(0)
    for directions, dim, expected in ((300, 300, 0.0), (4, 400, 0.25), (1, 50, 1.0)):
        z = torch.randn(2000, directions, generator=generator).repeat(1, dim // directions)
        criterion = BarlowTwinsLoss(check=False)
        criterion(z, z)
        off = criterion.parts["off_diagonal"].item() / dim
        assert feature_spread.redundancy(off, len(z), dim) == pytest.approx(expected, abs=0.01)
    assert feature_spread.redundancy(0.0, 3, 1) == -0.5  # a single dimension is like no other


# Verdicts ------------------------------------------------------------------------------

HEALTHY = {
    "representation_std": 0.5,
    "embedding_std": 0.7,
    "alignment": 0.5,
    "embedding_effective_rank": 90.0,
    "rows": 256,
    "dim": 512,
    "loss_of_unrelated": 0.4,
    "update_ratio_weights": 2e-3,
    "lr_share": 1.0,
    "data_wait": 0.02,
    "skipped": 0.0,
    "warm": 1.0,
    "redundancy": 0.05,
    "gradient_norm": 1.0,
}
SICK = {
    "dead_representation": {"representation_std": 0.0},
    "collapse": {"embedding_std": 0.01},
    "dimensional_collapse": {"embedding_effective_rank": 4.0},
    "redundant": {"redundancy": 0.7},
    "same_views": {"alignment": 0.001},
    "stuck": {"loss_of_unrelated": 0.99},
    "exploding": {"update_ratio_weights": 0.5},
    "standing_still": {"update_ratio_weights": 1e-8},
    "starving": {"data_wait": 0.8},
    "skipping": {"skipped": 0.5},
}


def test_every_rule_has_a_case_here_and_a_healthy_run_has_no_verdict():
    assert set(SICK) == {rule.name for rule in health_rules.RULES}
    assert health_rules.judge([HEALTHY] * 3, set()) == ([], [])


@pytest.mark.parametrize("name", SICK)
def test_a_rule_is_said_once_when_it_holds_and_once_when_it_ends(name):
    rule = next(rule for rule in health_rules.RULES if rule.name == name)
    story = [HEALTHY, *[HEALTHY | SICK[name]] * 5, *[HEALTHY] * 5]
    holding, said = set(), []
    for i in range(len(story)):
        begun, ended = health_rules.judge(story[: i + 1][-health_rules.MEMORY :], holding)
        said += [(i, which) for which, words in begun] + [(i, f"end of {which}") for which in ended]
        holding = holding | {which for which, _ in begun} - set(ended)
        holding -= set(ended)
    assert said == [(rule.readings, name), (5 + rule.readings, f"end of {name}")]


def test_a_single_bad_reading_or_one_within_the_warm_up_is_no_verdict():
    for name, sign in SICK.items():
        assert health_rules.judge([HEALTHY, HEALTHY, HEALTHY | sign], set()) == ([], []), name
    for name in ("stuck", "standing_still"):
        assert health_rules.judge([HEALTHY | SICK[name] | {"warm": 0.0}] * 3, set()) == ([], [])


def test_a_step_that_was_left_out_begins_and_ends_no_rule_but_skipping():
    left_out = HEALTHY | {"update_ratio_weights": 0.0, "skipped": 1.0}
    del left_out["gradient_norm"]  # it was not finite
    story = [HEALTHY | SICK["exploding"]] * 2 + [left_out] * 5 + [HEALTHY] * 3
    holding, said = set(), []
    for i in range(len(story)):
        begun, ended = health_rules.judge(story[: i + 1][-health_rules.MEMORY :], holding)
        said += [(i, which) for which, _ in begun] + [(i, f"end of {which}") for which in ended]
        holding = holding - set(ended) | {which for which, _ in begun}
    assert said == [(1, "exploding"), (3, "skipping"), (8, "end of exploding"), (8, "end of skipping")]


@pytest.mark.parametrize(
    ("sign", "said", "not_said"),
    [
        ({"update_ratio_weights": 0.5}, "weights by 50 % of their norm", "unrelated"),
        ({"loss_of_unrelated": 4.0}, "loss is 4 times that of unrelated views", "their norm"),
        ({"update_ratio_weights": 0.5, "loss_of_unrelated": None}, "weights by 50 % of their norm", "unrelated"),
        ({"update_ratio_weights": None, "loss_of_unrelated": 4.0}, "loss is 4 times", "their norm"),
    ],
)
def test_what_is_called_too_large_is(sign, said, not_said):
    reading = {name: value for name, value in (HEALTHY | sign).items() if value is not None}
    words = dict(health_rules.judge([reading] * 3, set())[0])["exploding"]
    assert said in words and not_said not in words


def test_a_value_that_is_missing_is_no_sign():
    lost = {"warm": 1.0, "gradient_norm": 1.0}
    assert health_rules.judge([lost] * 3, set()) == ([], [])


# Readings in a loop ----------------------------------------------------------------------


class Watched:
    """A small loop on noise whose health is read at every step.

    Views share only the `shared` first of their 12 numbers.
    """

    def __init__(self, folder, collapse=False, lambd=5e-3, lr=1e-3, shared=0, criterion=None):
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(12, 16), nn.Linear(16, 8)
        if collapse:
            nn.init.zeros_(self.head.weight)
        model = nn.Sequential(self.encoder, self.head)
        self.criterion = criterion or BarlowTwinsLoss(lambd, check=False)
        self.optimizer = torch.optim.SGD(parameter_groups(model, lr, lr, 0.0), lr=lr)
        self.health = Health(1, 100, 0, self.encoder, self.criterion, self.optimizer)
        self.noise = (torch.arange(12) >= shared).float()
        self.metrics, self.folder = Metrics(folder / "metrics.jsonl", 0), folder
        self.health.open(folder, 0)

    def step(self, number, rate=1.0):
        torch.manual_seed(number)
        x = torch.randn(64, 12)
        self.health.begin(number)
        other = x + torch.randn(64, 12) * self.noise
        loss = self.criterion(self.head(self.encoder(x)), self.head(self.encoder(other)))
        loss.backward()
        before = [[p.detach().clone() for p in group["params"]] for group in self.optimizer.param_groups]
        self.health.before_update()
        self.optimizer.step()
        self.health.after_update()
        self.optimizer.zero_grad()
        best = self.health.read(
            number, number / 10, self.metrics, loss=loss, norm=torch.tensor(1.0), skipped=0, data_wait=0.0
        )
        return before, best


def test_the_update_ratio_is_that_of_weights_before_and_after(tmp_path):
    watched = Watched(tmp_path)
    before, _ = watched.step(1)
    line = json_lines(tmp_path / "metrics.jsonl")[-1]
    for group, old in zip(watched.optimizer.param_groups, before):
        norm = np.sqrt(sum(float(p.square().sum()) for p in old))
        moved = np.sqrt(sum(float((p.detach() - o).square().sum()) for p, o in zip(group["params"], old)))
        assert line[f"health_weight_norm_{group['name']}"] == pytest.approx(norm, rel=1e-4)
        assert line[f"health_update_ratio_{group['name']}"] == pytest.approx(moved / norm, rel=1e-3)
    assert all(key in ("epoch", "step") or key.startswith("health_") for key in line)


def test_a_collapsed_loop_is_called_that_and_keeps_no_best_encoder(tmp_path, capsys):
    watched = Watched(tmp_path, collapse=True)
    best = [watched.step(number)[1] for number in range(1, 21)]
    said = json_lines(tmp_path / "health.jsonl")
    assert [(line["step"], line["rule"]) for line in said if line["rule"] == "collapse"] == [(2, "collapse")]
    assert not any(best) and "collapse" in watched.health.note()
    assert "health, step 2: collapse" in capsys.readouterr().out
    control = Watched(tmp_path)
    best = [control.step(number)[1] for number in range(1, 21)]
    assert any(best) and not control.health.note()
    capsys.readouterr()
    control.health.sum_up()
    assert "nothing wrong (20 readings" in capsys.readouterr().out
    watched.health.sum_up()
    first, *others = capsys.readouterr().out.splitlines()
    assert f"{len(others)} things wrong (20 readings" in first and len(others) == len(watched.health.holding)
    assert any(line.strip().startswith("dimensional collapse: embeddings use 0 of 8") for line in others)


class Distance(nn.Module):
    """A loss of somebody else: it has parts of its own, and nobody knows what to expect of it."""

    def forward(self, z1, z2):
        self.parts = {"distance": (z1 - z2).square().mean()}
        return self.parts["distance"]


def test_a_loss_that_health_does_not_know_is_measured_all_the_same(tmp_path):
    watched = Watched(tmp_path, criterion=Distance())
    best = [watched.step(number)[1] for number in range(1, 9)]
    line = json_lines(tmp_path / "metrics.jsonl")[-1]
    assert line["health_embedding_rankme"] > 1 and "health_loss_of_unrelated" not in line
    assert not any(best)  # the score is the share of that loss


def test_without_its_second_term_the_loss_makes_all_dimensions_one_and_that_is_said(tmp_path):
    said = {}
    for lambd in (0.0, 0.1):
        watched = Watched(tmp_path, lambd=lambd, lr=0.05, shared=2)
        for number in range(1, 101):
            watched.step(number)
        said[lambd] = watched.health.holding, json_lines(tmp_path / "metrics.jsonl")[-1]["health_redundancy"]
    assert "redundant" in said[0.0][0] and said[0.0][1] > 0.25
    assert "redundant" not in said[0.1][0] and said[0.1][1] < 0.25


@pytest.mark.parametrize(("steps", "every"), [(4, 1), (100, 5), (312, 15), (10**6, 100)])
def test_a_run_has_twenty_readings_or_one_each_hundred_steps(steps, every):
    nothing = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(parameter_groups(nothing, 1e-3, 1e-3, 0.0), lr=1e-3)
    assert Health("auto", steps, 0, nothing, BarlowTwinsLoss(), optimizer).every == every


def test_too_few_readings_are_not_called_healthy(tmp_path, capsys):
    for collapse, words in ((False, "too few readings to judge (2 readings"), (True, "1 thing wrong (2 readings")):
        watched = Watched(tmp_path, collapse=collapse)
        for number in (1, 2):
            watched.step(number)
        capsys.readouterr()
        watched.health.sum_up()
        assert words in capsys.readouterr().out


def test_health_known_to_a_checkpoint_goes_on_as_if_nothing_had_been(tmp_path):
    whole = Watched(tmp_path)
    for number in range(1, 21):
        whole.step(number)
    first = Watched(tmp_path)
    for number in range(1, 8):
        first.step(number)
    state = json.loads(json.dumps(first.health.state_dict()))
    for number in range(8, 11):  # lost
        first.step(number)
    first = Watched(tmp_path)
    for number in range(1, 8):
        first.step(number)
    first.health.load_state_dict({})
    first.health.load_state_dict(state)
    for number in range(8, 21):
        first.step(number)
    assert first.health.state_dict() == whole.health.state_dict() and whole.health.best


# Whole runs --------------------------------------------------------------------------------


def without_times(path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in json_lines(path)]


def learnt(folder) -> dict[str, torch.Tensor]:
    state = torch_file.load(folder / "checkpoint.pt")
    return {f"model {k}": v for k, v in state["model"].items()} | {
        f"optimizer {n} {k}": torch.as_tensor(v)
        for n, values in state["optimizer"]["state"].items()
        for k, v in values.items()
    }


OPTIONS = {"health_every": 2, "accumulate": 2, "max_steps": 16, "keep_checkpoints": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def watched_run(images, tmp_path_factory):
    run = SmallRun(tmp_path_factory.mktemp("runs") / "watched", images, 2, OPTIONS)
    assert run.finish() == 0, run.printed()
    return run


def test_training_is_the_same_to_the_bit_with_and_without_health(watched_run, images, tmp_path):
    plain = SmallRun(tmp_path / "plain", images, 2, OPTIONS | {"health_every": "null"})
    assert plain.finish() == 0, plain.printed()
    ours, theirs = learnt(watched_run.folder), learnt(plain.folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not [name for name in os.listdir(plain.folder) if "best" in name]
    lines = json_lines(watched_run.folder / "metrics.jsonl")
    read = [line["step"] for line in lines if "health_embedding_effective_rank" in line]
    assert read == list(range(2, 17, 2))


def test_a_run_killed_after_its_last_checkpoint_ends_with_the_same_health_and_best(watched_run, images, tmp_path):
    again = SmallRun(tmp_path / "again", images, 2, OPTIONS)
    shutil.copytree(watched_run.folder, again.folder)
    (again.folder / "checkpoint.pt").unlink()  # steps 15 and 12 were not saved yet; what is beside them was
    (again.folder / "checkpoint.1.pt").unlink()
    (again.folder / "checkpoint.2.pt").rename(again.folder / "checkpoint.pt")
    (again.folder / "encoder_best.pt").write_bytes(b"of a step that is lost")
    (again.folder / "best.json").write_text('{"step": 14}')
    (again.folder / "health.jsonl").open("a").write(json.dumps({"step": 14, "rule": "x", "words": "lost"}) + "\n")
    assert again.finish() == 0, again.printed()
    for name in ("metrics.jsonl", "health.jsonl"):
        assert without_times(again.folder / name) == without_times(watched_run.folder / name)
    best = json.loads((again.folder / "best.json").read_text())
    assert best == json.loads((watched_run.folder / "best.json").read_text())
    assert set(best) == {"step", "epoch", "chosen_by", "value"}
    ours = torch.load(watched_run.folder / "encoder_best.pt", weights_only=True)
    assert ours.keys() == torch.load(watched_run.folder / "encoder.pt", weights_only=True).keys()
    if best["step"] > 12:
        theirs = torch.load(again.folder / "encoder_best.pt", weights_only=True)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
