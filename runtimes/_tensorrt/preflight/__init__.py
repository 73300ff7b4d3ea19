"""What TensorRT's parser refuses, misreads or makes slow, found and named before anything is compiled.

Each rule was measured with TensorRT-RTX 1.7.1; `docs/tensorrt-parser.md` lists what it did with each graph.
"""

from runtimes._tensorrt.preflight.check import Objection, check, objections

__all__ = ["Objection", "check", "objections"]
