"""What `compile: reference` does: the canonical ONNX is what the runtime loads, so that it is copied."""

import shutil

from edgeopt.stages import Options, Produced
from edgeopt_reference import backend

VERSION = 1
CompileOptions = Options  # it has none of its own


def tools(options):
    return ("onnx",)


def sample_roles(options, precision):
    return ()


def objection(options, precision):
    return None if precision in ("fp32", "int8") else f"the reference is kept for fp32 and int8, not for {precision}"


def compile(job):
    made = job.out / "model.onnx"
    shutil.copyfile(job.parent_folder / job.parent.main, made)
    job.progress(None, "loading the model")
    session = backend.load(made, {}, threads=1)
    return Produced(backend.FORMAT, made.name, session.inputs, session.outputs, job.parent.precision)
