"""Files and names made to do harm, by the harm that they are made for. README.md's chapter on security lists them."""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
import shlex
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import linear
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt import yaml
from edgeopt.__main__ import main
from edgeopt.devices import openssh
from edgeopt.errors import EdgeoptError, InputError

README = Path(__file__).parents[1] / "README.md"
TERABYTES = 10**13
EVIL = "\x1b]0;owned\x07\x1b[2J<b>\r\u202e"
FOREIGN = "/etc/passwd"


class Told:
    """What `edgeopt` said and how it ended. It never ends as a bug, and never says more than five lines of error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str]:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert code != 1, err
        assert code == 0 or len(err.splitlines()) <= 5, err
        assert not {c for c in out + err if not c.isprintable() and c != "\n"}, out + err
        return code, out + err


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    return Told(capsys)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_called_pt_is_not_run(told: Told, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    code, text = told("inspect", "a.pt")
    assert (code, "a pickle" in text) == (2, True)
    assert not (tmp_path / "owned").exists()


def test_a_pickle_given_as_weights_is_not_run(told: Told, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n\ndef build():\n    return torch.nn.Linear(8, 4)\n")
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"weight": Payload(tmp_path / "owned")}))
    code, text = told("inspect", "net.py:build", "--weights", "w.pt")
    assert (code, "could run anything" in text) == (2, True)
    assert not (tmp_path / "owned").exists()


def test_a_pickle_in_samples_is_not_run(told: Told, tmp_path: Path) -> None:
    linear.save_onnx(tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.array([Payload(tmp_path / "owned")]))
    code, text = told("inspect", "m.onnx", "--data", "s.npz")
    assert (code, "could run anything" in text) == (2, True)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("location", "codes"), [("beside", (0,)), (FOREIGN, (2, 4)), ("../secret", (2, 4)), ("link", (2, 4))]
)
def test_a_runtime_is_not_given_weights_from_elsewhere(
    told: Told, tmp_path: Path, location: str, codes: tuple[int, ...]
) -> None:
    """A bare file, which `bench` gives to the runtime as it is."""
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (tmp_path / "secret", folder / "beside"):
        place.write_bytes(linear.WEIGHT.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    linear.save_onnx(folder / "m.onnx")
    model = onnx.load(folder / "m.onnx")
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, location, offset=0, length=linear.WEIGHT.nbytes)
    weight.ClearField("raw_data")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    code, text = told("bench", "model/m.onnx", "--quick")
    assert code in codes, text


def absurd_onnx(path: Path) -> None:
    """A weight that says it has terabytes, and holds four."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[TERABYTES, 4], raw_data=bytes(16))
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [TERABYTES, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def absurd_tflite(path: Path) -> None:
    linear.save_tflite(path)
    content = path.read_bytes()
    features = linear.FEATURES.to_bytes(4, "little")
    assert features in content
    path.write_bytes(content.replace(features, (2**31 - 1).to_bytes(4, "little")))


def absurd_npy(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (TERABYTES, 8)})
    path.write_bytes(header.getvalue() + bytes(32))


