"""ONNX Runtime for the Kotlin program's self-test: a graph opened here, fed from files whose folders come by lines."""

import sys
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import numpy_helper


def main(path: str) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if path.endswith("process.onnx"):
        try:
            import onnxruntime_extensions

            options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
        except ImportError:
            pass
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    told = [f"onnxruntime {ort.__version__} {session.get_providers()[0]}"]
    for arguments in (session.get_inputs(), session.get_outputs()):
        told.append(str(len(arguments)))
        shapes = (",".join(map(str, argument.shape)) for argument in arguments)
        told += [f"{each.name}\t{dtype(each.type)}\t{shape}" for each, shape in zip(arguments, shapes, strict=True)]
    tell(told)
    for line in sys.stdin:
        tell([str(run(session, Path(line.strip())))])


def tell(lines: list[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def dtype(kind: str) -> str:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def run(session: ort.InferenceSession, folder: Path) -> int:
    fed = {}
    for file in folder.glob("input_*.pb"):
        tensor = onnx.TensorProto.FromString(file.read_bytes())
        fed[tensor.name] = numpy_helper.to_array(tensor)
    names = [argument.name for argument in session.get_outputs()]
    for index, (name, array) in enumerate(zip(names, session.run(names, fed), strict=True)):
        (folder / f"output_{index}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    return len(names)


if __name__ == "__main__":
    main(sys.argv[1])
