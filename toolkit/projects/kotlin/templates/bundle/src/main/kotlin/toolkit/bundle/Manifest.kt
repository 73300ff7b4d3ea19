package toolkit.bundle

import java.io.File
import java.security.MessageDigest

/** The graph before or after the model. `reason` says why there is none, or on what it is not exact. */
class ProcessingEntry(
    val graph: String?,
    val inputs: List<Spec>,
    val outputs: List<Spec>,
    val exact: Boolean,
    val bound: Double,
    val reason: String,
    val needs: List<String>,
)

/** What `manifest.json` says of a bundle, as far as a program needs it. */
class Manifest private constructor(val folder: File, private val json: Map<String, Any?>) {
    val toolkit: String = json.text("toolkit")
    val name: String = json.map("model").text("name")
    val target: String = json.map("target").let { "${it.text("runtime")}-${it.text("scheme")}" }
    val labels: List<String> = json.map("model").list("labels").map { it as String }
    val inputs: List<Spec> = specs(json.list("inputs"))
    val outputs: List<Spec> = specs(json.list("outputs"))

    /** The engine's own, which has numbers where it takes one fixed shape. */
    val engineInputs: List<Spec> = specs(json.map("engine").list("inputs")).ifEmpty { inputs }
    val engineOutputs: List<Spec> = specs(json.map("engine").list("outputs")).ifEmpty { outputs }
    val preprocess: ProcessingEntry? = processing("preprocess")
    val postprocess: ProcessingEntry? = processing("postprocess")

    /** Bounds of the gate that an answer must hold, by name, as `min_sqnr_db`. */
    val gate: Map<String, Double> = json.map("gates").map("check").mapNotNull { (name, bound) ->
        (bound as? Double)?.let { name to it }
    }.toMap()

    /** What ONNX Runtime opens: the `.ort` file where there is one, else the graph. */
    val engine: String = json.map("engine").list("files").map { it as String }.firstOrNull { it.endsWith(".ort") }
        ?: json.text("graph")

    private val files: Map<String, Map<String, Any?>> = json.map("files").mapValues { (_, entry) ->
        @Suppress("UNCHECKED_CAST")
        entry as Map<String, Any?>
    }

    init {
        files.keys.forEach(::checkPath)
        if (outputs.isEmpty()) throw BundleException("manifest.json: the model has no outputs")
    }

    /** Checks size and SHA-256 of all files and answers their number; a [BundleException] names one that differs. */
    fun verify(): Int {
        files.keys.forEach(::verify)
        return files.size
    }

    /** Checks one file, and answers it; a [BundleException] says what differs. */
    fun verify(path: String): File {
        val entry = files[path] ?: throw BundleException("$path: not listed in the manifest")
        val file = File(folder, path)
        val bytes = (entry["bytes"] as Double).toLong()
        if (!file.isFile) throw BundleException("$path: missing")
        if (file.length() != bytes) {
            throw BundleException("$path: changed, ${file.length()} bytes where the manifest has $bytes")
        }
        if (sha256(file) != entry["sha256"]) {
            throw BundleException("$path: changed, another SHA-256 than the manifest's")
        }
        return file
    }

    /** The file, which must be among those whose hashes are checked. */
    fun listed(path: String): File =
        if (path in files) File(folder, path) else throw BundleException("$path: not listed in the manifest")

    /** All files but the manifest itself. */
    fun paths(): Set<String> = files.keys

    /** Whether the file is there as it was written. */
    fun unchanged(path: String): Boolean = try {
        verify(path).isFile
    } catch (error: BundleException) {
        false
    }

    /** The engine's file and what it needs beside it, checked. */
    fun verifyEngine(): File {
        val data = "$engine.data"
        if (data in files) verify(data)
        return verify(engine)
    }

    private fun checkPath(path: String) {
        val parts = path.split("/")
        if (parts.any { it in setOf("", ".", "..") } || path.contains('\\') || parts[0].contains(':')) {
            throw BundleException("'$path' is not a relative path inside the bundle")
        }
    }

    private fun processing(word: String): ProcessingEntry? {
        val entry = (json[word] as? Map<*, *>)?.mapKeys { it.key as String } ?: return null
        return ProcessingEntry(
            entry["graph"] as String?,
            specs(entry.list("inputs")),
            specs(entry.list("outputs")),
            entry["exact"] as Boolean,
            entry["bound"] as Double,
            entry.text("reason"),
            entry.list("needs").map { it as String },
        )
    }

    companion object {
        private const val SCHEMA = 1.0

        /** Reads `manifest.json` of the folder; a [BundleException] where it is missing, broken or newer. */
        fun read(folder: File): Manifest {
            val file = File(folder, "manifest.json")
            if (!file.isFile) throw BundleException("manifest.json: missing")
            val json = try {
                Json.parse(file.readText())
            } catch (error: BundleException) {
                throw BundleException("manifest.json: ${error.message}", error)
            }
            val version = json["schema_version"]
            if (version != SCHEMA) {
                throw BundleException("manifest.json: schema version ${plain(version)}; this program reads 1")
            }
            try {
                return Manifest(folder, json)
            } catch (error: ClassCastException) {
                throw BundleException("manifest.json: not as it was written: ${error.message}", error)
            } catch (error: NullPointerException) {
                throw BundleException("manifest.json: not as it was written: ${error.message}", error)
            }
        }

        private fun plain(number: Any?) =
            if (number is Double && number % 1.0 == 0.0) "${number.toLong()}" else "$number"

        private fun specs(list: List<Any?>): List<Spec> = list.map {
            val entry = (it as Map<*, *>).mapKeys { (key, _) -> key as String }
            val shape = entry.list("shape").map { dim -> if (dim is Double) dim.toInt() else dim as String }
            Spec(entry.text("name"), entry.text("dtype"), shape)
        }

        private fun sha256(file: File): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val chunk = ByteArray(1 shl 16)
            file.inputStream().use { stream ->
                while (true) {
                    val count = stream.read(chunk)
                    if (count < 0) break
                    digest.update(chunk, 0, count)
                }
            }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
    }
}

private fun Map<String, Any?>.text(name: String): String = this[name] as String

private fun Map<String, Any?>.list(name: String): List<Any?> = this[name] as List<Any?>

@Suppress("UNCHECKED_CAST")
private fun Map<String, Any?>.map(name: String): Map<String, Any?> = this[name] as Map<String, Any?>
