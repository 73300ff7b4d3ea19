package toolkit.bundle

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What went wrong with a bundle, its inputs or its outputs, in words for the reader. */
class BundleException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** Name, numpy dtype and shape of an input or output; a dimension is a number, or a name such as `batch`. */
data class Spec(val name: String, val dtype: String, val shape: List<Any>) {
    override fun toString() = "$dtype [${shape.joinToString(", ")}]"
}

/** Numbers in row-major order, little-endian as numpy stores `dtype`; or, of dtype `string`, the texts. */
class Tensor private constructor(
    val dtype: String,
    val shape: List<Int>,
    internal val bytes: ByteArray,
    internal val texts: List<String>,
) {
    /** How many elements it has. */
    val size: Int get() = shape.fold(1) { product, dim -> product * dim }

    override fun toString() = "$dtype [${shape.joinToString(", ")}]"

    /** All elements as doubles; a [BundleException] for texts and for half precision. */
    fun toDoubles(): DoubleArray {
        val buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
        return DoubleArray(size) { read(buffer, it) }
    }

    /** The elements of a float32 tensor; a [BundleException] for another. */
    fun toFloats(): FloatArray {
        if (dtype != "float32") throw BundleException("a tensor of $dtype was read as float32")
        val buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        return FloatArray(size).also { buffer.get(it) }
    }

    private fun read(buffer: ByteBuffer, index: Int): Double = when (dtype) {
        "float32" -> buffer.getFloat(4 * index).toDouble()
        "float64" -> buffer.getDouble(8 * index)
        "int64" -> buffer.getLong(8 * index).toDouble()
        "int32" -> buffer.getInt(4 * index).toDouble()
        "int16" -> buffer.getShort(2 * index).toDouble()
        "int8" -> buffer.get(index).toDouble()
        "uint8" -> (buffer.get(index).toInt() and 0xff).toDouble()
        "bool" -> if (buffer.get(index).toInt() != 0) 1.0 else 0.0
        else -> throw BundleException("numbers of type $dtype are not read here")
    }

    companion object {
        private val WIDTHS = mapOf(
            "float32" to 4, "float64" to 8, "int64" to 8, "int32" to 4, "int16" to 2, "float16" to 2, "int8" to 1,
            "uint8" to 1, "bool" to 1,
        )

        /** Bytes of an element; a [BundleException] for a type that is not known. */
        fun width(dtype: String): Int = WIDTHS[dtype] ?: throw BundleException("numbers of type $dtype are not known")

        /** A tensor of these bytes; a [BundleException] where their number does not fit the shape. */
        fun of(dtype: String, shape: List<Int>, bytes: ByteArray): Tensor {
            val made = Tensor(dtype, shape, bytes, emptyList())
            if (bytes.size != made.size * width(dtype)) {
                throw BundleException("$made has ${bytes.size} bytes of data")
            }
            return made
        }

        /** float32 numbers. */
        fun of(shape: List<Int>, values: FloatArray): Tensor {
            val buffer = ByteBuffer.allocate(4 * values.size).order(ByteOrder.LITTLE_ENDIAN)
            buffer.asFloatBuffer().put(values)
            return of("float32", shape, buffer.array())
        }

        /** int64 numbers, as token ids are. */
        fun of(shape: List<Int>, values: LongArray): Tensor {
            val buffer = ByteBuffer.allocate(8 * values.size).order(ByteOrder.LITTLE_ENDIAN)
            buffer.asLongBuffer().put(values)
            return of("int64", shape, buffer.array())
        }

        /** uint8 numbers, as pixels are. */
        fun of(shape: List<Int>, values: ByteArray): Tensor = of("uint8", shape, values)

        /** Texts. */
        fun of(shape: List<Int>, texts: List<String>): Tensor {
            val made = Tensor("string", shape, ByteArray(0), texts)
            if (texts.size != made.size) throw BundleException("$made has ${texts.size} texts")
            return made
        }

        /** Name and tensor of an ONNX `TensorProto` file; a [BundleException] for one that is broken. */
        fun read(file: File): Pair<String, Tensor> = try {
            TensorProto(file.readBytes()).read()
        } catch (error: IndexOutOfBoundsException) {
            throw BundleException("${file.name} is cut off", error)
        }
    }
}

/** Just as much of protobuf as `TensorProto` messages need whose numbers are in `raw_data`. */
private class TensorProto(private val data: ByteArray) {
    private var at = 0

    fun read(): Pair<String, Tensor> {
        val dims = ArrayList<Int>()
        val texts = ArrayList<String>()
        var name = ""
        var type = 0
        var raw = ByteArray(0)
        while (at < data.size) {
            val tag = varint().toInt()
            when (tag) {
                8 -> dims.add(varint().toInt())
                10 -> { val end = varint().toInt() + at; while (at < end) dims.add(varint().toInt()) }
                16 -> type = varint().toInt()
                50 -> texts.add(chunk().toString(Charsets.UTF_8))
                66 -> name = chunk().toString(Charsets.UTF_8)
                74 -> raw = chunk()
                else -> skip(tag and 7)
            }
        }
        val dtype = TYPES[type] ?: throw BundleException("tensor '$name' is of ONNX type $type, which is not read here")
        return name to if (dtype == "string") Tensor.of(dims, texts) else Tensor.of(dtype, dims, raw)
    }

    private fun varint(): Long {
        var found = 0L
        var shift = 0
        while (true) {
            val next = data[at++].toLong()
            found = found or ((next and 0x7f) shl shift)
            if (next >= 0) return found
            shift += 7
        }
    }

    private fun chunk(): ByteArray {
        val size = varint().toInt()
        at += size
        return data.copyOfRange(at - size, at)
    }

    private fun skip(wire: Int) {
        when (wire) {
            0 -> varint()
            1 -> at += 8
            2 -> chunk()
            5 -> at += 4
            else -> throw BundleException("a tensor file is no ONNX tensor")
        }
    }

    private companion object {
        val TYPES = mapOf(
            1 to "float32", 2 to "uint8", 3 to "int8", 5 to "int16", 6 to "int32", 7 to "int64", 8 to "string",
            9 to "bool", 10 to "float16", 11 to "float64",
        )
    }
}
