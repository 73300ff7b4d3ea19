"""A Triton model repository: every configuration parses against Triton's own schema and says what the graphs say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from onnx import TensorProto, helper
from tiny_bundles import image_bundle, text_bundle
from triton_schema import model_config

from model_zoo import _answer_graph, _image_graph
from toolkit.bundle.manifest import ProcessingEntry
from toolkit.bundle.processing import write_processing
from toolkit.bundle.read import Bundle, open_bundle
from toolkit.cli import main
from toolkit.errors import UnsupportedError, UsageError
from toolkit.layouts._triton_config import batch_limit, tensors, text_of
from toolkit.layouts.triton import LAYOUT
from toolkit.processing import Processing
from toolkit.types import Dim, TensorSpec

TYPES = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.STRING: "TYPE_STRING",
}


def changed(bundle: Bundle, **fields) -> Bundle:
    return Bundle(bundle.folder, bundle.manifest.model_copy(update=fields))


def engine(bundle: Bundle, target: str, **fields) -> Bundle:
    """The bundle with another target's engine entry."""
    runtime, scheme = target.rsplit("-", 1)
    entry = bundle.manifest.engine.model_copy(update=fields)
    return changed(
        bundle, target=bundle.manifest.target.model_copy(update={"runtime": runtime, "scheme": scheme}), engine=entry
    )


def repository(folder, *bundles):
    """Each model's parsed configuration by name, once all were held against what lies beside them."""
    folder.mkdir()
    LAYOUT.write(bundles, folder)
    return read(folder)


def read(folder):
    kind = model_config()
    found = {}
    for path in sorted(folder.glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(encoding="utf-8"), kind())
        assert config.name == path.parent.name
        assert (path.parent / "1").is_dir()
        if config.default_model_filename.endswith(".onnx"):
            agrees_with_graph(config, path.parent / "1" / config.default_model_filename)
        found[config.name] = config
    return found


def agrees_with_graph(config, path):
    """Names, types and shapes are the graph's own, the batch axis apart."""
    graph = onnx.load(path, load_external_data=False).graph
    for told, values in ((config.input, graph.input), (config.output, graph.output)):
        assert [item.name for item in told] == [value.name for value in values]
        for item, value in zip(told, values, strict=True):
            tensor = value.type.tensor_type
            shape = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim]
            assert (
                type(item).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[item.data_type].name
                == (TYPES[tensor.elem_type])
            )
            if config.max_batch_size:
                assert shape.pop(0) == -1
            assert list(item.dims) == shape


@pytest.fixture
def image(tmp_path):
    return open_bundle(image_bundle(tmp_path / "image"))


def test_a_classifier_is_batched_and_labelled(image, tmp_path):
    (config,) = repository(tmp_path / "out", image).values()
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 4
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 1)
    (output,) = config.output
    labels = (tmp_path / "out" / config.name / output.label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == [f"digit {index}" for index in range(10)]


def test_dynamic_lengths_are_open_and_unlabelled(tmp_path):
    (config,) = repository(tmp_path / "out", open_bundle(text_bundle(tmp_path / "text"))).values()
    assert [list(item.dims) for item in config.input] == [[-1], [-1]]
    assert not config.output[0].label_filename


def test_the_command_writes_it_whole_and_again(tmp_path):
    folders = [str(image_bundle(tmp_path / "image")), str(text_bundle(tmp_path / "text"))]
    out = tmp_path / "repository"
    for _ in range(2):
        result = CliRunner().invoke(main, ["bundle", *folders, "--layout", "triton", "--output", str(out)])
        assert result.exit_code == 0, result.output
    assert "not run on a server" in result.output
    assert set(read(out)) == {"tiny-ort-cpu-fp32", "tiny-text-ort-cpu-fp32"}


@pytest.mark.parametrize(
    ("shapes", "dims", "limit"),
    [
        ([("batch", 3), ("batch",)], {"batch": Dim(1, 2, 8)}, 8),
        ([("rows", "n"), ("rows", 2)], {"rows": Dim(1, 2, 8), "n": Dim(1, 2, 3)}, 8),
        ([("batch", 3), ("batch", 2)], {"batch": Dim(2, 4, 8)}, 0),
        ([(1, 3), (1, 2)], {}, 0),
        ([("batch", 3), ("n", 2)], {"batch": Dim(1, 2, 8), "n": Dim(1, 2, 8)}, 0),
        ([("batch", 3), (2,)], {"batch": Dim(1, 2, 8)}, 0),
        ([("n", "n"), ("n",)], {"n": Dim(1, 2, 8)}, 0),
        ([(), ("batch",)], {"batch": Dim(1, 2, 8)}, 0),
        ([("height", "width", 3), ("height", 2)], {"batch": Dim(1, 2, 8)}, 0),
    ],
    ids=str,
)
def test_a_batch_axis_is_one_that_all_tensors_share(shapes, dims, limit):
    assert batch_limit([TensorSpec(str(index), "float32", shape) for index, shape in enumerate(shapes)], dims) == limit


def test_every_type_and_scalars_parse():
    kind = model_config()
    names = ["bool", "uint8", "int8", "int64", "float16", "float32", "float64", "bfloat16", "string"]
    specs = [
        *(TensorSpec(name, name, ("batch", "n", 3)) for name in names),
        TensorSpec('od"d é\n', "int32", ("batch",)),
    ]
    config = text_format.Parse(text_of({"name": "all", "input": tensors(specs, batched=True)}), kind())
    assert [list(item.dims) for item in config.input] == [[-1, 3]] * len(names) + [[1]]
    assert config.input[-1].HasField("reshape")
    assert config.input[-1].name == 'od"d é\n'
    assert not config.input[-1].reshape.shape
    with pytest.raises(UnsupportedError, match="complex64"):
        tensors([TensorSpec("z", "complex64", ())], batched=False)


def test_a_model_without_batch_axis_has_its_whole_shape(image, tmp_path):
    fixed = changed(image, dims={"batch": Dim(2, 2, 2)})
    (config,) = repository_unchecked(tmp_path / "out", fixed).values()
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 1, 8, 8]


