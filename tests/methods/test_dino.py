"""DINO against NumPy and lightly: head, loss, centre, temperature, collapse."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eqssl.methods.base import Pair, Sizes
from eqssl.methods.dino import DINO, Centre, PrototypeHead, dino_loss, warmed_up

B, K = 6, 9
rng = np.random.default_rng(0)
STUDENT, TEACHER = (torch.tensor(x) for x in rng.normal(size=(2, 2 * B, K)))


def make(**options) -> DINO:
    torch.manual_seed(0)
    return DINO(Sizes(inv=5), width=16, bottleneck=8, prototypes=K, **options).double()


def make_pair() -> Pair:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2 * B, 4, 5, generator=generator, dtype=torch.float64)
    return Pair(inv=tokens.mean(1).requires_grad_(), teacher=tokens + 0.1)


def test_loss_is_the_papers():
    centre = Centre(K).double()
    centre.mean.copy_(torch.linspace(-1, 1, K))
    total = 0.0
    for i in range(2 * B):
        target = np.exp((TEACHER[i].numpy() - np.linspace(-1, 1, K)) / 0.05)
        predicted = np.exp(STUDENT[(i + B) % (2 * B)].numpy() / 0.1)
        total -= target / target.sum() @ np.log(predicted / predicted.sum())
    assert dino_loss(STUDENT, centre(TEACHER, 0.05)).item() == pytest.approx(total / (2 * B), rel=1e-10)


LOCAL = torch.tensor(rng.normal(size=(3 * B, K)))


def test_with_local_crops_the_loss_is_the_mean_over_all_pairs_but_those_of_the_same_view():
    students, teachers = (x.numpy().reshape(-1, B, K) for x in (torch.cat([STUDENT, LOCAL]), TEACHER))
    losses = []
    for q in range(2):
        for v in range(5):
            if v != q:
                for image in range(B):
                    target, predicted = np.exp(teachers[q, image] / 0.05), np.exp(students[v, image] / 0.1)
                    losses.append(-target / target.sum() @ np.log(predicted / predicted.sum()))
    assert len(losses) == 2 * 4 * B
    loss = dino_loss(torch.cat([STUDENT, LOCAL]), torch.softmax(TEACHER / 0.05, 1))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_with_local_crops_loss_and_centre_are_lightlys():
    from lightly.loss import DINOLoss

    theirs, centre, students = DINOLoss(K, student_temp=0.1).double(), Centre(K).double(), torch.cat([STUDENT, LOCAL])
    for _ in range(2):
        expected = theirs(list(TEACHER.chunk(2)), list(students.chunk(5)), teacher_temp=0.06)
        torch.testing.assert_close(dino_loss(students, centre(TEACHER, 0.06)), expected, rtol=1e-7, atol=0)
        centre.update(TEACHER)


def test_the_head_of_the_student_takes_local_crops_and_the_centre_ignores_them():
    method, plain, pair = make(), make(), make_pair()
    local = torch.randn(3 * B, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    targets = method.centre(method.teacher_head(pair.teacher.mean(1)), 0.04)
    expected = dino_loss(method.head(torch.cat([pair.inv, local])), targets)
    loss = method(replace(pair, local=local))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12) and loss.item() != plain(pair).item()
    assert torch.equal(method.centre.mean, plain.centre.mean)
    loss.backward()
    assert local.grad.any(1).all()


def test_loss_and_centre_are_lightlys():
    from lightly.loss import DINOLoss

    theirs = DINOLoss(K, student_temp=0.1).double()
    centre = Centre(K).double()
    for _ in range(3):
        expected = theirs(list(TEACHER.chunk(2)), list(STUDENT.chunk(2)), teacher_temp=0.06)
        torch.testing.assert_close(dino_loss(STUDENT, centre(TEACHER, 0.06)), expected, rtol=1e-7, atol=0)
        centre.update(TEACHER)
        torch.testing.assert_close(centre.mean, theirs.center.flatten(), rtol=1e-7, atol=1e-9)


def test_head_is_lightlys():
    from lightly.models.modules.heads import DINOProjectionHead

    theirs = DINOProjectionHead(5, 16, 8, K).double()
    head = PrototypeHead(5, 16, 8, K).double()
    linear = [layer for layer in theirs.layers if isinstance(layer, torch.nn.Linear)]
    for mine, other in zip((head.mlp[0], head.mlp[2], head.mlp[4]), linear, strict=True):
        mine.load_state_dict(other.state_dict())
    head.prototypes.weight.data.copy_(theirs.last_layer.weight_v.data)
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(head(x), theirs(x))


def test_head_survives_copies_and_states():
    head, other = PrototypeHead(5, 16, 8, K), PrototypeHead(5, 16, 8, K)
    other.load_state_dict(head.state_dict())
    x = torch.randn(3, 5)
    expected = head(x)
    assert torch.equal(other(x), expected) and torch.equal(copy.deepcopy(head)(x), expected)
    torch.testing.assert_close(copy.deepcopy(head).double()(x.double()).float(), expected)


def test_centre_moves_after_its_use_and_in_training_only():
    method, pair = make(), make_pair()
    logits = method.teacher_head(pair.teacher.mean(1))
    expected = dino_loss(method.head(pair.inv), torch.softmax(logits / 0.04, 1))
    assert method.eval()(pair).item() == pytest.approx(expected.item(), rel=1e-12)
    assert not method.centre.mean.any()
    assert method.train()(pair).item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(method.centre.mean, 0.1 * logits.mean(0))


@pytest.mark.parametrize(("progress", "temperature"), [(0, 0.04), (0.05, 0.055), (0.1, 0.07), (0.99, 0.07)])
def test_temperature_of_the_teacher_warms_up(progress, temperature):
    assert warmed_up(0.07, progress) == pytest.approx(temperature)
    method, pair = make(teacher_temperature=0.07), make_pair()
    method.progress = progress
    targets = torch.softmax(method.teacher_head(pair.teacher.mean(1)) / temperature, 1)
    assert method(pair).item() == pytest.approx(dino_loss(method.head(pair.inv), targets).item())


def test_uniform_outputs_give_the_logarithm_of_the_prototypes():
    """What a loss that stays at ln(K) says: every image is given to all prototypes alike."""
    same = torch.ones(2 * B, K, dtype=torch.float64)
    assert dino_loss(same, same / K).item() == pytest.approx(math.log(K))
    centre = Centre(K).double()
    for _ in range(300):  # a teacher that gives the same for all images becomes uniform by its centre
        centre.update(TEACHER[:1].expand(2 * B, K))
    assert dino_loss(STUDENT * 0, centre(TEACHER[:1].expand(2 * B, K), 0.04)).item() == pytest.approx(math.log(K))


def test_gradient_reaches_the_student_and_not_the_teacher():
    method, pair = make(), make_pair()
    method(pair).backward()
    assert pair.inv.grad.any() and all(p.grad.any() for p in method.head.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher_head.parameters())