def absurd_npz(path: Path) -> None:
    absurd_npy(path.with_name("x.npy"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("x.npy"), "x.npy")


@pytest.fixture
def address_space() -> Iterator[None]:
    """A limit on what a process may ask for: the workers of the command have it too."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("name", "make"),
    [("a.onnx", absurd_onnx), ("a.tflite", absurd_tflite), ("a.npy", absurd_npy), ("a.npz", absurd_npz)],
)
@pytest.mark.usefixtures("address_space")
def test_shapes_of_terabytes_take_no_memory(
    told: Told, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    linear.save_onnx(tmp_path / "m.onnx")
    code, _ = told("inspect", name) if name.endswith(("onnx", "tflite")) else told("inspect", "m.onnx", "--data", name)
    assert code in ((0, 2) if name.endswith(("onnx", "tflite")) else (2,))


def test_a_bomb_of_compression_is_not_unpacked(told: Told, tmp_path: Path) -> None:
    """Members that say what they unpack to: 4 GiB each, of a hundred bytes."""
    linear.save_onnx(tmp_path / "m.onnx")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(1000):
            archive.writestr(f"x{index}.npy", bytes(99))
    content = (tmp_path / "bomb.npz").read_bytes()
    sizes, huge = (99).to_bytes(4, "little"), (2**32 - 2).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(content.replace(sizes, huge))
    code, text = told("inspect", "m.onnx", "--data", "bomb.npz")
    assert (code, "4000 GiB unpacked" in text) == (2, True), text


def with_names(path: Path) -> None:
    """A model that says of itself what a terminal would obey."""
    linear.save_onnx(path)
    model = onnx.load(path)
    model.producer_name = model.doc_string = EVIL
    model.graph.input[0].name = model.graph.node[0].input[0] = EVIL
    entry = model.metadata_props.add()
    entry.key = entry.value = EVIL
    onnx.save(model, path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "m.onnx"),
        ("inspect", f"{EVIL}.onnx"),
        ("bench", f"{EVIL}.onnx", "--quick"),
        ("verify", EVIL),
        ("report", EVIL),
        ("check", EVIL),
        ("recipes", "check", f"{EVIL}.yaml"),
        ("recipes", "show", EVIL),
        ("targets", "show", EVIL),
        ("convert", f"{EVIL}.yaml", "--dry-run"),
        ("compare", f"{EVIL}.onnx", "m.onnx", "--random", "--no-latency"),
        (EVIL,),
    ],
    ids=lambda arguments: arguments[0] if arguments[0] != EVIL else "a verb",
)
def test_no_name_reaches_the_terminal_as_it_is(told: Told, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for name in ("m.onnx", f"{EVIL.replace('/', '')}.onnx"):
        with_names(tmp_path / name)
    data = "data: {validation: s.npz}\nsteps: [{compile: onnxruntime}]\n"
    (tmp_path / f"{EVIL}.yaml").write_text(f'model: m.onnx\n{data}target: {{name: "{EVIL!a}"}}\n'.replace("'", ""))
    np.savez(tmp_path / "s.npz", x=linear.RAW)
    linear.bundle(tmp_path / EVIL)
    told(*arguments)


def test_a_name_that_is_no_text_is_told_as_json(told: Told) -> None:
    code, text = told("inspect", "\udcff.onnx", "--json")
    assert (code, "\\udcff.onnx: no such file" in text) == (2, True)


def test_a_recipe_that_init_writes_holds_no_line_of_a_model_s(told: Told, tmp_path: Path) -> None:
    linear.save_onnx(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\nmodel: other.onnx\n#"
    onnx.save(model, tmp_path / "m.onnx")
    code, text = told("init", "m.onnx", "-o", "r.yaml")
    if code == 0:
        assert yaml.load(tmp_path / "r.yaml").value["model"] == "m.onnx"
    else:
        assert code == 2, text


def test_a_file_that_a_recipe_names_outside_is_not_told(told: Told, tmp_path: Path) -> None:
    """Any file may be named, and is data: what is in it is not shown."""
    linear.save_onnx(tmp_path / "m.onnx")
    (tmp_path / "r.yaml").write_text(
        f"model: m.onnx\ndata: {{validation: {FOREIGN}}}\nsteps: [{{compile: onnxruntime}}]\n"
    )
    code, text = told("convert", "r.yaml")
    assert code == 2
    assert FOREIGN in text
    assert "root:" not in text


@pytest.mark.parametrize(
    "name", ["$HOME/m.onnx", "${HOME}/m.onnx", "$(touch owned).onnx", "`touch owned`.onnx", "%n.onnx"]
)
def test_a_path_is_taken_as_it_is_written(told: Told, tmp_path: Path, name: str) -> None:
    """No variable of the environment is put there, and no shell reads it."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    linear.save_onnx(tmp_path / name)
    assert told("inspect", name)[0] == 0
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("key", ["/home/${USER}/id", '/home/a"b', "/home/a\nProxyCommand x"])
def test_ssh_puts_nothing_into_the_path_of_a_key(key: str) -> None:
    with pytest.raises(InputError, match="ssh takes no path"):
        openssh._quoted(key)


@pytest.mark.parametrize(
    "path", ["/opt/a b/python3", "/opt/$(touch owned)/x", "/opt/`touch owned`", "~/a; touch owned", "-c"]
)
def test_the_shell_of_a_device_obeys_no_path(tmp_path: Path, path: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"printf %s {openssh._python(path)}"],
        cwd=tmp_path, env={"HOME": "/root", "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == path.replace("~", "/root", 1)
    assert not (tmp_path / "owned").exists()
    assert shlex.split(openssh._python("/a b")) == ["/a b"]


def test_every_test_that_the_readme_names_is_there() -> None:
    chapter = README.read_text().partition("\n## Security\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", chapter)
    assert len(named) > 15
    for file, name in named:
        text = (README.parent / file).read_text()
        assert not name or re.search(rf"def {name}\b", text), f"{file}::{name}"


def test_errors_are_cut_to_what_a_person_reads() -> None:
    error = EdgeoptError("a" * 10**6, remedy="b" * 10**6)
    assert max(map(len, error.lines())) < 1100