def repository_unchecked(folder, *bundles):
    folder.mkdir()
    LAYOUT.write(bundles, folder)
    return {
        path.parent.name: text_format.Parse(path.read_text(), model_config()()) for path in folder.glob("*/*.pbtxt")
    }


class TestTensorrt:
    """Engine files stand in for what TensorRT itself would compile on a GPU; the entry says that it did."""

    @pytest.fixture
    def engines(self, image):
        names = {"sm89": "engine-sm89.plan", "sm120": "engine-sm120.plan"}
        for name in names.values():
            (image.folder / name).write_bytes(name.encode())
        built = {
            arch: {"architecture": arch, "file": name, "bytes": 1, "seconds": 1.0, "attentions": 0, "profiles": 3}
            for arch, name in names.items()
        }
        return engine(
            image,
            "trt-fp16",
            status="executed",
            builder="tensorrt 10.14.1",
            files=tuple(names.values()),
            details={"library": "tensorrt", "engines": built},
        )

    def test_one_model_holds_an_engine_for_each_capability(self, engines, tmp_path):
        (config,) = repository(tmp_path / "out", engines).values()
        assert config.platform == "tensorrt_plan"
        assert dict(config.cc_model_filenames) == {"8.9": "engine-sm89.plan", "12.0": "engine-sm120.plan"}
        version = tmp_path / "out" / config.name / "1"
        assert sorted(path.name for path in version.iterdir()) == ["engine-sm120.plan", "engine-sm89.plan"]
        assert config.default_model_filename in dict(config.cc_model_filenames).values()
        (group,) = config.instance_group
        assert (group.kind, list(group.profile)) == (group.KIND_GPU, ["0", "1", "2"])

    def test_what_another_library_compiled_is_refused(self, engines):
        details = {**engines.manifest.engine.details, "library": "tensorrt_rtx"}
        with pytest.raises(UnsupportedError, match="engines are of tensorrt_rtx") as caught:
            LAYOUT.check(engine(engines, "trt-fp16", details=details))
        assert "ort-trt" in caught.value.hint
        with pytest.raises(UnsupportedError, match="only its graph"):
            LAYOUT.check(engine(engines, "trt-fp16", details={"library": "tensorrt"}))

    def test_onnxruntime_builds_in_the_bundle_s_precision(self, image, tmp_path):
        options = {
            "TensorrtExecutionProvider": {
                "device_id": "0",
                "trt_profile_min_shapes": "x:1x1",
                "trt_timing_cache_enable": "True",
            },
            "CUDAExecutionProvider": {"use_tf32": "0"},
        }
        bundle = engine(image, "ort-trt-int8", status="graph-only", details={"provider_options": options})
        (config,) = repository(tmp_path / "out", bundle).values()
        first, second = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (first.name, dict(first.parameters)) == (
            "tensorrt",
            {"precision_mode": "INT8", "trt_profile_min_shapes": "x:1x1", "trt_timing_cache_enable": "1"},
        )
        assert (second.name, dict(second.parameters)) == ("cuda", {"use_tf32": "0"})
        with pytest.raises(UnsupportedError, match="bf16"):
            LAYOUT.check(engine(bundle, "ort-trt-bf16"))


@pytest.mark.parametrize("target", ["trt-rtx-fp16", "openvino-int8", "coreml-fp16"])
def test_what_no_backend_loads_is_refused_with_what_is_served(image, target):
    with pytest.raises(UnsupportedError) as caught:
        LAYOUT.check(engine(image, target))
    assert "ort-cpu, ort-cuda, ort-trt, trt" in caught.value.hint


