"""Samples from files and functions: what is taken, what is drawn, and each kind of data that is wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.data import peek, prepare
from edgeopt.errors import InputError
from edgeopt.samples import Preprocess, Samples
from edgeopt.source import load_function

IMAGES = np.arange(20 * 3 * 4, dtype=np.uint8).reshape(20, 3, 4)
LABELS = np.arange(20) % 7


class Quiet:
    """Where a worker's progress goes."""

    def progress(self, fraction: float | None, text: str) -> None:
        pass


def prepared(
    location: object, out: Path, samples: int | None = None, seed: int = 0, preprocess: Preprocess | None = None
) -> tuple[dict[str, Any], Samples]:
    out.mkdir()
    settings = (preprocess or Preprocess()).to_json()
    args = {"location": str(location), "samples": samples, "seed": seed, "preprocess": settings, "out": str(out)}
    return prepare(args, Quiet()), Samples(out)  # type: ignore[arg-type]


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def save(**arrays: Any) -> Path:
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


def test_arrays_of_an_npz_go_by_their_names(npz: Callable[..., Path], tmp_path: Path) -> None:
    told, samples = prepared(npz(image=IMAGES, mask=IMAGES[:, 0], labels=LABELS), tmp_path / "out")
    assert told["count"] == len(samples) == 20
    assert told["inputs"] == {"image": [[3, 4], "uint8"], "mask": [[4], "uint8"]}
    assert (told["labels"], told["sources"]) == (True, [])
    assert np.array_equal(samples.raw("image"), IMAGES)
    assert np.array_equal(samples.labels(), LABELS)


@pytest.mark.parametrize("name", ["labels", "label", "y"])
def test_labels_have_three_names_and_may_be_a_column(npz: Callable[..., Path], tmp_path: Path, name: str) -> None:
    told, samples = prepared(npz(x=IMAGES, **{name: LABELS.reshape(-1, 1).astype(np.uint8)}), tmp_path / "out")
    assert told["labels"]
    assert samples.labels().dtype == np.int64
    assert np.array_equal(samples.labels(), LABELS)


def test_a_npy_is_one_input_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", IMAGES)
    told, samples = prepared(tmp_path / "data.npy", tmp_path / "out")
    assert (list(told["inputs"]), told["labels"], samples.labels()) == (["input"], False, None)


def test_a_function_gives_arrays_and_its_source_is_told(tmp_path: Path) -> None:
    (tmp_path / "shapes_of_data.py").write_text("SHAPE = (5, 2)\n")
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\nfrom shapes_of_data import SHAPE\n"
        "def load():\n    return {'x': np.ones(SHAPE), 'labels': np.arange(5)}\n"
    )
    told, samples = prepared(f"{tmp_path}/my_data.py:load", tmp_path / "out")
    assert (told["count"], told["labels"], len(samples)) == (5, True, 5)
    assert {Path(source).name for source in told["sources"]} == {"my_data.py", "shapes_of_data.py"}


def test_a_draw_is_decided_by_its_seed_and_keeps_labels_with_samples(npz: Callable[..., Path], tmp_path: Path) -> None:
    location = npz(x=np.arange(20), labels=np.arange(20))
    drawn = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        told, samples = prepared(location, tmp_path / name, samples=6, seed=seed)
        assert told["count"] == 6
        assert np.array_equal(samples.raw("x"), samples.labels())
        drawn[name] = samples.raw("x").tolist()
    assert drawn["a"] == drawn["b"] != drawn["c"]
    assert len(set(drawn["a"])) == 6
    assert drawn["a"] == sorted(drawn["a"])


def test_more_samples_than_there_are_is_all_of_them(npz: Callable[..., Path], tmp_path: Path) -> None:
    assert prepared(npz(x=IMAGES), tmp_path / "out", samples=300)[0]["count"] == 20


