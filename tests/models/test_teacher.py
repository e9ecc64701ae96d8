"""The teacher follows its student, and gradients follow the student alone."""

import torch
from torch import nn

from eqssl.models.teacher import Teacher


def test_the_average_moves_by_what_momentum_leaves():
    student = nn.Linear(3, 2)
    teacher = Teacher(student)
    old, new = student.weight.detach().clone(), torch.ones(2, 3)
    with torch.no_grad():
        student.weight.copy_(new)
    teacher.update(0.9)
    torch.testing.assert_close(teacher.average.weight, 0.9 * old + 0.1 * new)
    assert torch.equal(student.weight, new)


def test_no_gradient_and_no_parameter_of_the_student_is_the_teachers():
    student = nn.Linear(3, 2)
    both = nn.ModuleDict({"student": student, "teacher": Teacher(student)})
    assert [name for name, p in both.named_parameters() if p.requires_grad] == ["student.weight", "student.bias"]
    assert not both["teacher"](torch.ones(1, 3)).requires_grad
