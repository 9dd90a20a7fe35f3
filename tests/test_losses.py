"""The losses equal their formulas written out, in value and gradient."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ssl.losses import BarlowTwinsLoss, InfoNCELoss, SupConLoss, barlow_twins, cheaper_form, info_nce, sup_con

FORMS = ("gram", "cross", "auto")
VIEWS = (2, 3, 4, 8)


def views(n, d, seed=0, count=2):
    """Related views with offsets and scales, as embeddings have them."""
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n, d, generator=generator)
    others = [z1 + 0.7 * torch.randn(n, d, generator=generator) for _ in range(count - 1)]
    scale = 0.5 + torch.rand(d, generator=generator)
    return z1 * scale + 0.3, *(z * scale - 0.2 * i for i, z in enumerate(others, 1))


def plain_barlow(*views, lambd=5e-3):
    """Zbontar et al. 2021, eq. 1, with whole D×D matrices; the mean over all pairs. Returns (loss, on, off)."""
    z = [(z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in views]
    parts = []
    for a, b in itertools.combinations(z, 2):
        c = a.T @ b / len(a)
        diagonal = torch.eye(c.shape[0], dtype=torch.bool)
        parts.append(torch.stack([(c[diagonal] - 1).square().sum(), c[~diagonal].square().sum()]))
    on, off = torch.stack(parts).mean(0)
    return on + lambd * off, on, off


def plain_info_nce(z1, z2, temperature):
    """Cross-entropy over the whole (2N, 2N) matrix. Returns (loss, scores, target)."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    n = len(z1)
    target = torch.cat([torch.arange(n) + n, torch.arange(n)])
    return F.cross_entropy(scores, target), scores, target


def plain_sup_con(*views, labels, temperature):
    """Khosla et al. 2020, eq. 2, anchor by anchor; an image labelled -1 has its other views alone."""
    z = F.normalize(torch.cat(views), dim=1)
    n = len(labels)
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        label = labels[i % n]
        positives = [j for j in others if j % n == i % n or (label >= 0 and labels[j % n] == label)]
        scores = z[others] @ z[i] / temperature
        losses.append(scores.logsumexp(0) - (z[positives] @ z[i] / temperature).mean())
    return torch.stack(losses).mean()


def value_and_gradients(loss, *views):
    views = [z.detach().requires_grad_() for z in views]
    value = loss(*views)
    value.backward()
    return value.detach(), *(z.grad for z in views)


def assert_same(got, expected, tolerance):
    """Relative agreement of each tensor as a whole (norm of the difference)."""
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = ours.double(), theirs.double()
        assert torch.isfinite(ours).all()
        error, scale = (ours - theirs).norm(), theirs.norm()
        assert error <= tolerance * scale, f"relative error {error / scale:.1e} > {tolerance:.0e}"


# Barlow Twins -----------------------------------------------------------------