def test_preprocessing_travels_with_the_samples(npz: Callable[..., Path], tmp_path: Path) -> None:
    preprocess = Preprocess((1.0, 2.0, 3.0, 4.0), (2.0,), (1, 0))
    _, samples = prepared(npz(x=IMAGES), tmp_path / "out", preprocess=preprocess)
    batch = samples.batch(0, 2)["x"]
    assert (batch.shape, batch.dtype) == ((2, 4, 3), np.float32)
    assert np.allclose(batch[0, 1], (IMAGES[0, :, 1] - 2.0) / 2.0)


def objects() -> Any:
    return np.array([{}, []], dtype=object)


BAD = {
    "holds no arrays of inputs": {},
    "samples along": {"x": np.float32(5)},
    "x is a single number": {"x": np.float32(5)},
    "unlike numbers of samples: x 20, z 19": {"x": IMAGES, "z": IMAGES[:19]},
    "unlike numbers of samples: x 20, labels 19": {"x": IMAGES, "labels": LABELS[:19]},
    "there are no samples in it": {"x": IMAGES[:0]},
    "x is of dtype <U3, not numbers": {"x": np.array(["cat", "dog"])},
    "x is of dtype complex128, not numbers": {"x": np.ones(3, complex)},
    "x has NaN or infinity in sample 7": {"x": np.where(np.arange(20) == 7, np.nan, 1.0)},
    "x has NaN or infinity in sample 300": {"x": np.where(np.arange(400) == 300, np.inf, 1.0).reshape(400, 1, 1)},
    "labels are float64 of shape": {"x": IMAGES, "labels": LABELS * 1.0},
    "not one whole number a sample": {"x": IMAGES, "labels": np.eye(20, dtype=int)},
    "a label is -1, class indices start at 0": {"x": IMAGES, "labels": LABELS - 1},
}


@pytest.mark.parametrize("message", [message for message in BAD if message != "samples along"])
def test_each_kind_of_wrong_data_is_told(npz: Callable[..., Path], tmp_path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepared(npz(**BAD[message]), tmp_path / "out")
    assert "data.npz" in caught.value.message


def test_a_bad_sample_that_is_drawn_is_told_by_its_place_in_the_file(npz: Callable[..., Path], tmp_path: Path) -> None:
    values = np.ones(1000)
    values[900:] = np.nan
    with pytest.raises(InputError, match=r"in sample 9\d\d$"):
        prepared(npz(x=values), tmp_path / "out", samples=500)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (Preprocess(transpose=(2, 0, 1)), "transpose has 3 axes, a sample of x has 2"),
        (Preprocess(mean=(1.0, 2.0)), "mean has 2 numbers, a sample of x is of shape"),
        (Preprocess(std=(1.0, 2.0, 3.0), transpose=(1, 0)), r"std has 3 numbers, a sample of x is of shape \[4, 3\]"),
    ],
)
def test_preprocessing_that_does_not_fit_is_told(
    npz: Callable[..., Path], tmp_path: Path, preprocess: Preprocess, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepared(npz(x=IMAGES), tmp_path / "out", preprocess=preprocess)


def flipped(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, x=np.random.default_rng(0).normal(size=1000))
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)


def truncated_npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, x=IMAGES)
    path.write_bytes(path.read_bytes()[:-30])


def truncated_npy(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, IMAGES)
    path.write_bytes(path.read_bytes()[:-30])


def pickled_npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, x=objects())


def pickled_npy(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, objects())


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"no array")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (flipped, "data: "),
        (truncated_npz, "not a zip file"),
        (truncated_npy, "data: "),
        (pickled_npz, "holds Python objects"),
        (pickled_npy, "Python objects"),
        (other_archive, "data.pkl in it is no array"),
        (lambda path: path.write_text("a,b\n1,2\n"), r"neither a .npz nor a .npy file"),
        (lambda path: path.write_bytes(b""), r"neither a .npz nor a .npy file"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "data: "),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "data: "),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "data")
    with pytest.raises(InputError, match=message) as caught:
        prepared(tmp_path / "data", tmp_path / "out")
    assert len(caught.value.lines()) <= 5


