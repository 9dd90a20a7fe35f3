"""Accumulation: exact and split, beside a step on the whole batch."""

import pytest
import torch

import train
from ssl.data.worker import Batch
from ssl.encoders import SmallResNet
from ssl.training.accumulation import accumulate_exact, accumulate_split
from ssl.training.forward import Embed, whole_loss


class Dropping(SmallResNet):
    """An encoder that draws while it trains."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)


class Prepared(Embed):
    """Of batches whose views are normalised already."""

    def pixels(self, batch):
        return batch.views


DROPPING = ("test_accumulation.Dropping", {"width": 8, "stages": 1})
WIDE = ("wide_resnet_28_10", {"depth": 10, "widen_factor": 1})
VIT = (
    "torchvision.models.VisionTransformer",
    {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16, "dropout": 0.5},
)
STOCHASTIC_DEPTH = ("efficientnet_b0", {"stochastic_depth_prob": 0.5})


@pytest.mark.parametrize(
    "method, micro_batches, encoder, count",
    [
        ("barlow_twins", 2, DROPPING, 2),
        ("barlow_twins", 4, DROPPING, 2),
        ("barlow_twins", 4, DROPPING, 4),
        ("supcon", 4, DROPPING, 2),
        ("supcon", 2, DROPPING, 3),
        ("simclr", 2, WIDE, 2),
        ("simclr", 4, WIDE, 4),
        ("simclr", 4, VIT, 2),
        ("barlow_twins", 2, STOCHASTIC_DEPTH, 2),
    ],
)
def test_exact_accumulation_has_the_gradient_of_the_whole_batch_also_with_dropout(
    method, micro_batches, encoder, count
):
    settings = train.Settings(
        method=method, image_size=16, projector="12-8", sync_bn=False, encoder=encoder[0], encoder_kwargs=encoder[1]
    )
    torch.manual_seed(0)
    model = train.Model(settings).train()
    criterion = train.make_criterion(settings)
    views = [torch.randn(16, 3, 16, 16) for _ in range(count)]
    labels = torch.tensor([0, 1, 1, 2, -1, 0, 2, 2, 0, 1, -1, 2, 0, 0, 1, 1])
    batches = [
        Batch(
            list(zip(*(view.chunk(micro_batches) for view in views)))[i],
            torch.arange(16 // micro_batches),
            labels.chunk(micro_batches)[i],
            seed=i,
        )
        for i in range(micro_batches)
    ]

    embed = Prepared(model, [], ([], []), torch.device("cpu"), None)
    with torch.no_grad():  # with the graph of all of it in memory, as one would wish to do it
        before = {k: v.clone() for k, v in model.state_dict().items()}
    z = [torch.cat(view) for view in zip(*(embed(batch) for batch in batches))]
    whole = criterion(*z, labels) if method == "supcon" else criterion(*z)
    whole.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(whole_loss(embed, criterion, model, batches)[0], whole)

    model.zero_grad()
    model.load_state_dict(before)
    loss = accumulate_exact(batches, embed, criterion, lambda loss: loss.backward())
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    for p, grad in zip(model.parameters(), expected):
        assert torch.allclose(p.grad, grad, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():  # running statistics count each micro-batch once
        assert torch.allclose(value, statistics[name], rtol=1e-5), name


@pytest.mark.parametrize("count", [2, 4])
def test_split_accumulation_takes_the_labels_of_each_micro_batch(count):
    criterion = train.make_criterion(train.Settings(method="supcon"))
    z, labels = torch.randn(count, 3, 8, 6).unbind(), torch.randint(3, (3, 8))
    batches = [Batch([], torch.arange(8), of_batch, seed=i) for i, of_batch in enumerate(labels)]

    def embed(batch):
        return tuple(view[batch.seed] for view in z)

    embed.net = torch.nn.Identity()
    loss = accumulate_split(batches, embed, criterion, lambda loss: None)
    each = [criterion(*of_batch) for of_batch in zip(*z, labels)]
    assert loss.item() == pytest.approx(sum(each).item() / 3, rel=1e-6)