SIZES = [(8, 1), (8, 3), (8, 500), (33, 33), (64, 65), (100, 100), (300, 2), (300, 257), (300, 500)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, d", SIZES)
@pytest.mark.parametrize("lambd", [5e-3, 1.0])
@pytest.mark.parametrize("count", VIEWS)
def test_barlow_is_the_plain_formula_in_value_and_gradient(n, d, lambd, form, count):
    z = views(n, d, count=count)
    ours = value_and_gradients(lambda *z: barlow_twins(*z, lambd=lambd, form=form)[0], *z)
    plain = value_and_gradients(lambda *z: plain_barlow(*z, lambd=lambd)[0], *(x.double() for x in z))
    # for D = 1 'gram' finds the absent off-diagonal as a difference of two ones
    assert ours[0].item() == pytest.approx(plain[0].item(), rel=1e-5, abs=5e-7 * lambd)
    assert_same(ours[1:], plain[1:], 1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("d", [1, 7])
@pytest.mark.parametrize("count", VIEWS)
def test_barlow_of_two_samples(d, form, count):
    # The variance of two samples leaves a gradient of nothing but eps, which float32 could not give.
    z = views(2, d, count=count)
    ours = value_and_gradients(lambda *z: barlow_twins(*z, form=form)[0], *z)
    plain = value_and_gradients(lambda *z: plain_barlow(*z)[0], *(x.double() for x in z))
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert_same(ours, plain, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_barlow_reads_any_memory_layout(form):
    z1, z2 = views(24, 40)
    expected = value_and_gradients(lambda a, b: plain_barlow(a, b)[0], z1.double(), z2.double())
    wide = torch.zeros(48, 80)
    wide[::2, ::2] = z1
    strided, transposed = wide[::2, ::2], z2.T.contiguous().T
    assert not strided.is_contiguous() and not transposed.is_contiguous()
    ours = value_and_gradients(lambda a, b: barlow_twins(a, b, form=form)[0], strided, transposed)
    assert_same(ours, expected, 1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 5])
def test_barlow_computes_low_precision_input_in_float32(dtype, form, count):
    z = [x.to(dtype) for x in views(40, 30, count=count)]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the loss steps out of it
        ours = value_and_gradients(lambda *z: barlow_twins(*z, form=form)[0], *z)
    plain = value_and_gradients(lambda *z: plain_barlow(*z)[0], *(x.double() for x in z))
    assert ours[0].dtype == torch.float32 and all(grad.dtype == dtype for grad in ours[1:])
    assert_same(ours[:1], plain[:1], 1e-5)
    assert_same(ours[1:], plain[1:], torch.finfo(dtype).eps)


@pytest.mark.parametrize("form", FORMS)
def test_a_grad_scaler_saves_small_float16_gradients(form):
    z1, _ = views(256, 64)
    z2 = z1 + 1e-3 * views(256, 64, seed=1)[0]  # nearly trained: gradients near 1e-7
    z1, z2 = z1.half(), z2.half()
    scale = 2.0**16
    _, grad, _ = value_and_gradients(lambda a, b: scale * barlow_twins(a, b, lambd=1e-4, form=form)[0], z1, z2)
    _, expected, _ = value_and_gradients(lambda a, b: plain_barlow(a, b, lambd=1e-4)[0], z1.double(), z2.double())
    assert_same([grad.double() / scale], [expected], 1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_barlow_of_constant_features_is_finite(form):
    z1, z2 = views(16, 12)
    z1[:, 3] = 2.5
    z2[:, 3] = -1.0
    z2[:, 5] = 0.0
    ours = value_and_gradients(lambda a, b: barlow_twins(a, b, form=form)[0], z1, z2)
    plain = value_and_gradients(lambda a, b: plain_barlow(a, b)[0], z1.double(), z2.double())
    assert_same(ours[:1], plain[:1], 1e-5)
    assert all(torch.isfinite(grad).all() for grad in ours[1:])


@pytest.mark.parametrize("form", FORMS)
def test_barlow_does_not_see_scale_and_offset_of_a_feature(form):
    z1, z2 = views(64, 20)
    moved = z1 * torch.linspace(2.0, 9.0, 20) + torch.linspace(-3.0, 3.0, 20)
    # eps 1e-5 beside variances near 1 is the only difference
    torch.testing.assert_close(
        barlow_twins(moved, z2, form=form)[0], barlow_twins(z1, z2, form=form)[0], rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (3, 1, 0, 2), (7, 2, 5, 0, 1, 6, 4, 3)])
def test_barlow_does_not_see_the_order_of_its_views(form, order):
    z = views(50, 30, count=len(order))
    loss, *grads = value_and_gradients(lambda *z: barlow_twins(*z, form=form)[0], *z)
    moved, *moved_grads = value_and_gradients(lambda *z: barlow_twins(*z, form=form)[0], *(z[i] for i in order))
    assert_same((moved, *moved_grads), (loss, *(grads[i] for i in order)), 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_barlow_is_zero_for_identical_views_and_lambda_zero(form):
    z, _ = views(60, 25)
    assert barlow_twins(z, z, lambd=0.0, form=form)[0] < 1e-7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", VIEWS)
def test_barlow_parts_sum_up_and_carry_no_gradient(form, count):
    z = views(40, 60, count=count)
    z[0].requires_grad_()
    loss, on, off = barlow_twins(*z, lambd=0.02, form=form)
    assert_same((on, off), plain_barlow(*(x.detach().double() for x in z))[1:], 1e-5)
    torch.testing.assert_close(loss, on + 0.02 * off)
    assert loss.requires_grad and not on.requires_grad and not off.requires_grad


def test_loss_scale_multiplies_value_and_gradient_but_not_the_parts():
    z1, z2 = views(30, 20)
    whole, part = BarlowTwinsLoss(lambd=0.02), BarlowTwinsLoss(lambd=0.02, loss_scale=1 / 32)
    expected = [x / 32 for x in value_and_gradients(whole, z1, z2)]
    assert_same(value_and_gradients(part, z1, z2), expected, 1e-6)
    assert part.parts == whole.parts and set(part.parts) == {"on_diagonal", "off_diagonal"}


def test_auto_takes_gram_for_few_samples_and_cross_for_many():
    assert cheaper_form(256, 8192) == "gram"
    assert cheaper_form(8192, 256) == "cross"
    # 2·8·N²·D multiplications against 28·3·N·D²: equal at N = 5.25 D
    assert cheaper_form(1340, 256, views=8) == "gram" and cheaper_form(1350, 256, views=8) == "cross"


@pytest.mark.parametrize("wants", [(2, 1), (2, 0), (5, 0), (5, 3)])
def test_barlow_gradient_arrives_where_only_one_view_wants_it(wants):
    count, which = wants
    z = views(20, 30, count=count)
    expected = value_and_gradients(lambda *z: plain_barlow(*z)[0], *z)[1 + which]
    z[which].requires_grad_()
    barlow_twins(*z)[0].backward()
    assert_same([z[which].grad], [expected], 1e-5)


def test_two_views_have_the_bits_of_their_own_products():
    """Without sums over views: the products are those of the pair, operation by operation."""
    z1, z2 = views(300, 400)
    both = torch.cat([z1, z2], dim=1)
    both, _, scale = torch.native_batch_norm(both - both.mean(0), *[None] * 4, True, 0.0, 1e-5)
    (a, b), scale = both.chunk(2, dim=1), scale.chunk(2)
    rows_a, rows_b, c = a @ a.T, b @ b.T, (a * b).mean(0)
    g1, g2 = rows_b @ a, rows_a @ b
    products = [torch.einsum("nm,nm->n", rows_a, rows_b).double().sum()[None], (g1 * a).sum(0), (g2 * b).sum(0)]
    squares, *means = (torch.cat(products) / 300**2).split([1, 400, 400])
    d = 2 * (c - 1) - 2 * 0.02 * c
    expected = []
    for own, other, grad, mean, s in ((a, b, g1, means[0], scale[0]), (b, a, g2, means[1], scale[1])):
        grad = grad * (2 * 0.02 / 300**2 * s)
        grad.addcmul_(other, d * s / 300).addcmul_(own, (2 * 0.02 * mean.float() + d * c) * s / 300, value=-1)
        expected.append(grad)
    on, off = (c - 1).square().sum(), (squares[0] - c.double().square().sum()).float()
    ours = value_and_gradients(lambda a, b: barlow_twins(a, b, lambd=0.02, form="gram")[0], z1, z2)
    assert all(map(torch.equal, ours, (on + 0.02 * off, *expected)))


# InfoNCE ----------------------------------------------------------------------


@pytest.mark.parametrize("n, d", [(2, 1), (2, 16), (17, 8), (64, 32)])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("block", [1, 7, 34, 1000])
def test_info_nce_of_two_views_is_cross_entropy_written_out(n, d, temperature, block):
    z1, z2 = views(n, d)
    ours = value_and_gradients(lambda a, b: info_nce(a, b, temperature=temperature, block=block)[0], z1, z2)
    plain = value_and_gradients(lambda a, b: plain_info_nce(a, b, temperature)[0], z1.double(), z2.double())
    assert_same(ours[:1], plain[:1], 1e-5)
    if d > 1:  # or every embedding is -1 or 1, and there is no gradient
        assert_same(ours[1:], plain[1:], 1e-5)


@pytest.mark.parametrize("n", [2, 16, 64])
@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_contrastive_losses_keep_their_digits_where_the_positives_win(n, temperature):
    z1 = torch.randn(n, 64, generator=torch.Generator().manual_seed(0))
    z2 = z1 + 0.02 * torch.randn(n, 64, generator=torch.Generator().manual_seed(1))
    plain = value_and_gradients(lambda a, b: plain_info_nce(a, b, temperature)[0], z1.double(), z2.double())
    assert plain[0] < 0.02  # barely anything is left to learn
    nobody = torch.full((n,), -1)
    for loss in (
        lambda a, b: info_nce(a, b, temperature=temperature)[0],
        lambda a, b: sup_con(a, b, labels=nobody, temperature=temperature)[0],
    ):
        assert_same(value_and_gradients(loss, z1, z2), plain, 2e-5)


@pytest.mark.parametrize("block", [5, 1000])
@pytest.mark.parametrize("count", VIEWS)
def test_contrastive_accuracies_are_the_rank_of_the_nearest_positive(block, count):
    z = views(40, 6, count=count)
    everyone = F.normalize(torch.cat(z), dim=1)
    order = (everyone @ everyone.T).fill_diagonal_(float("-inf")).argsort(1, descending=True)[:, :-1]
    rank = (order % 40 == torch.arange(40).repeat(count)[:, None]).int().argmax(1)
    _, acc1, acc5 = info_nce(*z, temperature=0.1, block=block)
    assert 0 < acc1 < acc5 < 1
    assert acc1.item() == pytest.approx((rank < 1).float().mean().item())
    assert acc5.item() == pytest.approx((rank < 5).float().mean().item())


def test_contrastive_accuracies_of_constructed_cases():
    apart = torch.eye(8)
    assert [x.item() for x in info_nce(apart, apart)[1:]] == [1.0, 1.0]
    # the positive is opposite, N - 1 negatives coincide with the anchor
    four, eight = torch.eye(4), torch.eye(8)
    near = torch.roll(four, 1, 0) + 0.1 * four  # nearer to the next one's anchor than to its own
    assert [x.item() for x in info_nce(four, near)[1:]] == [0.0, 1.0]
    assert [x.item() for x in info_nce(torch.ones(8, 3), -torch.ones(8, 3))[1:]] == [0.0, 0.0]
    assert [x.item() for x in info_nce(eight[:, :1] * 0 + 1, eight[:, :1] * 0 + 1)[1:]] == [0.0, 0.0]  # collapsed


def test_info_nce_of_constant_embeddings_is_the_log_of_the_number_of_others():
    z = torch.full((9, 4), 3.0)
    assert info_nce(z, z, temperature=0.5)[0].item() == pytest.approx(math.log(2 * 9 - 1), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_info_nce_is_safe_for_low_precision_input(dtype):
    z1, z2 = (1000 * z for z in views(30, 64))  # squares overflow float16
    z1, z2 = z1.to(dtype), z2.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = value_and_gradients(lambda a, b: info_nce(a, b, temperature=0.2)[0], z1, z2)
    plain = value_and_gradients(lambda a, b: plain_info_nce(a, b, 0.2)[0], z1.double(), z2.double())
    assert ours[0].dtype == torch.float32 and ours[1].dtype == dtype
    assert_same(ours[:1], plain[:1], 1e-5)
    assert all(torch.isfinite(grad).all() for grad in ours[1:])


@pytest.mark.parametrize(
    "loss",
    [info_nce, lambda *z: sup_con(*z, labels=torch.arange(30) % 7), *(partial(barlow_twins, form=f) for f in FORMS)],
    ids=["info_nce", "sup_con", *FORMS],
)
def test_backward_inside_autocast_gives_the_same_gradient(loss):
    def inside(*z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss(*z)[0].backward()
        return [x.grad for x in z]

    outside = value_and_gradients(lambda *z: loss(*z)[0], *views(30, 64))[1:]
    assert all(torch.equal(a, b) for a, b in zip(inside(*(z.requires_grad_() for z in views(30, 64))), outside))


def test_info_nce_module_passes_the_temperature_and_keeps_the_accuracies():
    z1, z2 = views(20, 5)
    criterion = InfoNCELoss(temperature=0.3)
    loss, acc1, acc5 = info_nce(z1, z2, temperature=0.3)
    assert criterion(z1, z2) == loss
    assert criterion.parts == {"contrastive_acc1": acc1, "contrastive_acc5": acc5}


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("count", VIEWS)
def test_info_nce_is_the_published_formula_with_every_image_a_class_of_its_own(block, count):
    z = [x.double() for x in views(17, 8, count=count)]
    alone = torch.full((17,), -1)
    ours = value_and_gradients(lambda *z: info_nce(*z, temperature=0.2, block=block)[0], *z)
    assert_same(ours, value_and_gradients(lambda *z: plain_sup_con(*z, labels=alone, temperature=0.2), *z), 1e-12)


# SupCon -----------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["some", "all", "one class"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("count", VIEWS)
def test_sup_con_is_the_published_formula(labels, temperature, block, count):
    n = 17
    generator = torch.Generator().manual_seed(3)
    known = torch.randint(-1 if labels == "some" else 0, 1 if labels == "one class" else 4, (n,), generator=generator)
    z, how = views(n, 8, count=count), dict(labels=known, temperature=temperature)
    ours = value_and_gradients(lambda *z: sup_con(*z, **how, block=block)[0], *z)
    plain = value_and_gradients(lambda *z: plain_sup_con(*z, **how), *(x.double() for x in z))
    # with 8 views of one class the gradient is a small rest of 135 positives' pulls
    assert_same(ours, plain, 1e-5 if count == 2 else 2e-5)


@pytest.mark.parametrize("labels", [torch.full((33,), -1), torch.arange(33)])
@pytest.mark.parametrize("count", VIEWS)
def test_sup_con_without_shared_labels_is_info_nce(labels, count):
    z = views(33, 12, count=count)
    ours = value_and_gradients(lambda *z: sup_con(*z, labels=labels, temperature=0.2)[0], *z)
    assert_same(ours, value_and_gradients(lambda *z: info_nce(*z, temperature=0.2)[0], *z), 1e-6)
    assert sup_con(*z, labels=labels, temperature=0.2)[1:] == info_nce(*z, temperature=0.2)[1:]


def test_base_temperature_multiplies_as_in_the_authors_code():
    z1, z2 = views(9, 4)
    labels = torch.arange(9) % 3
    whole, scaled = SupConLoss(0.5), SupConLoss(0.5, base_temperature=0.07)
    assert scaled(z1, z2, labels).item() == pytest.approx(whole(z1, z2, labels).item() * 0.5 / 0.07, rel=1e-6)
    assert scaled.parts == whole.parts and set(whole.parts) == {"contrastive_acc1", "contrastive_acc5"}
    whole, scaled = InfoNCELoss(0.5), InfoNCELoss(0.5, base_temperature=0.07)
    assert scaled(z1, z2).item() == pytest.approx(whole(z1, z2).item() * 0.5 / 0.07, rel=1e-6)


def test_sup_con_counts_any_view_of_the_class_as_found():
    # Two classes far apart; the other view of an image is never its nearest, one of its class always is.
    z = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0]])
    apart = z + 0.3 * torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0], [0.0, -1.0]])
    assert info_nce(z, apart)[1] < 1
    assert sup_con(z, apart, labels=torch.tensor([0, 0, 1, 1]))[1] == 1


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(5, dtype=torch.long), torch.zeros(4), torch.zeros(4, 1, dtype=torch.long), torch.zeros(4) > 1, None],
)
def test_labels_must_be_one_integer_a_row(labels):
    with pytest.raises(ValueError, match=r"labels must be (4 )?integers"):
        sup_con(torch.randn(4, 3), torch.randn(4, 3), labels=labels)