FUNCTIONS = """
import sys
import numpy as np

def load():
    return {"x": np.ones((2, 2))}

def lists():
    return {"x": [1, 2]}

def numbered():
    return {0: np.ones(2)}

def nothing():
    pass

def raises():
    return np.ones(2) @ np.ones(3)

def ends():
    sys.exit(3)

def empty():
    return {}
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lists", "returned a dict with list under 'x', not a dict of numpy arrays"),
        ("numbered", "returned a dict with ndarray under 0"),
        ("nothing", "returned NoneType, not a dict"),
        ("raises", r"functions.py:18: the data function .* raised ValueError: matmul"),
        ("ends", r"functions.py:21: the data function .* raised SystemExit: 3"),
        ("empty", "holds no arrays"),
        ("laod", "has no function 'laod'"),
        ("np", "has no function 'np'"),
    ],
)
def test_a_function_that_is_wrong_is_told_with_its_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    with pytest.raises(InputError, match=message):
        prepared(f"{tmp_path}/functions.py:{name}", tmp_path / "out")


def test_the_nearest_function_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    with pytest.raises(InputError) as caught:
        load_function(f"{tmp_path}/functions.py:laod", what="data function")
    assert caught.value.remedy == "Did you mean load?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def load(:\n", r"broken.py:1: not valid Python: invalid syntax"),
        ("x = 1\nimport nowhere\n", r"broken.py:2: .* raised ModuleNotFoundError: No module named 'nowhere'"),
        ("raise OSError('no\\nsuch')", r"broken.py:1: .* raised OSError: no$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_function(f"{tmp_path}/broken.py:load", what="data function")


def test_a_module_that_is_not_there_is_told_apart_from_one_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "absent_data.py").write_text("import absent\n")
    with pytest.raises(InputError, match=r"there is no module absent\.data"):
        load_function("absent.data:load", what="data function")
    with pytest.raises(InputError, match=r"absent_data.py:1: .* raised ModuleNotFoundError"):
        load_function("absent_data:load", what="data function")
    with pytest.raises(InputError, match=r"gone.py: no such file"):
        load_function(f"{tmp_path}/gone.py:load", what="data function")


def test_a_file_named_as_a_library_does_not_take_its_place(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text("def load(): return 5\n")
    function = load_function(f"{tmp_path}/json.py:load", what="data function")
    assert function.call() == (5, [tmp_path / "json.py"])
    assert json.loads("5") == 5


def test_peeking_reads_shapes_from_headers_alone(npz: Callable[..., Path], tmp_path: Path) -> None:
    path = npz(image=IMAGES, mask=np.ones((20, 2), np.float32), labels=LABELS)
    expected = {"image": ([3, 4], "uint8"), "mask": ([2], "float32")}
    assert peek(str(path)) == expected
    np.save(tmp_path / "one.npy", IMAGES)
    os_size = (tmp_path / "one.npy").stat().st_size
    with open(tmp_path / "one.npy", "r+b") as file:
        file.truncate(os_size - 100)
    assert peek(str(tmp_path / "one.npy")) == {"input": ([3, 4], "uint8")}


@pytest.mark.parametrize(
    "write", [flipped, truncated_npz, pickled_npz, other_archive, lambda path: path.write_bytes(b"")]
)
def test_peeking_into_what_cannot_be_read_tells_nothing(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    path = tmp_path / "data.npz"
    write(path)
    assert peek(str(path)) in (None, {"x": ([], "object")}, {"x": ([], "float64")})


@pytest.mark.parametrize("location", ["data.py:load", "package.module:load", "missing.npz", "data.bin"])
def test_peeking_runs_no_code(location: str) -> None:
    assert peek(location) is None
