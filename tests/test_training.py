"""The training loop on plain modules: what it computes against plain torch, and what it does when it is cut off."""

import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.errors import InputError, StageError
from edgeopt.training import loop as training
from edgeopt.training.augmentation import augment
from edgeopt.training.loop import TrainingData, TrainingOptions, train
from edgeopt.training.objective import LossOptions, Objective

torch.set_num_threads(1)  # fastest for so little work; and part of what a checkpoint is gone on with
RANDOM = np.random.default_rng(0)
PATTERNS = RANDOM.standard_normal((4, 64), np.float32)  # mixed: little to learn, so that few images show it
IMAGES = (RANDOM.standard_normal((260, 4), np.float32) @ PATTERNS).reshape(260, 1, 8, 8) / 2
QUICK = TrainingOptions(epochs=3, batch=32, rate=5e-3, held_out=0.2)


def network(outputs=4, width=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(36 * width, outputs),
    )


def as_teacher(module):
    module.eval()

    def run(inputs):
        with torch.no_grad():
            return [module(*(torch.from_numpy(value) for value in inputs)).numpy()]

    return run


TEACHER = as_teacher(network(seed=1))
LABELS = TEACHER([IMAGES])[0].argmax(1)


def data(labels=LABELS, seen=None):
    def inputs(indices):
        if seen is not None:
            seen.append(np.array(indices))
        return [IMAGES[indices]]

    return TrainingData(len(IMAGES), inputs, labels)


def trained(options=QUICK, teacher=TEACHER, given=None, checkpoints=None, student=None):
    student = student or network()
    return student, train(student, teacher, given or data(), options, checkpoints, lambda fraction, text: None)


