"""Makes small Keras models and SavedModels, good and bad, and imports each: TensorFlow is loaded once, in here.

Run with a folder: writes `results.json` {name: what the import told, or its error}, `made/<name>/model.onnx`, and
`made/<name>/outputs.npz` with inputs and TensorFlow's own outputs.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from edgeopt import formats
from edgeopt.errors import EdgeoptError
from edgeopt.formats import ModelRef
from edgeopt.samples import Preprocess, write_samples

NOISE = np.random.default_rng(0)
IMAGES = NOISE.standard_normal((4, 16, 16, 3)).astype(np.float32)
VECTORS = NOISE.standard_normal((4, 6)).astype(np.float32)
TOKENS = NOISE.integers(0, 20, (4, 5))


def convolutional() -> Any:
    given = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(given)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.MaxPooling2D()(layers.Add()([x, layers.Conv2D(8, 1)(layers.Activation("hard_silu")(y))]))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(given, layers.Dense(5, activation="softmax", name="scores")(x))


def of_two() -> Any:
    """Integer tokens and a vector; two outputs."""
    tokens, vector = keras.Input((5,), dtype="int64", name="tokens"), keras.Input((6,), name="vector")
    x = layers.Concatenate()([layers.Flatten()(layers.Embedding(20, 4)(tokens)), vector])
    x = layers.LayerNormalization()(layers.Dense(8, activation="gelu")(x))
    return keras.Model(
        {"tokens": tokens, "vector": vector}, [layers.Dense(3, name="a")(x), layers.Dense(1, name="b")(x)]
    )


def recurrent() -> Any:
    return keras.Sequential([keras.Input((7, 3), name="steps"), layers.LSTM(6), layers.Dense(2)])


def of_any_size() -> Any:
    given = keras.Input((None, None, 3), name="image")
    return keras.Model(given, layers.Dense(2)(layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(given))))


@keras.saving.register_keras_serializable(package="mine")
class Doubled(layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


def own_layer() -> Any:
    return keras.Sequential([keras.Input((6,)), Doubled(), layers.Dense(2)])


def with_lambda() -> Any:
    return keras.Sequential([keras.Input((6,)), layers.Lambda(lambda x: x + 1), layers.Dense(2)])


def edited(path: Path, old: str, new: str, out: Path) -> Path:
    """A copy of a .keras file with a word of its configuration put in place of another."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                assert old in data.decode()
                data = data.decode().replace(old, new).encode()
            copy.writestr(name, data)
    return out


class Program(tf.Module):
    """A module of one function; `save` gives it a signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.constant(NOISE.standard_normal((6, 3)), tf.float32))
        self.function = function


def program(folder: Path, function: Callable[[Any, Any], Any], names: tuple[str, ...] = ("serving_default",)) -> Path:
    made = Program(function)
    wanted = tf.TensorSpec([None, 6], tf.float32, "x")
    traced = tf.function(lambda x: {"y": function(x, made.weight)}, input_signature=[wanted])
    made.traced = traced
    tf.saved_model.save(made, str(folder), signatures={name: traced.get_concrete_function() for name in names})
    return folder


def main(root: Path) -> None:
    results: dict[str, Any] = {}

    def bring(name: str, model: Path, feeds: dict[str, Any] | None, original: Callable[[], Any] | None = None) -> None:
        out, samples = root / "made" / name, None
        out.mkdir(parents=True)
        if feeds is not None:
            samples = root / f"{name}_samples"
            samples.mkdir()
            write_samples(samples, feeds, None, Preprocess())
        try:
            told = formats.importer(str(model)).to_onnx(ModelRef(str(model)), samples, out, lambda *_: None).produced
            results[name] = told.to_json()
        except EdgeoptError as error:
            results[name] = error.to_json()
            return
        if original is not None and feeds is not None:
            outputs = [np.asarray(value) for value in tf.nest.flatten(original())]
            np.savez(out / "outputs.npz", **feeds, **{f"output {i}": value for i, value in enumerate(outputs)})

    keras.utils.set_random_seed(0)
    cnn = convolutional()
    cnn.save(root / "cnn.keras")
    cnn.save(root / "cnn.h5")
    cnn.export(str(root / "cnn_saved"), verbose=False)
    for name, model in (("keras", "cnn.keras"), ("h5", "cnn.h5"), ("savedmodel", "cnn_saved")):
        bring(name, root / model, {"image": IMAGES}, lambda: cnn(IMAGES))
    bring("without samples", root / "cnn.keras", None)
    bring("other samples", root / "cnn.keras", {"image": IMAGES[:, :, :8]})
    two = of_two()
    two.save(root / "two.keras")
    bring(
        "two",
        root / "two.keras",
        {"tokens": TOKENS, "vector": VECTORS},
        lambda: two({"tokens": TOKENS, "vector": VECTORS}),
    )
    rnn, steps = recurrent(), NOISE.standard_normal((4, 7, 3)).astype(np.float32)
    rnn.save(root / "rnn.keras")
    bring("recurrent", root / "rnn.keras", {"steps": steps}, lambda: rnn(steps))
    free = of_any_size()
    free.save(root / "free.keras")
    bring("free size", root / "free.keras", {"image": IMAGES}, lambda: free(IMAGES))

    own_layer().save(root / "own.keras")
    own_layer().save(root / "own.h5")
    with_lambda().save(root / "lambda.keras")
    with_lambda().save(root / "lambda.h5")
    cnn.save_weights(root / "cnn.weights.h5")
    edited(root / "cnn.keras", '"class_name": "Dropout"', '"class_name": "TorchModuleWrapper"', root / "torch.keras")
    edited(
        root / "cnn.keras",
        '"module": "keras.layers", "class_name": "Dropout"',
        '"module": "subprocess", "class_name": "Popen"',
        root / "module.keras",
    )
    with h5py.File(root / "cnn.h5") as source, h5py.File(root / "linked.h5", "w") as linked:
        linked.attrs["model_config"] = source.attrs["model_config"]
        linked["model_weights"] = h5py.ExternalLink(str(root / "cnn.h5"), "model_weights")
    (root / "text.keras").write_text("hello")
    for file in (
        "own.keras",
        "own.h5",
        "lambda.keras",
        "lambda.h5",
        "cnn.weights.h5",
        "torch.keras",
        "module.keras",
        "linked.h5",
        "text.keras",
    ):
        bring(file, root / file, None)

    product = program(root / "product", lambda x, w: x @ w)
    loaded = tf.saved_model.load(str(product))
    bring("product", product, {"x": VECTORS}, lambda: loaded.signatures["serving_default"](tf.constant(VECTORS)))
    bring("one signature", program(root / "one", lambda x, w: x @ w, ("predict",)), {"x": VECTORS})
    bring("two signatures", program(root / "many", lambda x, w: x @ w, ("left", "right")), None)
    bring("mixes samples", program(root / "mixes", lambda x, w: tf.reduce_sum(x @ w, 0)), {"x": VECTORS})
    bring(
        "reads a file", program(root / "reads", lambda x, w: x @ w + float_of(tf.io.read_file("/etc/hostname"))), None
    )
    bring("calls Python", program(root / "python", lambda x, w: tf.py_function(lambda v: v, [x @ w], tf.float32)), None)
    bring(
        "no such operator",
        program(root / "cholesky", lambda x, w: tf.linalg.cholesky(tf.transpose(w) @ w + x[:1, :1])),
        None,
    )
    (root / "empty").mkdir()
    bring("empty folder", root / "empty", None)
    (root / "results.json").write_text(json.dumps(results))


def float_of(text: Any) -> Any:
    return tf.cast(tf.strings.length(text), tf.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
