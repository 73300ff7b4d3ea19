package toolkit.bundle

import java.io.Closeable
import java.io.File
import java.io.InputStream

/**
 * A bundle's engine, opened for an app. Not for several threads at once.
 *
 *     Bundle.open(folder).use { bundle -> bundle.run(mapOf("pixel_values" to pixels)) }
 */
class Bundle private constructor(val manifest: Manifest, private val opener: Opener) : Closeable {
    private val engine = opener.open(manifest.verifyEngine().path, emptyList())
    private val before = manifest.preprocess?.let(::processing)
    private val after = manifest.postprocess?.let(::processing)

    /** The model's outputs by name. An input of wrong type or size is a [BundleException]. */
    fun run(inputs: Map<String, Tensor>): Map<String, Tensor> = Rows(manifest, engine).run(inputs)

    /** From texts or pixels to the model's inputs. */
    fun preprocess(inputs: Map<String, Tensor>): Map<String, Tensor> =
        processed(before, manifest.preprocess, "before", inputs)

    /** From the model's outputs to answers, as probabilities or embeddings. */
    fun postprocess(outputs: Map<String, Tensor>): Map<String, Tensor> =
        processed(after, manifest.postprocess, "after", outputs)

    override fun close() {
        listOfNotNull(engine, before, after).forEach(Engine::close)
    }

    private fun processing(entry: ProcessingEntry): Engine? =
        entry.graph?.let { opener.open(manifest.verify(it).path, entry.needs) }

    private fun processed(graph: Engine?, entry: ProcessingEntry?, word: String, given: Map<String, Tensor>) =
        graph?.run(given.filterKeys { name -> entry!!.inputs.any { it.name == name } })
            ?: throw BundleException("this bundle has no graph $word the model: ${entry?.reason}")

    companion object {
        /** Opens the bundle in the folder; the files that are used are checked against the manifest first. */
        fun open(folder: File, opener: Opener = OrtEngine.OPENER): Bundle = Bundle(Manifest.read(folder), opener)

        /**
         * Copies a bundle out of an app's assets, which ONNX Runtime cannot open, and answers its folder.
         *
         *     Bundle.unpack("bundles/NAME", context.filesDir) { context.assets.open(it) }
         *
         * Files that are not among the assets are left out; what is there and unchanged is not copied again.
         */
        fun unpack(name: String, into: File, open: (String) -> InputStream): File {
            val folder = File(into, name).apply { mkdirs() }
            copy(folder, "manifest.json", name, open)
            val manifest = Manifest.read(folder)
            for (path in manifest.paths()) {
                if (!manifest.unchanged(path)) copy(folder, path, name, open)
            }
            return folder
        }

        private fun copy(folder: File, path: String, name: String, open: (String) -> InputStream) {
            val source = try {
                open("$name/$path")
            } catch (error: java.io.FileNotFoundException) {
                return
            }
            val target = File(folder, path).apply { parentFile?.mkdirs() }
            source.use { from -> target.outputStream().use { from.copyTo(it) } }
        }
    }
}
