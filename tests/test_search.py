"""Searches by measuring, and time limits, through the command: real models whose hidden units leave in blocks."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PLUGIN, candidate, convert, edgeopt, run_json
from rich.console import Console

from edgeopt import plan, stages, yaml
from edgeopt.dryrun import print_plan
from edgeopt.errors import NoTimeLeft, RecipeError
from edgeopt.recipe import resolve
from edgeopt.report.cells import rows_of
from edgeopt.report.live import Tree


def _plugin() -> Any:
    """The module of the stage `narrow`, without its folder on sys.path: its entry points are for the command alone."""
    spec = importlib.util.spec_from_file_location("edgeopt_test_narrow", PLUGIN / "edgeopt_test_narrow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


narrow = _plugin()
RECIPE = """
model: model.onnx
data: {{train: samples.npz, validation: samples.npz}}
steps:
  - narrow: {narrow}
  - practise: {practise}
  - compile: onnxruntime
measure: {{rounds: 6, block: 20 ms}}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: what was built once is built."""
    return tmp_path_factory.mktemp("search") / "cache"


def project(folder: Path, narrow_: str, practise: str = "none") -> None:
    narrow.model(folder / "model.onnx")
    draw = np.random.default_rng(1)
    np.savez(folder / "samples.npz", x=draw.standard_normal((40, narrow.INPUTS)).astype(np.float32))
    (folder / "recipe.yaml").write_text(RECIPE.format(narrow=narrow_, practise=practise))


def run(folder: Path, cache: Path, narrow_: str, *more: str, practise: str = "none") -> dict[str, Any]:
    project(folder, narrow_, practise)
    return convert(folder, cache, *more)


def names(found: dict[str, Any], status: str | None = None) -> set[str]:
    wanted = {"chosen", "inside", "outside", "failed"} if status is None else {status}
    return {c["id"] for c in found["candidates"] if c["status"] in wanted}


def reason(found: dict[str, Any], name: str) -> str:
    return "; ".join(candidate(found, name)["reasons"])


def test_a_size_takes_the_least_fraction_that_keeps_it(tmp_path: Path, cache: Path) -> None:
    """The size of each fraction is known exactly: a limit between two of them, and one at the very byte."""
    whole = run(tmp_path, cache, "[none, {share: [25 %, 50 %, 75 %]}]")
    sizes = {name: candidate(whole, name)["artifact"]["size_bytes"] for name in names(whole)}
    half, quarter = sizes["narrow50-onnxruntime"], sizes["narrow25-onnxruntime"]
    limits = {half: "37.5", quarter - 1: "37.5", half - 1: "68.75", sizes["onnxruntime"]: "0"}
    found = run(tmp_path, cache, "{size: [" + ", ".join(f"{limit}B" for limit in limits) + "]}")
    assert {search["limit"]: search["chosen"] for search in found["search"]} == {
        limit: [f"narrow{fraction}"] for limit, fraction in limits.items()
    }
    assert names(found) == {"onnxruntime", "narrow37.5-onnxruntime", "narrow68.75-onnxruntime"}
    for search in found["search"]:
        tried = {entry["fraction"]: entry["value"] for entry in search["tried"]}
        chosen = float(search["chosen"][0].removeprefix("narrow")) / 100
        assert tried[chosen] <= search["limit"] < min([v for f, v in tried.items() if f < chosen], default=1e9)


def test_a_latency_takes_the_least_fraction_that_keeps_it(tmp_path: Path, cache: Path) -> None:
    """The limit is set by what was measured, between the whole model and a quarter of it."""
    whole = run(tmp_path, cache, "[none, {share: 75 %}]")
    slow, fast = (
        candidate(whole, name)["latency_ns"]["p50"]["value"] for name in ("onnxruntime", "narrow75-onnxruntime")
    )
    assert slow > 2 * fast
    found = run(tmp_path, cache, f"{{latency: {(slow * fast) ** 0.5:.0f} ns}}")
    (search,) = found["search"]
    assert 0 < float(search["chosen"][0].removeprefix("narrow")) <= 93.75
    tried = {entry["fraction"]: entry for entry in search["tried"]}
    chosen = float(search["chosen"][0].removeprefix("narrow")) / 100
    assert tried[chosen]["high"] <= search["limit"]
    assert all(entry["high"] > search["limit"] for fraction, entry in tried.items() if fraction < chosen)
    assert f"{search['chosen'][0]}-onnxruntime" in names(found)


def test_a_search_is_found_in_the_cache_again(tmp_path: Path, cache: Path) -> None:
    first = run(tmp_path, cache, "{latency: 1 s}")
    assert first["search"][0]["chosen"] == ["narrow0"]
    again = run(tmp_path, cache, "{latency: 1 s}")
    assert again["search"] == first["search"]


def test_a_limit_out_of_reach_costs_its_alternative_alone(tmp_path: Path, cache: Path) -> None:
    found = run(tmp_path, cache, "[{size: 1kB}, {latency: 1ns}, {share: 50 %}]")
    assert names(found) == {"onnxruntime", "narrow50-onnxruntime"}
    assert "1000 B cannot be reached by pruning: the nearest is" in reason(found, "narrow-1kB")
    assert "1 ns cannot be reached" in reason(found, "narrow-1ns")
    assert "of the channels removed" in reason(found, "narrow-1ns")
    assert not found["search"]


def test_what_cannot_be_built_at_any_fraction_is_left_out_with_the_reason(tmp_path: Path, cache: Path) -> None:
    found = run(tmp_path, cache, "[{size: 1kB, fail: true}, {fail: true}, {share: 50 %}]")
    assert names(found) == {"onnxruntime", "narrow50-onnxruntime"}
    assert all("too narrow" in reason(found, c["id"]) for c in found["candidates"] if c["status"] == "skipped")


def test_a_ladder_keeps_what_is_measured_to_pay(tmp_path: Path, cache: Path) -> None:
    """37.5 % rounds to the network of 50 %, 62.5 % too: of five fractions three are networks of their own."""
    found = run(tmp_path, cache, "{}", practise="{seconds: 0.1}")
    (search,) = found["search"]
    assert "the same network as narrow37.5" in reason(found, "narrow50")
    assert len(search["chosen"]) == 2
    steps = {step["id"] for step in run_json(found)["steps"]}
    trained = {step for step in steps if "practise" in step and "compile" not in step}
    assert len(trained) == 2, "only what was kept is trained"
    left_out = {c["id"] for c in found["candidates"] if c["status"] == "skipped"}
    assert {*search["chosen"], *left_out} == {"narrow25", "narrow37.5", "narrow50", "narrow62.5", "narrow75"}


def test_a_training_that_runs_out_of_time_goes_on_in_a_later_run(tmp_path: Path, cache: Path) -> None:
    """The training takes 20 s, the first run has less for it: what it did is not done again."""
    found = run(tmp_path, cache, "{share: 25 %}", "--time", "14 s", practise="{seconds: 20}")
    assert names(found) == {"onnxruntime"}
    assert found["seconds"]["total"] < 20
    assert names(found, "skipped") == {"narrow25-practised-onnxruntime"}
    told = reason(found, "narrow25-practised-onnxruntime")
    assert told.startswith("no time left: --time 14 s: practise was stopped on the way")
    row = next(row for row in rows_of(found) if row.id == "narrow25-practised-onnxruntime")
    assert "skipped: no time left" in row.cells["verdict"]
    tenths = [int(path.read_text()) for path in (cache / "checkpoints").glob("*/tenths")]
    assert len(tenths) == 1
    later = run(tmp_path, cache, "{share: 25 %}", practise="{seconds: 20}")
    assert names(later) == {"onnxruntime", "narrow25-practised-onnxruntime"}
    step = next(s for s in run_json(later)["steps"] if s["id"].endswith("practised"))
    entry = json.loads((cache / "entries" / step["key"] / "entry.json").read_text())
    assert entry["meta"]["artifact"]["details"]["before"] == tenths[0] > 0


@pytest.mark.parametrize("narrow_", ["{share: 25 %}", "{size: 5MB}"])
def test_with_no_time_at_all_the_model_as_it_is_is_a_result(tmp_path: Path, cache: Path, narrow_: str) -> None:
    found = run(tmp_path, cache, narrow_, "--time", "1 s", practise="{seconds: 1}")
    assert found["winner"] == "onnxruntime"
    skipped = [c for c in found["candidates"] if c["status"] == "skipped"]
    assert skipped
    assert all("no time left: --time 1 s" in reason for c in skipped for reason in c["reasons"])
    limited = "{latency p50: 1 ns}"
    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text() + f"budget: {limited}\n")
    assert convert(tmp_path, cache, "--time", "1 s", code=3)["winner"] is None


def test_what_is_cached_needs_no_time(tmp_path: Path, cache: Path) -> None:
    whole = run(tmp_path, cache, "{share: 25 %}", practise="{seconds: 0.2}")
    assert names(run(tmp_path, cache, "{share: 25 %}", "--time", "1 s", practise="{seconds: 0.2}")) == names(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{latency: 0 ms}", "latency: a limit is above zero, not '0 ms'"),
        ("{size: 0 B}", "size: a limit is above zero"),
        ("{latency: 5}", "has no unit"),
        ("{latency: 5 MB}", "unknown unit 'MB'"),
        ("{size: 5 ms}", "unknown unit 'ms'"),
        ("{latency: 1 ms, channels: 50 %}", "prune takes one of"),
        ("{latency: 1 ms, size: 1 MB}", "prune takes one of"),
        ("{channels: auto, latency: 1 ms}", "prune takes one of"),
        ("{channels: automatic}", "channels: 'automatic' is not a share"),
        ("{channels: auto, rungs: 0}", "rungs"),
        ("{channels: 50 %, rungs: 2}", "rungs is for `channels: auto`"),
    ],
)
def test_what_is_wrong_with_a_limit_is_told_with_its_line(options: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(yaml.parse(f"model: a.onnx\nsteps:\n  - prune: {options}", "r.yaml"), base=Path("/"), name="r")
    assert "r.yaml:3: " in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize("time", ["0 s", "10", "-1 s", "later", "[1 m]"])
def test_a_time_limit_is_a_time_above_zero(time: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:2: time"):
        resolve(yaml.parse(f"model: a.onnx\ntime: {time}", "r.yaml"), base=Path("/"), name="r")


def test_limits_have_names_of_their_own() -> None:
    text = (
        "model: a\ndata: {calibration: c}\nsteps:\n  - prune: [{latency: [1 ms, 2 ms]}, {size: 5 kB}, {channels: auto}]"
    )
    made = plan.make(resolve(yaml.parse(text, "r.yaml"), base=Path("/"), name="r"))
    assert [step.label for step in made.searches()] == ["prune-1ms", "prune-2ms", "prune-5kB", "prune-auto"]


def test_a_dry_run_shows_what_will_be_searched_and_the_limit(tmp_path: Path, cache: Path) -> None:
    project(tmp_path, "{latency: 1 ms}")
    found = edgeopt(tmp_path, cache, "convert", "recipe.yaml", "--dry-run", "--time", "10m")
    assert found["time_limit_seconds"] == 600
    searches = [step["search"] for step in found["steps"] if step.get("search")]
    assert searches == [{"quantity": "latency p50", "limit": 1_000_000, "rungs": 1}]
    told = io.StringIO()
    print_plan(found, Console(file=told, width=160))
    assert "to be found by measuring: the least for latency p50 ≤ 1.00 ms" in told.getvalue()
    assert "--time 10m: the cheap and the promising first" in told.getvalue()


def test_a_probe_is_what_costs_least_at_the_same_speed_and_size() -> None:
    asked = stages.find("prune").choices()[""](channels="auto", importance="bn", round_to=4)
    at_half = stages.at("prune", "", asked, 0.5)
    assert at_half.model_dump() == {**asked.model_dump(), "channels": "50 %"}
    assert stages.search_of("prune", "", at_half) is None
    assert stages.probe("prune", "", at_half)[1].model_dump() == {**at_half.model_dump(), "recalibrate": False}
    trained = stages.find("quantize").choices()["qat"](epochs=3, ignore=("head",))
    choice, options = stages.probe("quantize", "qat", trained)
    assert (choice, options.model_dump()["ignore"]) == ("int8", ("head",))
    assert tuple(stages.find("quantize").sample_roles(choice, options, "fp32")) == ("calibration",)
    assert stages.probe("compile", "openvino", stages.find("compile").choices()["openvino"]())[0] == "openvino"


def test_the_display_tells_the_search_from_the_run_and_what_was_skipped() -> None:
    made = plan.make(resolve(yaml.parse("model: a\nsteps: [compile: onnxruntime]", "r.yaml"), base=Path("/"), name="r"))
    shown = io.StringIO()
    tree = Tree()

    def lines() -> list[str]:
        shown.truncate(0)
        Console(file=shown, width=80).print(tree._render())
        return shown.getvalue().splitlines()

    tree.planned(made, "searching prune-auto")
    tree.started("import")
    tree.failed("import/compile=onnxruntime", NoTimeLeft("no time left: --time 1 s"))
    assert "▸ searching prune-auto" in lines()[0]
    assert any("– onnxruntime  no time left: --time 1 s" in line for line in lines())
    tree.planned(made, "r")
    assert "· r" in lines()[0]
    assert not any("no time left" in line for line in lines())
