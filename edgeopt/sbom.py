"""A software bill of materials of an artifact: CycloneDX 1.6 in JSON (ECMA-424), as scanners of vulnerabilities read.

The artifact is the main component, of type machine-learning-model, with the sha256 of its files. The components are the
distributions that made it, each with the steps that used it: they are not part of the artifact (scope "excluded"). What
runs it is (scope "required"). The same artifact gives the same bytes, so there is no time of making in it. It does not
know licences, nor what the distributions themselves depend on.
"""

from __future__ import annotations

import json
import urllib.parse
import uuid
from collections.abc import Mapping
from typing import Any

from edgeopt import __version__
from edgeopt.artifact import Artifact

NAME = "sbom.cdx.json"
SPECIFICATION = "1.6"


def render(
    artifact: Artifact,
    name: str,
    tools: Mapping[str, Mapping[str, str | None]],
    runtime: tuple[str, str | None],
) -> str:
    """The document as text. `tools` are distributions with their versions, by the step that used them; `runtime` is the
    distribution that runs the artifact, with the version it was measured on.
    """
    steps: dict[tuple[str, str | None], list[str]] = {}
    for step, used in tools.items():
        for tool in used.items():
            steps.setdefault(tool, []).append(step)
    steps.setdefault(runtime, [])
    components = [_component(tool, used_by, tool == runtime) for tool, used_by in sorted(steps.items(), key=str)]
    main = {
        "type": "machine-learning-model",
        "bom-ref": artifact.digest,
        "name": name,
        "version": artifact.digest[:12],
        "description": f"{artifact.format}, {artifact.precision}",
        "components": [
            {
                "type": "file",
                "bom-ref": f"{artifact.digest}/{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            }
            for file in artifact.files
        ],
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, artifact.digest)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "edgeopt", "version": __version__}]},
            "component": main,
        },
        "components": components,
        "dependencies": [
            {"ref": artifact.digest, "dependsOn": [one["bom-ref"] for one in components if one["scope"] == "required"]}
        ],
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _component(tool: tuple[str, str | None], used_by: list[str], runs_it: bool) -> dict[str, Any]:
    """A distribution: its package URL (purl) names it among those of PyPI, and so vulnerabilities known of it."""
    name, version = tool
    at = f"@{urllib.parse.quote(version, safe='')}" if version else ""
    url = f"pkg:pypi/{name.lower().replace('_', '-')}{at}"
    return {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "purl": url,
        "scope": "required" if runs_it else "excluded",
        "properties": [{"name": "edgeopt:step", "value": step} for step in used_by],
        **({"version": version} if version else {}),
    }