def weights(student):
    return {name: value.clone() for name, value in student.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_distilling_brings_the_student_closer_to_the_teacher():
    _, result = trained(replace(QUICK, epochs=20))
    assert result.metric == "top1" and result.losses == ("kl",)
    assert result.score_after > result.score_before + 0.2
    assert result.loss_after < result.loss_before


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = (trained(replace(QUICK, seed=seed))[0].state_dict() for seed in (0, 0, 1))
    assert same(first, second) and not same(first, other)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_hintons(temperature, alpha):
    student, teacher, labels = torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 5
    soft = (teacher / temperature).softmax(1)
    divergence = (soft * (soft.log() - (student / temperature).log_softmax(1))).sum(1).mean()
    expected = alpha * temperature**2 * divergence + (1 - alpha) * nn.functional.cross_entropy(student, labels)
    objective = Objective([teacher], labels, LossOptions(temperature=temperature, alpha=alpha))
    torch.testing.assert_close(objective([student], [teacher], labels), expected)


def test_without_labels_the_teacher_alone_is_followed():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    whole, part = (Objective([teacher], None, LossOptions(alpha=alpha)) for alpha in (1.0, 0.1))
    assert whole.metric == "agreement"
    assert whole([student], [teacher], None) == part([student], [teacher], None)


def test_probabilities_are_taken_as_such():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    scores = Objective([teacher], None, LossOptions())([student], [teacher], None)
    of_softmax = Objective([teacher.softmax(1)], None, LossOptions())([student.softmax(1)], [teacher.softmax(1)], None)
    torch.testing.assert_close(of_softmax, scores)


def test_maps_are_compared_by_squares_over_the_teachers_variance():
    student, teacher = torch.randn(3, 2, 4, 4), 100 * torch.randn(3, 2, 4, 4)
    objective = Objective([teacher], None, LossOptions())
    assert (objective.kinds, objective.metric) == (["mse"], "sqnr")
    expected = (student - teacher).square().mean() / teacher.var(unbiased=False)
    torch.testing.assert_close(objective([student], [teacher], None), expected)


def test_cosine_knows_directions_alone():
    teacher = torch.randn(3, 2, 4)
    objective = Objective([teacher], None, LossOptions(loss="cosine"))
    torch.testing.assert_close(objective([7 * teacher], [teacher], None), torch.tensor(0.0))


def test_several_outputs_are_summed_and_integers_left_out():
    outputs = [torch.randn(3, 4), torch.randn(3, 2, 2), torch.arange(3)]
    others = [torch.randn(3, 4), torch.randn(3, 2, 2), torch.arange(3)]
    both = Objective(outputs, None, LossOptions())
    assert both.kinds == ["kl", "mse", "none"]
    alone = [
        Objective([wanted], None, LossOptions())([found], [wanted], None) for found, wanted in zip(others[:2], outputs)
    ]
    torch.testing.assert_close(both(others, outputs, None), sum(alone))


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(InputError, match="a label is 5, and the model has 5 classes"):
        Objective([torch.randn(6, 5)], torch.arange(6), LossOptions())


def test_what_is_held_out_is_never_trained_on():
    seen = []
    options = replace(QUICK, epochs=1)
    _, held_out = training.split(len(IMAGES), options.held_out, options.seed)
    trained(options, given=data(seen=seen))
    steps = [batch for batch in seen if len(batch) == options.batch and not np.isin(batch, held_out).all()]
    assert len(held_out) == 52 and len(steps) == 6
    assert not np.isin(np.concatenate(steps), held_out).any()


def test_a_split_is_drawn_by_its_seed():
    first, again, other = (training.split(100, 0.1, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    with pytest.raises(InputError, match="at least 2 samples, and there is 1"):
        training.split(1, 0.1, 0)


def test_the_rate_warms_up_to_its_peak_and_falls_to_zero():
    rates = [training.schedule(step, 100, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.04) and rates[20] == 1.0 and rates[99] < 1e-3
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_norms_and_biases_do_not_decay():
    decayed, kept = training.parameter_groups(network(), 0.05)
    assert [p.ndim for p in decayed["params"]] == [4, 2] and decayed["weight_decay"] == 0.05
    assert [p.ndim for p in kept["params"]] == [1, 1, 1, 1] and kept["weight_decay"] == 0.0


def test_batch_norms_statistics_are_averaged_with_the_weights():
    from edgeopt.training.checkpoint import State

    student = network()
    state = State.start(student, 1.0)
    student[1].running_mean.fill_(1.0)
    state.average(student, 0.5)
    share = 1 - 2 / 11  # the decay of the first step
    torch.testing.assert_close(state.averaged["1.running_mean"], torch.full((8,), share))
    assert int(state.averaged["1.num_batches_tracked"]) == 0


def test_the_student_as_it_came_is_kept_where_no_epoch_is_better():
    perfect = network(seed=1)
    before = weights(perfect)
    result = train(perfect, TEACHER, data(None), QUICK, None, lambda fraction, text: None)
    assert result.best_epoch == 0 and same(before, perfect.state_dict())


def test_training_stops_when_patience_is_at_its_end():
    perfect = network(seed=1)
    _, result = trained(replace(QUICK, epochs=9, patience=2), given=data(None), student=perfect)
    assert len(result.epochs) == 2 and result.stopped_early


def test_a_diverging_training_is_stopped_and_named(tmp_path):
    with pytest.raises(StageError, match=r"diverged in epoch \d: loss"):
        trained(replace(QUICK, rate=1e6, clip=0.0, bf16=False), checkpoints=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_teacher_with_other_outputs_is_refused():
    with pytest.raises(InputError, match=r"other outputs(.|\n)*model: \[4\] a sample(.|\n)*teacher: \[7\] a sample"):
        trained(teacher=as_teacher(network(outputs=7)))


def test_code_that_cannot_take_channels_last_is_trained_without_it():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(144, 4)

        def forward(self, x):
            x = self.conv(x)
            return self.last(x.view(x.shape[0], -1))

    _, result = trained(replace(QUICK, epochs=1), student=Views())
    assert result.settings["channels_last"] is False


def test_tiny_batches_leave_batch_norms_statistics_alone():
    student = network()
    before = student[1].running_mean.clone()
    _, result = trained(replace(QUICK, epochs=1, batch=4), student=student)
    assert result.best_epoch == 1 and torch.equal(student[1].running_mean, before)
    assert result.notes == ("batches of 4: batch norm keeps its statistics",)


@pytest.mark.parametrize("name", ["flip", "shift", "crop", "flip_shift"])
def test_augmented_images_keep_their_shape_and_follow_the_generator(name):
    images = torch.randn(16, 3, 28, 20)
    first, again, other = (augment(name, [images], torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert first.shape == images.shape and torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, images)


def test_flips_mirror_and_shifts_move():
    images = torch.arange(28.0).expand(8, 1, 28, 28)
    flipped = augment("flip", [images], torch.Generator().manual_seed(0))[0]
    assert {tuple(image[0, 0].tolist()) for image in flipped} == {tuple(range(28)), tuple(range(27, -1, -1))}
    rows = augment("shift", [images], torch.Generator().manual_seed(0))[0][:, 0, 0, 5:-5]
    assert {float(row[0]) - 5 for row in rows} <= {-2.0, -1.0, 0.0, 1.0, 2.0} and len(rows.unique(dim=0)) > 1


def test_augmenting_what_is_no_image_is_refused():
    with pytest.raises(InputError, match="flip is for images"):
        augment("flip", [torch.randn(4, 10)], torch.Generator())


def test_augmented_training_asks_the_teacher_in_every_step():
    asked = []

    def teacher(inputs):
        asked.append(inputs[0])
        return TEACHER(inputs)

    _, result = trained(replace(QUICK, epochs=1, augment="flip"), teacher=teacher)
    images = {image.tobytes() for image in IMAGES}
    assert any(image.tobytes() not in images for image in np.concatenate(asked))
    assert result.settings["teacher_outputs"] == "computed in every step"


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_training as t
from edgeopt.training.loop import train

def told(fraction, text):
    if fraction > 0.7:
        os.kill(os.getpid(), 9)

train(t.network(), t.TEACHER, t.data(), t.AUGMENTED, Path(sys.argv[2]), told)
"""
AUGMENTED = replace(QUICK, augment="flip_shift")


def test_after_kill_9_it_goes_on_to_the_same_weights(tmp_path, request):
    whole, straight = trained(AUGMENTED)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(request.path.parent), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    resumed, result = trained(AUGMENTED, checkpoints=tmp_path)
    assert result.resumed_after == 2
    assert same(whole.state_dict(), resumed.state_dict())
    assert (result.epochs, result.score_before) == (straight.epochs, straight.score_before)


def test_a_damaged_checkpoint_is_left_aside(tmp_path):
    (tmp_path / "training.pt").write_bytes(b"PK\x03\x04 not really")
    assert trained(checkpoints=tmp_path)[1].resumed_after == 0


def test_a_checkpoint_of_other_options_is_left_aside(tmp_path):
    trained(replace(QUICK, epochs=1), checkpoints=tmp_path)
    assert trained(replace(QUICK, epochs=1, rate=1e-3), checkpoints=tmp_path)[1].resumed_after == 0


def test_a_module_that_takes_one_sample_alone_is_noticed():
    class One(nn.Module):
        def forward(self, x):
            return x.reshape(1, 64)

    assert training.takes_batches(network(), data())
    assert not training.takes_batches(One(), data())