def test_a_block_is_at_least_one_row():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        info_nce(torch.randn(4, 3), torch.randn(4, 3), block=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset", [10, 100, 1000])
def test_barlow_of_features_far_from_zero(offset, form):
    z1, z2 = (z + offset for z in views(256, 64))
    ours = value_and_gradients(lambda a, b: barlow_twins(a, b, form=form)[0], z1, z2)
    assert_same(ours, value_and_gradients(lambda a, b: plain_barlow(a, b)[0], z1.double(), z2.double()), 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_off_diagonal_is_never_negative(form):
    for seed in range(20):
        q, _ = torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)))
        white = q - q.mean(0)
        white, _ = torch.linalg.qr(white)
        loss, _, off = barlow_twins(white, white, lambd=1.0, form=form)
        assert loss >= 0 and off >= 0


def test_between_processes_a_wide_matrix_never_travels():
    assert cheaper_form(6144, 8192) == "cross" and cheaper_form(6144, 8192, processes=4) == "gram"
    assert cheaper_form(8192, 8192, processes=4) == "cross"
    assert cheaper_form(8192, 8192, processes=4, views=3) == "gram"


# All --------------------------------------------------------------------------

by_sup_con = lambda *z, **more: sup_con(*z, labels=torch.full(z[0].shape[:1] if z else (0,), -1), **more)  # noqa: E731
EVERY_LOSS = pytest.mark.parametrize("loss", [barlow_twins, info_nce, by_sup_con], ids=["barlow", "nce", "supcon"])


