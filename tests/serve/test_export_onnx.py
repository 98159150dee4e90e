"""Models as ONNX files: ONNX Runtime answers what the model itself does, at every layout, pool and batch size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from vidlang.models import dual_encoder
from vidlang.ops.dials import OFF, Dials
from vidlang.serve.export import convert, onnx_file
from vidlang.serve.export.program import programs, standalone

TRANSFORMER = {"layers": 2, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}
FRAMES = {"tubelet": (1, 8, 8)}
VIEWS = ({"size": (2, 8, 8), "stride": (2, 8, 8)}, {"size": (2, 4, 4), "stride": (2, 6, 6), "offset": (0, 2, 2)})
# name -> (video, its transformer, its dials)
VIDEOS = {
    "mean": ({"pool": "mean"}, {}, {}),
    "cls, unrolled": ({"pool": "cls", "norm_stem": True}, {"scan": False, "activation": "quick_gelu"}, {}),
    "chunked": ({"pool": "cls"}, {"attention": "chunked"}, {}),
    "divided": ({"pool": "cls", **FRAMES}, {"layout": "divided"}, {}),
    "timesformer": ({"pool": "mean", **FRAMES}, {"layout": "timesformer", "activation": "relu"}, {}),
    "factorized": ({"pool": "cls", **FRAMES}, {"layout": "factorized"}, {}),
    "frames, mean": ({"pool": "cls", **FRAMES}, {"layout": "frames"}, {}),
    "frames, attention": ({"pool": "mean", "pool_frames": "attention", **FRAMES}, {"layout": "frames"}, {}),
    "relative": (
        {"pool": "mean", "cls": True, "norm_pooled": True, "stem_bias": False},
        {"relative_positions": True, "layer_scale": 0.1},
        {},
    ),
    "views": ({"pool": "mean", "positions": "sincos", "views": VIEWS}, {"adapter": 4, "lora_rank": 2}, {}),
    "keep": ({"pool": "cls"}, {"layers": 3, "relative_positions": True}, {"keep": ((0, 0.7), (1, 0.5))}),
    "edges": ({"pool": "cls", "tubelet": (1, 4, 4)}, {}, {"edges": {"local": 1, "random": 1, "block": 8}}),
    "widths": ({"pool": "cls"}, {}, {"widths": (16, 8)}),
}
# name -> (text, its transformer)
TEXTS = {
    "eos, causal": ({"pool": "eos"}, {"causal": True, "activation": "gelu_tanh"}),
    "mean, scanned": ({"pool": "mean"}, {"activation": "silu"}),
    "cls, post": (
        {"pool": "cls", "final_norm": False, "norm_embeddings": True, "token_types": 2},
        {"norm": "post", "scan": False},
    ),
}


def dual(video=None, text=None, transformer=None, text_transformer=None):
    video = {"tubelet": (2, 8, 8), **(video or {}), "transformer": {**TRANSFORMER, **(transformer or {})}}
    text = {"vocab": 30, "max_length": 8, "pool": "eos", **(text or {})}
    text["transformer"] = {**TRANSFORMER, "layers": 2, **(text_transformer or {})}
    temperature = {"init": 0.07, "max_scale": 100.0, "learnable": True}
    return dual_encoder.Model(video=video, text=text, embed=8, temperature=temperature)


FIELDS = {
    "video_BTHWC": jax.ShapeDtypeStruct((1, 4, 16, 16, 3), jnp.uint8),
    "text_BL": jax.ShapeDtypeStruct((1, 8), jnp.int32),
}


def drawn(model, fields=FIELDS, seed=0):
    """Parameters none of which is at its start."""
    inputs = [jnp.zeros(fields[name].shape, fields[name].dtype) for name in model.inputs]
    params = nn.unbox(jax.jit(lambda key: model.init(key, *inputs, train=False))(jax.random.key(seed)))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)


def exported(model, params, method, path, dials=OFF, fields=FIELDS):
    """(the program, its file in ONNX Runtime)"""
    (program,) = (each for each in programs(standalone(model), params, fields, dials) if each.method == method)
    graph = convert.convert(program.function, program.inputs, program.output)
    (file,) = onnx_file.write(graph, path / f"{method}.onnx", method)
    return program, onnx_file.session(file, threads=1)


def same(model, params, method, path, dials=OFF, atol=1e-5, fields=FIELDS):
    """That the file answers what the model as it was trained does, whatever the batch."""
    program, session = exported(model, params, method, path, dials, fields)
    options = {} if method == "embed_text" else {"dials": dials}

    @jax.jit
    def live(*arrays):
        return model.apply({"params": params}, *arrays, method=method, **options)

    arrays = program.example(5)
    expected = live(*arrays.values())
    assert np.abs(expected).max() > 0.1
    for batch in (1, 2, 5):
        (found,) = session.run([program.output], {name: array[:batch] for name, array in arrays.items()})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:batch], atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_clips(name, tmp_path):
    video, transformer, dials = VIDEOS[name]
    model = dual(video, transformer=transformer)
    same(model, drawn(model), "embed_video", tmp_path, Dials(**dials))


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, tmp_path):
    text, transformer = TEXTS[name]
    model = dual(text=text, text_transformer=transformer)
    same(model, drawn(model), "embed_text", tmp_path)


def test_a_batch_is_open_and_the_file_holds_what_it_needs_once(tmp_path):
    model = dual()
    params = drawn(model)
    exported(model, params, "embed_video", tmp_path)
    file = onnx.load(tmp_path / "embed_video.onnx")
    dims = [
        [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim]
        for v in (*file.graph.input, *file.graph.output)
    ]
    assert dims == [["b", 4, 16, 16, 3], ["b", 8]]
    assert [value.name for value in file.graph.input] == ["video"] and file.graph.output[0].name == "embedding"
    own = sum(
        leaf.size
        for leaf in jax.tree.leaves(
            [params["video_encoder"], params["project_video" if "project_video" in params else "video_projection"]]
        )
    )
    held = sum(onnx.numpy_helper.to_array(tensor).size for tensor in file.graph.initializer)
    assert own <= held < 1.1 * own + 500


def test_layers_are_few_nodes():
    model = dual()
    params = drawn(model)
    for program in programs(standalone(model), params, FIELDS, OFF):
        ops = [node.op for node in convert.convert(program.function, program.inputs, program.output).nodes]
        layers = TRANSFORMER["layers"]
        assert ops.count("Softmax") == layers and ops.count("LayerNormalization") == 2 * layers + 1
        assert ops.count("MatMul") == layers * (4 + 2 + 2) + (2 if program.method == "embed_video" else 1)


@pytest.mark.slow
def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    model = dual()
    params = drawn(model)
    (program, _) = programs(standalone(model), params, FIELDS, OFF)
    graph = convert.convert(program.function, program.inputs, program.output)
    monkeypatch.setattr(onnx_file, "EMBEDDED_BYTES", 1000)
    path, beside = onnx_file.write(graph, tmp_path / "embed_video.onnx", "embed_video")
    assert beside.name == "embed_video.onnx.data" and path.stat().st_size < beside.stat().st_size * 3
    arrays = program.example(2)
    (found,) = onnx_file.session(path).run(None, arrays)
    np.testing.assert_allclose(found, program.function(**arrays), atol=1e-5)


def test_an_unknown_primitive_is_named():
    inputs = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match="the model uses 'lgamma', which this converter does not write"):
        convert.convert(lambda x: jax.lax.lgamma(x), inputs, "y")
    with pytest.raises(ValueError, match="'while'"):
        convert.convert(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), inputs, "y")