def test_a_cache_in_place_is_refused(image):
    with pytest.raises(UnsupportedError, match="one buffer") as caught:
        LAYOUT.check(engine(image, "ort-cpu-fp32", inputs=image.manifest.inputs))
    assert "--kv-cache concat" in caught.value.hint


def test_two_bundles_of_one_name_are_refused(image, tmp_path):
    with pytest.raises(UsageError, match="two bundles"):
        repository(tmp_path / "out", image, image)


class TestAround:
    """Graphs before and after: uint8 pixels [H, W] to [1, 1, 8, 8], logits to shares of each class."""

    @pytest.fixture
    def whole(self, image):
        pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width"])
        values = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 1, 8, 8])
        nodes = [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "shape"], ["pixel_values"]),
        ]
        shape = onnx.numpy_helper.from_array(np.array([1, 1, 8, 8]), "shape")
        before = model(helper.make_graph(nodes, "before", [pixels], [values], [shape]))
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
        shares = helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["batch", 10])
        after = model(
            helper.make_graph([helper.make_node("Softmax", ["logits"], ["shares"])], "after", [logits], [shares])
        )
        return changed(
            image,
            preprocess=write_processing(image.folder, "preprocess", Processing(graph=before)),
            postprocess=write_processing(image.folder, "postprocess", Processing(graph=after)),
        )

    def test_an_ensemble_leads_from_pixels_to_answers(self, whole, tmp_path):
        configs = repository(tmp_path / "out", whole)
        name = "tiny-ort-cpu-fp32"
        assert set(configs) == {name, f"{name}-preprocess", f"{name}-postprocess", f"{name}-pipeline"}
        assert configs[f"{name}-preprocess"].max_batch_size == 0
        assert configs[f"{name}-postprocess"].max_batch_size == 4
        pipeline = configs[f"{name}-pipeline"]
        assert (pipeline.platform, pipeline.max_batch_size) == ("ensemble", 0)
        assert [list(item.dims) for item in (*pipeline.input, *pipeline.output)] == [[-1, -1], [-1, 10]]
        steps = pipeline.ensemble_scheduling.step
        assert [step.model_name for step in steps] == [f"{name}-preprocess", name, f"{name}-postprocess"]
        for step in steps:
            of = configs[step.model_name]
            assert set(step.input_map) == {item.name for item in of.input}
            assert set(step.output_map) == {item.name for item in of.output}
        fed = {pipeline.input[0].name}
        for step in steps:
            assert set(step.input_map.values()) <= fed
            fed |= set(step.output_map.values())
        assert pipeline.output[0].name in fed

    def test_what_no_member_answers_is_an_input_of_the_ensemble(self, whole, tmp_path):
        before = _image_graph.preprocessing(whole.manifest.spec(), ())
        after = _answer_graph.postprocessing(whole.manifest.spec())
        real = changed(
            whole,
            preprocess=write_processing(fresh(tmp_path / "before"), "preprocess", before),
            postprocess=write_processing(fresh(tmp_path / "after"), "postprocess", after),
        )
        pipeline = repository_unchecked(tmp_path / "out", real)["tiny-ort-cpu-fp32-pipeline"]
        assert {item.name: list(item.dims) for item in pipeline.input} == {
            "image": [-1, -1, -1], "orientation": [1], "k": [1],
        }  # fmt: skip
        assert [item.name for item in pipeline.output] == ["probabilities", "indices"]
        assert dict(pipeline.ensemble_scheduling.step[2].input_map) == {"logits": "logits", "k": "k"}

    def test_where_all_are_batched_so_is_the_ensemble(self, whole, tmp_path):
        configs = repository(tmp_path / "out", changed(whole, preprocess=None))
        pipeline = configs["tiny-ort-cpu-fp32-pipeline"]
        assert pipeline.max_batch_size == 4
        assert [list(item.dims) for item in (*pipeline.input, *pipeline.output)] == [[1, 8, 8], [10]]

    def test_what_needs_operators_of_its_own_is_told(self, whole, tmp_path):
        entry = whole.manifest.preprocess.model_copy(update={"needs": ("onnxruntime-extensions",)})
        folder = tmp_path / "out"
        folder.mkdir()
        said = LAYOUT.write([changed(whole, preprocess=entry, postprocess=ProcessingEntry(reason="none"))], folder)
        assert "onnxruntime-extensions: do that in the client" in said
        assert [path.name for path in folder.iterdir()] == ["tiny-ort-cpu-fp32"]

    def test_graphs_that_do_not_fit_together_have_no_ensemble(self, whole, tmp_path):
        entry = whole.manifest.postprocess
        other = entry.model_copy(update={"inputs": (TensorSpec("others", "float32", ("batch", 10)),)})
        configs = repository_unchecked(tmp_path / "out", changed(whole, postprocess=other))
        assert "tiny-ort-cpu-fp32-pipeline" not in configs


def fresh(folder):
    folder.mkdir()
    return folder


def model(graph):
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
