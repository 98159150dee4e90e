"""ONNX files: a finished graph written down. The package onnx is asked for only here, and only when one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vidlang.serve.export.graph import Graph, Node, Value

OPSET, IR = 18, 8
# A file holds its numbers itself up to here, and beyond in a second one beside it: no file of this kind may have 2 GB.
EMBEDDED_BYTES = 1_900_000_000
# Smaller arrays are neither put into the second file nor made shorter.
LEAST_BYTES = 1024
MOST_HALF = float(np.finfo(np.float16).max)
# Of the numbers in a file; they are computed with in float32 either way.
WEIGHTS = ("float32", "float16")


def write(graph: Graph, path: Path, name: str, weights: str = "float32") -> list[Path]:
    """Writes the graph; returns the files that it is in. weights: one of WEIGHTS."""
    onnx = _package("onnx", "writing ONNX files")
    if weights == "float16":
        graph = halved(graph)
    total = sum(array.nbytes for array in graph.constants.values())
    paths = [path]
    if total > EMBEDDED_BYTES:
        paths.append(path.with_name(f"{path.name}.data"))
        with open(paths[1], "wb") as beside:
            tensors = [_external(onnx, each, array, beside, paths[1].name) for each, array in graph.constants.items()]
    else:
        tensors = [onnx.numpy_helper.from_array(array, each) for each, array in graph.constants.items()]
    nodes = [
        onnx.helper.make_node(node.op, node.inputs, node.outputs, **_attributes(onnx, node.attributes))
        for node in graph.nodes
    ]
    inputs, outputs = ([_described(onnx, value) for value in values] for values in (graph.inputs, graph.outputs))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, name, inputs, outputs, tensors),
        producer_name="vidlang",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return paths


def halved(graph: Graph) -> Graph:
    """The graph with its large constants in float16, each of which a node makes float32 again."""
    found, casts = dict(graph.constants), []
    for name, array in graph.constants.items():
        if array.dtype != np.float32 or array.nbytes < LEAST_BYTES:
            continue
        if array.min() < -MOST_HALF or array.max() > MOST_HALF:
            raise ValueError(
                f"parameters go up to {np.abs(array).max():.3g}, which float16 does not hold; take float32"
            )
        found[f"{name}_half"] = found.pop(name).astype(np.float16)
        casts.append(Node("Cast", (f"{name}_half",), (name,), {"to": np.dtype(np.float32)}))
    return Graph(graph.inputs, graph.outputs, casts + graph.nodes, found)


def require() -> None:
    """ValueError where the packages lack that writing and running take."""
    _package("onnx", "writing ONNX files")
    _package("onnxruntime", "running ONNX files")


def session(path: Path, threads: int = 0) -> Any:
    """The file in ONNX Runtime, on the CPU."""
    runtime = _package("onnxruntime", "running ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _package(name: str, what: str) -> Any:
    try:
        if name == "onnx":
            import onnx.checker  # noqa: F401
            import onnx.helper
            import onnx.numpy_helper

            return onnx
        import onnxruntime

        return onnxruntime
    except ImportError as error:
        raise ValueError(f"{what} needs the package {name}: pip install 'vidlang[onnx]' ({error})") from error


def _described(onnx: Any, value: Value) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return onnx.helper.make_tensor_value_info(
        value.name, kind, [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
    )


def _attributes(onnx: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: onnx.helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for name, value in attributes.items()
    }


def _external(onnx: Any, name: str, array: np.ndarray, file: Any, location: str) -> Any:
    """A tensor whose numbers go into `file`, unless they are few."""
    if array.nbytes < LEAST_BYTES:
        return onnx.numpy_helper.from_array(array, name)
    tensor = onnx.TensorProto(name=name, dims=array.shape)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    settings = {"location": location, "offset": file.tell(), "length": array.nbytes}
    for key, setting in settings.items():
        tensor.external_data.add(key=key, value=str(setting))
    file.write(np.ascontiguousarray(array).tobytes())
    return tensor
