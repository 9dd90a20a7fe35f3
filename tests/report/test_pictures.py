"""Pictures of views and of what an encoder makes of images, and TensorBoard's share of them."""

import io
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from ssl import heads
from ssl.augment import View
from ssl.checkpoints import run_reader, torch_file
from ssl.data.images import Images, Paths
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order
from ssl.encoders import build_encoder
from ssl.report import encoder_pictures, page, projections, view_page
from ssl.settings import config
from ssl.sources import datasets
from ssl.training.log import Metrics

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
VIEWS = [View(size=16), View(size=16, blur_prob=0.1, solarize_prob=0.5)]


def images(count=20, channels=3, side=16):
    pixels = torch.randint(256, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()
    return Images("array", torch.arange(count) % 2, ["a", "b"], resident=pixels)


# Views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_the_views_shown_are_those_that_training_sees(tmp_path, kind):
    data = images()
    if kind == "files":
        for i in range(len(data)):
            Image.fromarray(data.resident[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i:02}.png")
        paths = Paths(str(tmp_path / f"{i:02}.png") for i in range(len(data)))
        data = Images("folder", data.labels, data.classes, paths=paths)
    index, shown = view_page.views_of(data, VIEWS, MEAN, STD, seed=3, epochs=2)
    order = Order(len(data), 10, 1, 1, seed=3)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    seen = {}
    for step, batch in enumerate(training_batches(data, VIEWS, order, 0, 4, 0, torch.device("cpu"))):
        for number, x in enumerate(finish(batch, VIEWS, mean, std)):
            for i, view in zip(batch.index.tolist(), x):
                seen[i, step // 2, number] = view * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    assert shown.shape == (7, 4, 3, 16, 16)
    for row, i in enumerate(index.tolist()):
        for column in range(4):
            assert torch.allclose(shown[row, column], seen[i, column // 2, column % 2], atol=1e-6)
    _, others = view_page.views_of(data, VIEWS, MEAN, STD, seed=4, epochs=2)
    assert not torch.allclose(shown, others, atol=0.1)  # control: the seed of another run


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_page_of_views_for_any_channels(tmp_path, channels):
    path = tmp_path / "views.png"
    view_page.write_views(path, images(3, channels), VIEWS, [0.5] * channels, [0.2] * channels, 0)
    with Image.open(path) as page:
        assert page.format == "PNG" and page.width > page.height
        grey = np.asarray(page)[24:, :, 0] == np.asarray(page)[24:, :, 2]
    assert grey.all() == (channels < 3)


def test_a_page_shows_all_views_and_as_many_epochs_as_have_room(tmp_path):
    widths = []
    for count in (2, 3, 4, 16):
        view_page.write_views(tmp_path / "views.png", images(3), (VIEWS * 8)[:count], MEAN, STD, 0)
        with Image.open(tmp_path / "views.png") as page:
            widths.append(page.width // view_page.SIDE)
    assert widths == [1 + 3 * 2, 1 + 2 * 3, 1 + 4, 1 + 16]


def test_images_that_cannot_be_read_stop_no_run(tmp_path, capsys):
    data = Images("folder", torch.tensor([-1, -1]), [], paths=Paths(["/no/a.png", "/no/b.png"]))
    view_page.write_views(tmp_path / "views.png", data, VIEWS, MEAN, STD, 0)
    assert "could not be made" in capsys.readouterr().out and not (tmp_path / "views.png").exists()
    view_page.write_views(tmp_path / "no" / "views.png", images(), VIEWS, MEAN, STD, 0)
    assert "could not be made" in capsys.readouterr().out


def test_a_tile_is_whole_and_small_images_keep_their_pixels():
    x = torch.rand(3, 2, 4)
    tile = view_page.tile(x)
    assert tile.shape == (3, view_page.SIDE, view_page.SIDE)
    middle, quarter = view_page.SIDE // 2, view_page.SIDE // 4
    assert torch.equal(tile[:, middle - 1, [1, quarter + 1, 2 * quarter + 1, 3 * quarter + 1]], x[:, 0])
    assert (tile[:, : quarter - 1] == 1).all()


# An encoder's view of images ---------------------------------------------------------------


def test_pca_is_scikit_learns_up_to_the_sign():
    x = torch.randn(50, 8) * torch.arange(1.0, 9)
    points, share = projections.pca(x)
    reference = PCA(2).fit(x.double().numpy())
    assert np.allclose(points.abs(), np.abs(reference.transform(x.double().numpy())))
    assert np.allclose(share, reference.explained_variance_ratio_)
    assert torch.equal(projections.pca(x)[0], points)
    assert projections.pca(torch.ones(5, 3))[1].tolist() == [0, 0]


def test_a_map_by_neighbours_is_the_same_every_time(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) + 20 * (torch.arange(60) % 2)[:, None]
    method, points = projections.neighbour_map(x)
    again = projections.neighbour_map(x)
    assert method.startswith("t-SNE") and points.shape == (60, 2) and torch.equal(points, again[1])
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert (nearest % 2 == torch.arange(60) % 2).all()  # two clusters stay apart
    assert projections.neighbour_map(torch.ones(60, 8)) is None  # one point
    assert projections.neighbour_map(x[:9]) is None and projections.neighbour_map(torch.zeros(1001, 8)) is None
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))  # another package of this name
    assert projections.neighbour_map(x)[0] == method
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert projections.neighbour_map(x) is None


def test_umap_is_taken_where_it_is_installed(monkeypatch):
    asked = []
    package = types.ModuleType("umap")
    package.UMAP = lambda **how: asked.append(how) or types.SimpleNamespace(fit_transform=lambda x: x[:, :2])
    monkeypatch.setitem(sys.modules, "umap", package)
    x = torch.randn(20, 8)
    method, points = projections.neighbour_map(x)
    assert method == "UMAP (15 neighbours)" and asked == [{"n_neighbors": 15, "random_state": 0}]
    assert torch.allclose(points, projections.pca(x)[0])


def test_correlation_and_spectrum_are_numpys():
    z1, z2 = torch.randn(2, 40, 6)
    reference = np.corrcoef(z1.double(), z2.double(), rowvar=False)
    assert np.allclose(projections.cross_correlation(z1, z2), reference[:6, 6:])
    eigenvalues = np.linalg.eigvalsh(reference[:6, :6])[::-1]
    assert np.allclose(projections.spectrum(z1), eigenvalues)
    assert projections.spectrum(torch.randn(5, 9)).sum().item() == pytest.approx(9)  # fewer images than dimensions
    collapsed = projections.spectrum(torch.randn(30, 1) * torch.ones(1, 4))
    assert torch.allclose(collapsed, torch.tensor([4.0, 0, 0, 0], dtype=torch.float64), atol=1e-9)
    z1[:, 2] = 7.0
    assert (projections.cross_correlation(z1, z2)[2] == 0).all()


def make_run(folder, labelled=True, count=2):
    folder.mkdir()
    data = images(60)
    stored = {"images": data.resident.permute(0, 2, 3, 1).numpy()} | (
        {"labels": data.labels.numpy()} if labelled else {}
    )
    np.savez(folder / "images.npz", **stored)
    settings = {
        "method": "barlow_twins",
        "dataset": "array",
        "data_dir": str(folder / "images.npz"),
        "image_size": 16,
        "encoder": "ssl.encoders.SmallResNet",
        "encoder_kwargs": {"width": 4},
        "stem": "auto",
        "projector": "8-8",
        "projector_bias": False,
        "seed": 0,
        "mean": None,
        "std": None,
    }
    config.write_yaml(folder / "config.yaml", settings)
    views = [vars(view) for view in (VIEWS * 2)[:count]]
    (folder / "about.json").write_text(json.dumps({"views": views}))
    torch.manual_seed(0)
    encoder, width = build_encoder(settings["encoder"], 16, "auto", settings["encoder_kwargs"], 3)
    model = torch.nn.ModuleDict({"encoder": encoder, "projector": heads.projector(width, "8-8")})
    torch_file.save({"model": model.state_dict()}, folder / "checkpoint.pt")
    torch_file.save(encoder.state_dict(), folder / "encoder.pt")
    return folder


@pytest.mark.parametrize("labelled", [True, False])
def test_looking_at_a_run_leaves_its_pictures(tmp_path, labelled):
    folder = make_run(tmp_path / "run", labelled)
    encoder_pictures.make(folder, run_reader.read(folder))
    run = run_reader.read(folder)
    assert {"neighbours.png", "correlation.png"} <= set(run.pictures)
    said = run.projection
    count = len(datasets.load("array", str(folder / "images.npz"), "test")) if labelled else 30
    assert len(said["x"]) == len(said["y"]) == len(said["labels"]) == count
    assert said["classes"] == (["0", "1"] if labelled else [])
    words = page.page([run])
    assert ("Test images and their nearest" in words and f"of {count} test images" in words) == labelled
    assert ("Every second image of the set" in words and f"of {count} images" in words) == (not labelled)
    assert said["map"]["method"] in words and len(said["map"]["x"]) == len(said["map"]["y"]) == count
    assert sum(said["spectrum"]) == pytest.approx(8, abs=1e-3)


def test_of_many_views_the_first_two_are_drawn_and_all_are_aligned(tmp_path):
    two, four = (make_run(tmp_path / str(count), count=count) for count in (2, 4))
    for folder in (two, four):
        encoder_pictures.make(folder, run_reader.read(folder))
    assert (two / "correlation.png").read_bytes() == (four / "correlation.png").read_bytes()
    few, many = (json.loads((folder / "pictures.json").read_text())["reading"] for folder in (two, four))
    assert {name for name in few if few[name] != many[name]} == {"alignment"}


def test_a_collapse_that_pictures_show_is_a_verdict_however_few_the_readings(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 9, "loss": 1.0, "health_redundancy": 0.9}\n')
    encoder_pictures.make(folder, run_reader.read(folder))
    healthy = page.page([run_reader.read(folder)])
    assert "Health was measured 1 time, which is too few to judge." in healthy and "nearly one point" not in healthy
    state = torch_file.load(folder / "checkpoint.pt")
    last = state["model"]["projector.3.weight"]
    last.copy_(last[:1].clone().expand_as(last))  # all dimensions say the same
    torch_file.save(state, folder / "checkpoint.pt")
    encoder_pictures.make(folder, run_reader.read(folder))
    collapsed = page.page([run_reader.read(folder)])
    assert "embeddings of all images are nearly one point" in collapsed
    assert "(from the images of --pictures)" in collapsed
    assert "too few to judge" not in collapsed


def test_without_a_checkpoint_there_are_pictures_of_features_alone(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "checkpoint.pt").unlink()
    encoder_pictures.make(folder, run_reader.read(folder))
    assert "neighbours.png" in run_reader.read(folder).pictures
    assert "spectrum" not in run_reader.read(folder).projection and "no projector" in capsys.readouterr().out


def test_a_matrix_is_blue_above_and_red_below_zero():
    with Image.open(io.BytesIO(encoder_pictures.heat(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])))) as image:
        above, zero, below = image.getpixel((0, 0)), image.getpixel((500, 0)), image.getpixel((0, 500))
    assert zero == (255, 255, 255) and above[2] > above[0] and below[0] > below[2]


# TensorBoard ---------------------------------------------------------------------------------


@pytest.fixture
def writer(monkeypatch):
    """A stand-in for TensorBoard's writer, which notes what it is given."""

    class Writer:
        made, scalars, fails = [], [], False

        def __init__(self, folder, purge_step=None):
            self.made.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            if self.fails:
                raise OSError("No space left on device")
            self.scalars.append((name, value, step))

        def add_image(self, *_):
            pass

        def close(self):
            pass

    Writer.made, Writer.scalars = [], []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer


def test_scalars_reach_tensorboard_and_a_resumed_run_drops_what_was_beyond_it(tmp_path, writer):
    log = Metrics(tmp_path / "metrics.jsonl", 40)
    assert writer.made == []  # nothing before there is something to write
    log.write(epoch=1.5, step=50, loss=2.0, words="x", nothing=None)
    log.close()
    assert writer.made == [(str(tmp_path / "tensorboard"), 41)]
    assert writer.scalars == [("loss", 2.0, 50)]


def test_a_log_of_words_opens_no_second_file_of_events(tmp_path, writer):
    """TensorBoard would follow that one, and show no more scalars of the run."""
    log = Metrics(tmp_path / "health.jsonl", 0)
    log.write(step=50, rule="collapse", words="all images are one point")
    log.close()
    assert writer.made == []


def test_a_writer_that_fails_is_given_up_and_the_log_goes_on(tmp_path, writer, capsys):
    writer.fails = True
    log = Metrics(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        log.write(step=step, loss=1.0)
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert capsys.readouterr().out.count("No space left") == 1


def test_without_tensorboard_nothing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = Metrics(tmp_path / "metrics.jsonl", 0)
    log.write(step=1, loss=1.0)
    log.close()
    assert capsys.readouterr().out == "" and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


LOG = """
import subprocess
import sys
sys.path[:0] = [{root!r}, {folder!r}]
import ssl
ssl.__path__ = [{root!r} + "/ssl"]
from pathlib import Path
from ssl.training.tensorboard import Board
board = Board(Path({folder!r}), 0)
board.scalars(1, {{"loss": 2.0}})
board.close()
assert not board.broken
"""


def test_tensorboard_imports_no_tensorflow_which_prints(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('a page of text')")
    script = LOG.format(root=str(Path(__file__).resolve().parents[2]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len([*(tmp_path / "tensorboard").iterdir()]) == 1


def test_real_tensorboard_reads_back_what_was_logged_and_draws_nothing_at_random(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files of one second are read by the name's last number, as text: 10 before 9. A run has 0, after a rollback 1; in
    # the process of the tests nine writers may have come before.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    before = torch.get_rng_state()
    view_page.write_views(tmp_path / "views.png", images(), VIEWS, MEAN, STD, 0)
    for start in (0, 20):
        log = Metrics(tmp_path / "metrics.jsonl", start)
        for step in (start + 10, start + 20, start + 30):
            log.write(epoch=0.5, step=step, loss=float(start + step))
        log.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(10, 10), (20, 20), (30, 50), (40, 60), (50, 70)]
    assert found.Tags()["images"] == ["views"] and found.Images("views")[0].width > 100
    assert torch.equal(before, torch.get_rng_state())
