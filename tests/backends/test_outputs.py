"""What every backend computes of the Fashion-MNIST network on real images, against torch on its own weights."""

from __future__ import annotations

from typing import Any

import fashion
import numpy as np
from conformance import Subject, scores_of_fashion

from edgeopt.samples import adapt, restore

LEAST_SNR_DB = 25.0
LARGEST_DROP = 0.01


def scores(subject: Subject, model: str, count: int) -> Any:
    """What the artifact computes of the first test images, in as large batches as it takes."""
    session, inputs = subject.loaded(model), subject.compiled(model)[0].inputs
    images, _ = fashion.images_and_labels(count)
    size = inputs[0].shape[0]
    batch = size if isinstance(size, int) else 50
    found = [
        restore(session.run(adapt({"image": images[at : at + batch]}, inputs)), session.outputs)[0]
        for at in range(0, count, batch)
    ]
    return np.concatenate(found)


def test_fp32_computes_what_the_source_does(subject: Subject) -> None:
    wanted = scores_of_fashion(100)
    np.testing.assert_allclose(scores(subject, "fashion", 100), wanted, atol=1e-5 * np.abs(wanted).max())


def test_int8_is_near_the_source_and_keeps_its_accuracy(subject: Subject) -> None:
    wanted, (_, labels) = scores_of_fashion(300), fashion.images_and_labels(300)
    found = scores(subject, "fashion int8", 300)
    noise = ((found - wanted) ** 2).sum()
    assert noise > 0, "nothing was quantized"
    assert 10 * np.log10((wanted**2).sum() / noise) > LEAST_SNR_DB
    assert (found.argmax(1) == labels).mean() >= (wanted.argmax(1) == labels).mean() - LARGEST_DROP
