"""edgeopt from Python: what is public, what it costs to import, and what its functions do."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import command
import linear
import numpy as np
import pytest

import edgeopt
from edgeopt import errors

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return command.project(tmp_path_factory.mktemp("api"), command.ONE_CANDIDATE)


@pytest.fixture(scope="module")
def result(project: Path, tmp_path_factory: pytest.TempPathFactory) -> edgeopt.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return edgeopt.convert(project / "recipe.yaml", output=project / "run")


def test_what_is_public():
    assert edgeopt.__all__ == [
        "EdgeoptError",
        "Measured",
        "Measurements",
        "Model",
        "Result",
        "__version__",
        "bench",
        "convert",
        "load",
    ]
    assert all(getattr(edgeopt, name) is not None for name in edgeopt.__all__)
    assert set(edgeopt.__all__) <= set(dir(edgeopt))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        edgeopt.optimise  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert (Path(edgeopt.__file__).parent / "py.typed").is_file()


def test_importing_it_loads_nothing():
    code = "import sys; before = set(sys.modules); import edgeopt; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    strangers = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert strangers == {"edgeopt"}


def test_a_run_says_what_won(project, result):
    assert result.run == project / "run" and result.bundle == project / "run" / "best"
    assert result.winner is not None and result.winner.id == "onnxruntime"
    assert result.winner.status == "chosen" and result.winner.backend == "onnxruntime"
    assert result.winner.latency_ns("p50") > 0 and result.winner.size_bytes > 1000
    assert result.winner.accuracy == 1.0 and result.winner.accuracy_drop == 0.0
    assert result["onnxruntime"] == result.winner
    assert "Winner: onnxruntime" in str(result)


def test_a_bundle_computes_by_name_and_by_position(project, result):
    with np.load(project / "validation.npz") as arrays:
        x = arrays["x"]
    with edgeopt.load(result.run) as model:
        assert model.backend == "onnxruntime" and model.input_names == ("x",)
        by_name = model.run({"x": x})
        assert by_name["scores"].shape == (60, 5) and by_name["scores"].dtype == np.float32
        np.testing.assert_array_equal(model(x), by_name["scores"])
        np.testing.assert_allclose(model(x[:1]), by_name["scores"][:1], atol=1e-5)
    with pytest.raises(errors.InputError, match="closed"):
        model(x)


@pytest.mark.parametrize("backend", linear.FORMATS)
def test_a_bundle_preprocesses_on_whichever_backend_it_names(backend, tmp_path):
    bundle = linear.bundle(tmp_path / "best", backend)
    with edgeopt.load(bundle.folder) as model:
        assert model.backend == backend
        np.testing.assert_allclose(model(linear.RAW), linear.SCORES, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ({}, "nothing was given, x is taken"),
        ({"y": np.zeros((1, 3, 16, 16))}, "y was given, x is taken"),
        ({"x": np.zeros((1, 3, 8, 8), np.float32)}, "does not take samples of shape"),
        ({"x": np.float32(1)}, "unlike numbers of samples"),
        ({"x": np.zeros((0, 3, 16, 16), np.float32)}, "no samples"),
    ],
)
def test_samples_that_do_not_fit_are_refused(result, samples, told):
    with edgeopt.load(result.run) as model, pytest.raises(errors.InputError, match=told):
        model.run(samples)


def test_what_is_no_bundle_is_refused(tmp_path):
    linear.save_onnx(tmp_path / "net.onnx")
    with pytest.raises(errors.InputError, match="a bare model"):
        edgeopt.load(tmp_path / "net.onnx")
    with pytest.raises(errors.InputError, match="neither a bundle"):
        edgeopt.load(tmp_path)


def test_bench_is_called_by_the_name_that_is_also_a_package(project, result):
    import edgeopt.measuring.session  # puts the package in the place of the function

    told: list[str] = []
    found = edgeopt.bench(
        [result.run, project / "model.onnx"],
        data=project / "validation.npz",
        quick=True,
        rounds=3,
        progress=lambda text, fraction: told.append(text),
    )
    first, second = found.measured
    assert first.latency_ns() > 0 and second.speedup is not None and second.accuracy == 1.0
    assert first == found[str(result.run)]
    assert "speed-up" in str(found) and told


def test_a_recipe_may_be_a_mapping(project, result, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    made = {
        "model": project / "model.onnx",
        "data": {"validation": "validation.npz"},
        "steps": [{"compile": "onnxruntime"}],
        "measure": {"rounds": 3, "block": "5 ms"},
    }
    found = edgeopt.convert(made, budget={"latency p50": "1 ns"}, output=tmp_path / "run")
    assert found.winner is None and found.bundle is None
    assert found.candidates[0].status == "outside" and "latency p50" in found.candidates[0].reasons[0]
    with pytest.raises(errors.InputError, match="for a model without a recipe"):
        edgeopt.convert(made, level="none")


def test_a_wrong_recipe_raises_what_the_command_would_tell(project):
    with pytest.raises(errors.RecipeError, match="did you mean 'model'") as caught:
        edgeopt.convert({"modle": "model.onnx"})
    assert isinstance(caught.value, edgeopt.EdgeoptError)


def test_it_works_outside_of_the_main_thread_and_leaves_signals_alone(project, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found: list[edgeopt.Result] = []
    told: list[str] = []

    def work() -> None:
        recipe, output = project / "recipe.yaml", tmp_path / "run"
        found.append(edgeopt.convert(recipe, output=output, progress=lambda text, fraction: told.append(text)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(300)
    assert found and found[0].winner is not None
    assert told[0] == "recipe: 1 candidates"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_code_of_the_readme_runs(project, tmp_path):
    chapter = README.read_text().partition("## From Python\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL)
    command.project(tmp_path / "there", command.ONE_CANDIDATE)
    (tmp_path / "there" / "recipe.yaml").rename(tmp_path / "there" / "model.yaml")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path / "there",
        env={**command.os.environ, "EDGEOPT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "there" / "runs" / "model-1" / "choice.json").read_text())["winner"]