@EVERY_LOSS
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("count", [2, 5])
def test_what_is_not_finite_is_named(loss, wrong, dtype, count):
    z = [x.to(dtype) for x in views(6, 5, count=count)]
    z[-1][4, 2] = wrong
    with pytest.raises(ValueError, match=f"z{count} is not finite: {wrong} at row 4, column 2"):
        loss(*z)
    assert not loss(*z, check=False)[0].isfinite()  # left to whoever asked for no check


@EVERY_LOSS
def test_a_second_derivative_is_refused_not_wrong(loss):
    z1, z2 = (z.requires_grad_() for z in views(6, 5))
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad((3 * loss(z1, z2)[0]), z1, create_graph=True)


@EVERY_LOSS
def test_nothing_is_kept_where_no_gradient_is_wanted(loss):
    z1, z2 = (z.requires_grad_() for z in views(6, 5))
    with torch.no_grad():
        assert not loss(z1, z2)[0].requires_grad
    assert not loss(z1.detach(), z2.detach())[0].requires_grad


@EVERY_LOSS
def test_views_of_two_types_are_refused(loss):
    z1, z2 = views(6, 5)
    with pytest.raises(ValueError, match=r"z1 and z2 must have one type, got torch\.float32 and torch\.float64"):
        loss(z1, z2.double())
    with pytest.raises(ValueError, match=r"z1 and z3 must have one type, got torch\.float32 and torch\.float64"):
        loss(z1, z2, z2.double())


