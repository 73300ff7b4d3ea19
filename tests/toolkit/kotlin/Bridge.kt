package toolkit.bundle

import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.file.Files
import kotlin.system.exitProcess

/** Runs a graph by ONNX Runtime in a Python process: there is no build of its Java binding for this machine's Linux. */
class PythonEngine(python: String, script: String, path: String) : Engine {
    private val process = ProcessBuilder(python, script, path).redirectError(ProcessBuilder.Redirect.INHERIT).start()
    private val to = process.outputStream.bufferedWriter()
    private val from = process.inputStream.bufferedReader()

    override val runtime = from.readLine() ?: throw BundleException("$path does not open")
    override val inputs = specs()
    override val outputs = specs()

    override fun run(inputs: Map<String, Tensor>): Map<String, Tensor> {
        val folder = Files.createTempDirectory("bridge").toFile()
        inputs.entries.forEachIndexed { index, (name, tensor) ->
            File(folder, "input_$index.pb").writeBytes(encoded(name, tensor))
        }
        to.write("${folder.path}\n")
        to.flush()
        val count = from.readLine()?.toInt() ?: throw BundleException("the graph did not run")
        val answers = (0 until count).associate { Tensor.read(File(folder, "output_$it.pb")) }
        folder.deleteRecursively()
        return answers
    }

    override fun close() {
        to.close()
        process.waitFor()
    }

    private fun specs() = (0 until from.readLine().toInt()).map {
        val (name, dtype, shape) = from.readLine().split("\t")
        Spec(name, dtype, shape.split(",").filter(String::isNotEmpty).map { dim -> dim.toIntOrNull() ?: "?" })
    }

    private fun encoded(name: String, tensor: Tensor): ByteArray {
        val types = mapOf("float32" to 1L, "uint8" to 2L, "int64" to 7L, "string" to 8L, "int32" to 6L)
        val out = ByteArrayOutputStream()
        fun varint(number: Long) {
            var left = number
            while (left > 127) { out.write((left and 127 or 128).toInt()); left = left shr 7 }
            out.write(left.toInt())
        }
        fun chunk(tag: Long, bytes: ByteArray) { varint(tag); varint(bytes.size.toLong()); out.write(bytes) }
        tensor.shape.forEach { varint(8); varint(it.toLong()) }
        varint(16)
        varint(types.getValue(tensor.dtype))
        chunk(66, name.toByteArray())
        if (tensor.dtype == "string") tensor.texts.forEach { chunk(50, it.toByteArray()) } else chunk(74, tensor.bytes)
        return out.toByteArray()
    }
}

fun main(arguments: Array<String>) {
    val (python, script, word, folder) = arguments
    val opener = object : Opener {
        override val extensions = arguments.getOrElse(4) { "" }

        override fun open(path: String, needs: List<String>): Engine = PythonEngine(python, script, path)
    }
    if (word == "selftest") exitProcess(if (SelfTest(File(folder), opener, ::println).run()) 0 else 1)
    try {
        val unpacked = Bundle.unpack("NAME", File(folder).parentFile.resolve("unpacked")) { path ->
            File(folder, path.removePrefix("NAME/")).inputStream()
        }
        Bundle.open(unpacked, opener).use { bundle ->
            val golden = File(unpacked, "test_data_set_0").listFiles()!!
            val inputs = golden.filter { it.name.startsWith("input") }.associate(Tensor::read)
            bundle.run(inputs).forEach { (name, tensor) -> println("$name $tensor ${tensor.toFloats().take(3)}") }
        }
    } catch (error: BundleException) {
        println("error: ${error.message}")
        exitProcess(1)
    }
}
