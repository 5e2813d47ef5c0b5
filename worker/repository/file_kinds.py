"""The kinds of files that people bring as models: what each is called, what runs it, what to do.

`worker.repository.sniffer` tells which one a file is.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.settings import Settings

PICKLES = {"torch_pickle", "joblib"}
"""The backends that unpickle: loading runs whatever code is in the file."""
RUN_CODE = frozenset({*PICKLES, "torch_aoti"})
"""The backends whose files run code when they are loaded, and are for who trusts them alone."""
CONVERT = "convert it to ONNX"
COPY_AGAIN = "copy it again"
MAX_SHOWN = 3


class FileKind(NamedTuple):
    """The answer of `what_is`: a short name, a noun phrase for people, the backend that runs it.

    `backend` is empty when none does; `advice` then says what to do instead. `key` names the entry
    of a dictionary that holds the model itself, in a checkpoint. `classes` are the dotted names of
    classes and functions that a pickle imports, as far as they were read.
    """

    name: str
    what: str
    backend: str = ""
    advice: str = ""
    key: str = ""
    classes: frozenset[str] = frozenset()

    @property
    def sentence(self) -> str:
        """Return what the file is, and what to do when nothing runs it, without a full stop."""
        return f"{self.what}: {self.advice}" if self.advice else self.what


TORCHSCRIPT = FileKind("torchscript", "a TorchScript archive", "torchscript")
TORCH_EXPORT = FileKind("torch_export", "a program of torch.export", "torch_export")
SAFETENSORS = FileKind("safetensors", "a safetensors file, weights only", "torch_state_dict")
ONNX = FileKind("onnx", "an ONNX model", "onnxruntime")
ORT = FileKind("ort", "an ONNX model in ONNX Runtime's own format", "onnxruntime")
PYTHON = FileKind("python", "a Python file", "python")
AOTI = FileKind(
    "aoti",
    "an AOTInductor package, machine code that was compiled for one kind of machine",
    "torch_aoti",
    advice="save the program itself with torch.export.save",
)
TORCH_PACKAGE = FileKind(
    "torch_package", "a torch.package archive", advice="save the model with torch.export.save"
)
OLD_TORCH = FileKind(
    "old_torch",
    "a tar archive as torch wrote it before version 0.1.10",
    advice="load and save it again with a later torch",
)
KERAS = FileKind("keras", "a Keras model", advice=CONVERT)
HDF5 = FileKind("hdf5", "an HDF5 file, as Keras writes models and weights", advice=CONVERT)
SAVED_MODEL = FileKind("saved_model", "a TensorFlow SavedModel", advice=CONVERT)
TENSORFLOW = FileKind("tensorflow", "a TensorFlow graph", advice=CONVERT)
TFLITE = FileKind("tflite", "a TensorFlow Lite model", advice=CONVERT)
TENSORRT = FileKind(
    "tensorrt",
    "a TensorRT plan, which runs on one kind of GPU only",
    advice="bring the ONNX file that it was built from",
)
GGUF = FileKind(
    "gguf",
    "a GGUF file, a language model for llama.cpp",
    advice="Ferry runs none, serve it with llama.cpp",
)
EXECUTORCH = FileKind(
    "executorch", "an ExecuTorch program", advice="save it with torch.export.save instead"
)
OPENVINO = FileKind("openvino", "an OpenVINO model", advice="bring the ONNX file it was made from")
PMML = FileKind("pmml", "a PMML model", advice=CONVERT)
XGBOOST = FileKind(
    "xgboost",
    "an XGBoost model in its own format",
    advice="joblib.dump its scikit-learn estimator, or convert it to ONNX",
)
LIGHTGBM = FileKind(
    "lightgbm",
    "a LightGBM model in its own format",
    advice="joblib.dump its scikit-learn estimator, or convert it to ONNX",
)
CATBOOST = FileKind("catboost", "a CatBoost model in its own format", advice="save it as ONNX")
NUMPY = FileKind(
    "numpy", "an array of numpy, no model", advice="bring the model that it belongs to"
)
GIT_LFS = FileKind(
    "git_lfs",
    "a Git LFS pointer, a few lines in place of the model",
    advice="fetch the file itself with git lfs pull",
)
EMPTY = FileKind("empty", "an empty file", advice=COPY_AGAIN)
MISSING = FileKind("missing", "missing", advice="put the model's file there")
NO_FILE = FileKind(
    "directory", "a directory, not a file", advice="put the model's file in its place"
)
HUGGING_FACE = FileKind(
    "hugging_face",
    "a Hugging Face model directory",
    advice="export it, or write a model.py that loads it",
)
TEXT = FileKind("text", "a text file, no model", advice="bring the model's own file")
UNKNOWN = FileKind(
    "unknown",
    "no model that Ferry knows",
    advice="bring TorchScript, torch.export, a state dict, safetensors, ONNX, joblib or Python",
)


def cut_off(what: str) -> FileKind:
    """Return the kind of a file that ends too early, `what` is the kind that it begins as."""
    return FileKind("truncated", f"{what} that is cut off", advice=COPY_AGAIN)


def error_page(what: str, said: str) -> FileKind:
    """Return the kind of a server's answer that was saved in place of a model."""
    shown = f" ({said})" if said else ""
    advice = "it may be a server's answer in place of the model, download that again"
    return FileKind("error_page", f"{what}{shown}, no model", advice=advice)


def archive(what: str, names: list[str]) -> FileKind:
    """Return the kind of an archive that is no model itself; a few of its `names` are shown."""
    shown = ", ".join(repr(name) for name in names[:MAX_SHOWN])
    shown += ", ..." if len(names) > MAX_SHOWN else ""
    held = f" of {shown}" if names else ""
    return FileKind("archive", f"{what}{held}", advice="unpack it and bring the model's own file")


def trusted_backends(settings: Settings) -> frozenset[str]:
    """Return the backends among RUN_CODE whose files the settings allow to be loaded."""
    return frozenset(
        {*(PICKLES if settings.allow_pickle else ())}
        | ({AOTI.backend} if settings.allow_machine_code else set())
    )


def code_refusal(kind: FileKind) -> str:
    """Return why a file that runs code is not loaded, and the ways out, in one sentence."""
    if kind.backend == AOTI.backend:
        return (
            f"{kind.what}: loading it runs that code, so set FERRY_ALLOW_MACHINE_CODE=1 for the "
            f"worker if you trust every such file of the repository, or {kind.advice}"
        )
    way = "convert it to ONNX"
    if kind.backend == "torch_pickle":
        way = "export it with torch.export.save or torch.jit.script"
    return (
        f"{kind.what}: loading a pickle runs whatever code is in it, so set FERRY_ALLOW_PICKLE=1 "
        f"for the worker if you trust every such file of the repository, or {way}"
    )