@EVERY_LOSS
def test_what_is_no_view_is_refused(loss):
    with pytest.raises(
        ValueError, match=r"z3 must be a tensor, got 0\.1; every argument after the views is passed by na"
    ):
        loss(*views(6, 5), 0.1)


@EVERY_LOSS
def test_large_half_precision_numbers_are_finite(loss):
    z1, z2 = (torch.full((64, 64), 6e4, dtype=torch.float16) for _ in range(2))
    assert loss(z1, z2)[0].isfinite()


@EVERY_LOSS
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_finite_differences_in_float64(loss, count):
    z = tuple(x.double().requires_grad_() for x in views(5, 4, count=count))
    assert torch.autograd.gradcheck(lambda *z: loss(*z)[0], z)


@pytest.mark.parametrize("count", [*VIEWS, 16])
def test_float64_is_right_to_the_digits_of_float64(count):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, -1])  # 1 / 5 and 1 / 3 have no end in binary: default-type constants show
    z, how, alone = [x.double() for x in views(7, 4, count=count)], dict(temperature=0.3), torch.full((7,), -1)
    for ours, plain in (
        (lambda *z: barlow_twins(*z, form="gram")[0], lambda *z: plain_barlow(*z)[0]),
        (lambda *z: barlow_twins(*z, form="cross")[0], lambda *z: plain_barlow(*z)[0]),
        (lambda *z: info_nce(*z, **how)[0], lambda *z: plain_sup_con(*z, labels=alone, **how)),
        (lambda *z: sup_con(*z, labels=labels, **how)[0], lambda *z: plain_sup_con(*z, labels=labels, **how)),
    ):
        assert_same(value_and_gradients(ours, *z), value_and_gradients(plain, *z), 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("n, d", [(4096, 16), (4096, 700), (3, 16384), (32, 16384), (1500, 1500)])
def test_barlow_of_extreme_sizes(n, d):
    z1, z2 = views(n, d)
    ours = value_and_gradients(lambda a, b: barlow_twins(a, b)[0], z1, z2)
    plain = value_and_gradients(lambda a, b: gram_barlow(a, b, 5e-3), z1.double(), z2.double())
    assert_same(ours, plain, 1e-5)


def gram_barlow(z1, z2, lambd):
    """The same formula without C, for where a float64 D×D matrix would be too large."""
    if z1.shape[1] < 4000:
        return plain_barlow(z1, z2, lambd=lambd)[0]
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
    c = (a * b).mean(0)
    everything = (a @ a.T * (b @ b.T)).sum() / len(a) ** 2
    return (c - 1).square().sum() + lambd * (everything - c.square().sum())


@EVERY_LOSS
@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(4, 3), (4, 2)], r"z1 and z2 must have one shape.*\(4, 3\).*\(4, 2\)"),
        ([(4, 3), (5, 3)], r"z1 and z2 must have one shape"),
        ([(4, 3), (4, 3), (4, 2)], r"z1 and z3 must have one shape.*\(4, 3\).*\(4, 2\)"),
        ([(1, 3), (1, 3)], r"at least 2, got 1"),
        ([(0, 3), (0, 3)], r"at least 2, got 0"),
        ([(4, 0), (4, 0)], r"D > 0, got shape \(4, 0\)"),
        ([(4,), (4,)], r"\(N, D\)"),
        ([(4, 3, 2), (4, 3, 2)], r"\(N, D\)"),
        ([], r"2 to 16 views, got 0"),
        ([(4, 3)], r"2 to 16 views, got 1"),
        ([(4, 3)] * 17, r"2 to 16 views, got 17"),
    ],
)
def test_shapes_no_loss_can_use_are_named(loss, shapes, message):
    with pytest.raises(ValueError, match=message):
        loss(*map(torch.randn, shapes))


@EVERY_LOSS
def test_integers_are_refused(loss):
    with pytest.raises(ValueError, match=r"z2 must be floating point.*int64"):
        loss(torch.randn(4, 3), torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        info_nce(torch.randn(4, 3), torch.randn(4, 3), temperature=temperature)


def test_modules_refuse_what_cannot_work_when_they_are_made():
    for make, words in (
        (lambda: InfoNCELoss(0), "temperature"),
        (lambda: SupConLoss(0.1, -1.0), "base_temperature"),
        (lambda: BarlowTwinsLoss(form="fast"), "form"),
    ):
        with pytest.raises(ValueError, match=f"^{words} must be"):
            make()


def test_form_must_be_one_of_three():
    with pytest.raises(ValueError, match="'auto', 'gram' or 'cross', got 'fast'"):
        barlow_twins(torch.randn(4, 3), torch.randn(4, 3), form="fast")


@EVERY_LOSS
def test_input_is_left_alone(loss):
    z = [x.requires_grad_() for x in views(12, 5, count=4)]
    before = [x.detach().clone() for x in z]
    loss(*z)[0].backward()
    assert all(map(torch.equal, z, before))
