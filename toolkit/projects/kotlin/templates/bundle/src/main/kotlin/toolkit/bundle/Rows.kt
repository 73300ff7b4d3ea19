package toolkit.bundle

/**
 * Feeds an engine of one fixed shape with any: axis 0 is cut into single rows, every other axis is padded with zeros at
 * its end, and the answers are put together and cut to the sizes that their named axes had in the inputs.
 */
internal class Rows(private val manifest: Manifest, private val engine: Engine) {
    private val fixed = manifest.engineInputs.associate { it.name to it.shape }
    private val byRow = manifest.inputs.filter { it.shape.firstOrNull() is String && fixed.getValue(it.name)[0] == 1 }
        .map { it.name }

    fun run(inputs: Map<String, Tensor>): Map<String, Tensor> {
        check(inputs)
        if (manifest.engineInputs.none { differs(it, inputs.getValue(it.name)) }) return engine.run(inputs)
        val sizes = sizes(inputs)
        val rows = byRow.maxOfOrNull { inputs.getValue(it).shape[0] } ?: 1
        if (rows < 1) throw BundleException("the inputs have no rows")
        val answers = (0 until rows).map { row -> engine.run(inputs.mapValues { (name, all) -> row(name, all, row) }) }
        return manifest.outputs.associate { spec -> spec.name to joined(spec, answers, sizes) }
    }

    private fun differs(spec: Spec, given: Tensor) =
        spec.shape.zip(given.shape).any { (dim, size) -> dim is Int && dim != size }

    /** Names, types and ranks, and each size that the model has as a number. */
    private fun check(inputs: Map<String, Tensor>) {
        val known = manifest.inputs.map { it.name }
        (known - inputs.keys).firstOrNull()?.let { throw BundleException("input '$it' is missing") }
        (inputs.keys - known.toSet()).firstOrNull()?.let { throw BundleException("the model has no input '$it'") }
        for (spec in manifest.inputs) {
            val given = inputs.getValue(spec.name)
            val same = given.dtype == spec.dtype && given.shape.size == spec.shape.size
            if (!same || differs(spec, given)) {
                throw BundleException("input '${spec.name}' is $given; the model takes $spec")
            }
        }
    }

    private fun sizes(inputs: Map<String, Tensor>): Map<String, Int> {
        val found = HashMap<String, Int>()
        for (spec in manifest.inputs) {
            val given = inputs.getValue(spec.name).shape
            spec.shape.zip(given).forEach { (dim, size) -> if (dim is String) found[dim] = size }
        }
        return found
    }

    private fun row(name: String, all: Tensor, row: Int): Tensor {
        val shape = fixed.getValue(name)
        val one = if (name in byRow) all.row(row) else all
        val wanted = shape.zip(one.shape).map { (dim, size) -> if (dim is Int) dim else size }
        if (wanted.zip(one.shape).any { (most, size) -> size > most }) {
            throw BundleException("input '$name' is $one; the engine takes at most ${Spec(name, one.dtype, shape)}")
        }
        return one.resized(wanted)
    }

    private fun joined(spec: Spec, answers: List<Map<String, Tensor>>, sizes: Map<String, Int>): Tensor {
        val parts = answers.map {
            val one = it[spec.name] ?: throw BundleException("the engine gave no output '${spec.name}'")
            one.resized(one.shape.mapIndexed { axis, size -> if (axis > 0) sizes[spec.shape[axis]] ?: size else size })
        }
        val shape = listOf(parts.sumOf { it.shape[0] }) + parts[0].shape.drop(1)
        val bytes = ByteArray(parts.sumOf { it.bytes.size })
        var at = 0
        for (part in parts) {
            part.bytes.copyInto(bytes, at)
            at += part.bytes.size
        }
        return Tensor.of(parts[0].dtype, shape, bytes)
    }
}

/** One row of axis 0, which stays as an axis of size 1. */
internal fun Tensor.row(index: Int): Tensor {
    if (index >= shape[0]) throw BundleException("an input has ${shape[0]} rows, another has more")
    val width = bytes.size / shape[0]
    return Tensor.of(dtype, listOf(1) + shape.drop(1), bytes.copyOfRange(index * width, (index + 1) * width))
}

/** The same numbers in another shape of as many axes: cut, or filled with zeros, at each axis' end. */
internal fun Tensor.resized(wanted: List<Int>): Tensor {
    if (wanted == shape) return this
    val width = Tensor.width(dtype)
    val target = ByteArray(wanted.fold(width) { product, dim -> product * dim })
    copyAxis(target, wanted, 0, 0, 0, width)
    return Tensor.of(dtype, wanted, target)
}

private fun Tensor.copyAxis(target: ByteArray, wanted: List<Int>, axis: Int, from: Int, to: Int, width: Int) {
    if (axis == shape.size) {
        bytes.copyInto(target, to, from, from + width)
        return
    }
    val inner = { sizes: List<Int> -> sizes.drop(axis + 1).fold(width) { product, dim -> product * dim } }
    val (step, stride) = inner(shape) to inner(wanted)
    for (index in 0 until minOf(shape[axis], wanted[axis])) {
        copyAxis(target, wanted, axis + 1, from + index * step, to + index * stride, width)
    }
}
