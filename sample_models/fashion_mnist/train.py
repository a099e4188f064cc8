"""Trains the sample on Fashion-MNIST and writes every file of this folder but the code.

    apt-get install dataset-fashion-mnist
    python sample_models/fashion_mnist/train.py

Writes weights.safetensors, model.onnx, train.npz and test.npz. About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from model import build
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
SHIPPED_TRAINING_IMAGES = 27_000  # as many as keep this folder under 20 MB
MEAN, STD = 73.0, 90.0  # of all training pixels, rounded: recipes state the same two numbers


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (http://yann.lecun.com/exdb/mnist/) of unsigned bytes, gzipped, as an array."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_split(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of shape (N, 1, 28, 28), uint8, and labels of shape (N,), uint8. `split` is "train" or "t10k"."""
    images = read_idx(source / f"{split}-images-idx3-ubyte.gz")
    return images[:, None], read_idx(source / f"{split}-labels-idx1-ubyte.gz")


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """An .npz that numpy reads like any other, packed with LZMA and without the time of day: same data, same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA)


def normalized(images: np.ndarray) -> Tensor:
    return ((torch.from_numpy(images.astype(np.float32)) - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augmented(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped with probability 1/2 and shifted by up to 2 pixels each way."""
    n, _, height, width = batch.shape
    flip = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(flip[:, None, None, None], batch.flip(3), batch)
    padded = nn.functional.pad(batch, (2, 2, 2, 2), value=-MEAN / STD)
    dy, dx = torch.randint(0, 5, (2, n), generator=generator)
    rows = dy[:, None] + torch.arange(height)
    columns = dx[:, None] + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return hits / len(labels)


def train(source: Path, epochs: int, batch: int = 128, peak_rate: float = 4e-3) -> nn.Module:
    """AdamW with a one-cycle schedule, label smoothing, bf16 autocast, channels_last; weights averaged at the end."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = read_split(source, "train")
    x, y = normalized(images), torch.from_numpy(labels.astype(np.int64))
    test_images, test_labels = read_split(source, "t10k")
    x_test, y_test = normalized(test_images), torch.from_numpy(test_labels.astype(np.int64))

    model = build().to(memory_format=torch.channels_last)
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    start = time.monotonic()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for index in order.split(batch)[: len(x) // batch]:
            with torch.autocast("cpu", torch.bfloat16):
                inputs = augmented(x[index], generator).contiguous(memory_format=torch.channels_last)
                loss = loss_of(model(inputs), y[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / (len(x) // batch):.3f}  "
            f"top-1 {accuracy(average.module, x_test, y_test):.2%}  {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return average.module


def export(model: nn.Module) -> None:
    """model.onnx with a free batch dimension and its weights inside the one file."""
    example = torch.zeros(2, 1, 28, 28)
    model = model.to(memory_format=torch.contiguous_format).eval()
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for described in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info):
        described.ClearField("metadata_props")  # stack traces, with the paths of the machine
    onnx.save(proto, HERE / "model.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data-only", action="store_true", help="write train.npz and test.npz alone")
    parser.add_argument("--export-only", action="store_true", help="write model.onnx from weights.safetensors alone")
    options = parser.parse_args()

    if not options.export_only:
        images, labels = read_split(options.source, "train")
        write_npz(HERE / "train.npz", image=images[:SHIPPED_TRAINING_IMAGES], labels=labels[:SHIPPED_TRAINING_IMAGES])
        images, labels = read_split(options.source, "t10k")
        write_npz(HERE / "test.npz", image=images, labels=labels)
    if options.data_only:
        return
    if options.export_only:
        model = build()
        model.load_state_dict(load_file(HERE / "weights.safetensors"))
    else:
        model = train(options.source, options.epochs).to(memory_format=torch.contiguous_format)
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, HERE / "weights.safetensors"
        )
    export(model)


if __name__ == "__main__":
    main()
