"""The software bill of materials in a bundle is right by CycloneDX's own schema, and names what made the artifact."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import command
import pytest

from edgeopt.artifact import Artifact
from edgeopt.sbom import NAME, render
from edgeopt.verify import verify


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """The bundle of a run."""
    base = tmp_path_factory.mktemp("sbom")
    return Path(command.convert(command.project(base / "p", command.ONE_CANDIDATE), base / "cache")["run"]) / "best"


@pytest.fixture(scope="module")
def bill(best):
    return json.loads((best / NAME).read_text())


def test_it_is_right_by_the_schema(best):
    schema = pytest.importorskip("cyclonedx.schema", reason="the extra `test` brings cyclonedx-python-lib")
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str((best / NAME).read_text()) is None


def test_it_is_one_of_the_files_that_the_manifest_lists(best):
    manifest = json.loads((best / "edgeopt.json").read_text())
    assert {entry["path"] for entry in manifest["files"]} == {
        path.name for path in best.iterdir() if path.name != "edgeopt.json"
    }
    assert NAME in {entry["path"] for entry in manifest["files"]}
    assert verify(best).files == len(manifest["files"])


def test_it_names_what_made_the_artifact_and_what_runs_it(bill):
    found = {one["name"]: one for one in bill["components"]}
    for name in ("onnx", "onnxruntime"):
        assert found[name]["version"] == importlib.metadata.version(name)
        assert found[name]["purl"] == f"pkg:pypi/{name}@{importlib.metadata.version(name)}"
    assert (found["onnx"]["scope"], found["onnxruntime"]["scope"]) == ("excluded", "required")
    steps = {one["value"] for one in found["onnx"]["properties"]}
    assert {"import", "import/compile=onnxruntime"} <= steps


def test_the_artifact_is_the_main_component_with_its_files(best, bill):
    manifest = json.loads((best / "edgeopt.json").read_text())
    artifact = Artifact.from_json(manifest["artifact"])
    main = bill["metadata"]["component"]
    assert main["bom-ref"] == artifact.digest
    assert [one["hashes"][0]["content"] for one in main["components"]] == [file.sha256 for file in artifact.files]


def test_a_build_of_a_version_is_quoted_in_the_url(best):
    artifact = Artifact.from_json(json.loads((best / "edgeopt.json").read_text())["artifact"])
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in render(artifact, "name", {"one": {"torch": "2.13.0+cpu"}}, ("onnx", "1"))


def test_a_runtime_of_unknown_version_has_none(best):
    artifact = Artifact.from_json(json.loads((best / "edgeopt.json").read_text())["artifact"])
    (only,) = json.loads(render(artifact, "name", {}, ("openvino", None)))["components"]
    assert "version" not in only
    assert only["purl"] == "pkg:pypi/openvino"
