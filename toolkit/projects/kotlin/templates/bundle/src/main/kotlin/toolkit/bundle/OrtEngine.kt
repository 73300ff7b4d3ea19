package toolkit.bundle

import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import ai.onnxruntime.extensions.OrtxPackage
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** A graph on ONNX Runtime. `configure` may add an execution provider, as `addXnnpack(emptyMap())`. */
class OrtEngine(path: String, needs: List<String> = emptyList(), configure: (OrtSession.SessionOptions) -> Unit = {}) :
    Engine {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession

    init {
        val options = OrtSession.SessionOptions()
        try {
            if (EXTENSIONS in needs) options.registerCustomOpLibrary(OrtxPackage.getLibraryPath())
            configure(options)
            session = environment.createSession(path, options)
        } catch (error: OrtException) {
            throw BundleException("ONNX Runtime does not open $path: ${error.message}", error)
        } finally {
            options.close()
        }
    }

    override val runtime = "onnxruntime ${environment.version} CPUExecutionProvider"
    override val inputs: List<Spec> = specs(session.inputInfo)
    override val outputs: List<Spec> = specs(session.outputInfo)

    override fun run(inputs: Map<String, Tensor>): Map<String, Tensor> {
        val fed = LinkedHashMap<String, OnnxTensor>()
        try {
            inputs.forEach { (name, tensor) -> fed[name] = given(tensor) }
            return session.run(fed).use { result ->
                result.associate { (name, value) -> name to taken(value as OnnxTensor) }
            }
        } catch (error: OrtException) {
            throw BundleException("ONNX Runtime does not run the graph: ${error.message}", error)
        } finally {
            fed.values.forEach(OnnxTensor::close)
        }
    }

    override fun close() = session.close()

    private fun given(tensor: Tensor): OnnxTensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        if (tensor.dtype == "string") {
            return OnnxTensor.createTensor(environment, tensor.texts.toTypedArray(), shape)
        }
        val buffer = ByteBuffer.allocateDirect(tensor.bytes.size).order(ByteOrder.nativeOrder())
        buffer.put(tensor.bytes).rewind()
        return OnnxTensor.createTensor(environment, buffer, shape, type(tensor.dtype))
    }

    private fun taken(value: OnnxTensor): Tensor {
        val shape = value.info.shape.map { it.toInt() }
        if (value.info.type == OnnxJavaType.STRING) return Tensor.of(shape, flat(value.value))
        val buffer = value.byteBuffer
        return Tensor.of(dtype(value.info.type), shape, ByteArray(buffer.remaining()).also { buffer.get(it) })
    }

    private fun flat(value: Any?): List<String> =
        if (value is Array<*>) value.flatMap { flat(it) } else listOf(value as String)

    companion object {
        const val EXTENSIONS = "onnxruntime-extensions"

        /** Graphs of a phone's app, which holds the extensions. */
        val OPENER = object : Opener {
            override val extensions = ""

            override fun open(path: String, needs: List<String>): Engine = OrtEngine(path, needs)
        }

        private val TYPES = mapOf(
            "float32" to OnnxJavaType.FLOAT, "float64" to OnnxJavaType.DOUBLE, "int64" to OnnxJavaType.INT64,
            "int32" to OnnxJavaType.INT32, "int16" to OnnxJavaType.INT16, "int8" to OnnxJavaType.INT8,
            "uint8" to OnnxJavaType.UINT8, "bool" to OnnxJavaType.BOOL, "float16" to OnnxJavaType.FLOAT16,
            "string" to OnnxJavaType.STRING,
        )

        private fun type(dtype: String) = TYPES[dtype] ?: throw BundleException("numbers of type $dtype are not known")

        private fun dtype(type: OnnxJavaType) = TYPES.entries.firstOrNull { it.value == type }?.key ?: "$type"

        private fun specs(nodes: Map<String, NodeInfo>) = nodes.map { (name, node) ->
            val info = node.info as TensorInfo
            Spec(name, dtype(info.type), info.shape.map { if (it < 0) "?" else it.toInt() })
        }
    }
}
