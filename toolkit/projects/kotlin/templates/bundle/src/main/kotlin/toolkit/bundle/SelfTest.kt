package toolkit.bundle

import java.io.File
import kotlin.math.abs

/** Replays a bundle's golden inputs here and holds the answers to what PyTorch gave when the bundle was made. */
class SelfTest(private val folder: File, private val opener: Opener, private val say: (String) -> Unit) {
    /** Whether it passed; the last line that is said gives the reason where it did not. */
    fun run(): Boolean = try {
        test()
        say("selftest passed")
        true
    } catch (error: BundleException) {
        say("selftest FAILED: ${error.message}")
        false
    }

    private fun test() {
        val manifest = Manifest.read(folder)
        say("bundle ${manifest.name} ${manifest.target}, made by toolkit ${manifest.toolkit}")
        say("files ${manifest.verify()} unchanged")
        opener.open(manifest.listed(manifest.engine).path, emptyList()).use { engine ->
            requireSame("input", engine.inputs, manifest.engineInputs)
            requireSame("output", engine.outputs, manifest.engineOutputs)
            say("runtime ${engine.runtime}")
            judge(manifest, replay(manifest, engine))
        }
        manifest.preprocess?.let { process("preprocess", it, manifest) }
        manifest.postprocess?.let { process("postprocess", it, manifest) }
    }

    /** Names, types and ranks, in any order. */
    private fun requireSame(word: String, found: List<Spec>, wanted: List<Spec>) {
        for (spec in wanted) {
            val own = found.firstOrNull { it.name == spec.name }
                ?: throw BundleException("the engine has no $word '${spec.name}'")
            if (own.dtype != spec.dtype || own.shape.size != spec.shape.size) {
                throw BundleException("$word '${spec.name}' of the engine is $own; the manifest has $spec")
            }
        }
        found.firstOrNull { own -> wanted.none { it.name == own.name } }
            ?.let { throw BundleException("the manifest has no $word '${it.name}', which the engine has") }
    }

    private fun replay(manifest: Manifest, engine: Engine): Map<String, Drift> {
        val worst = LinkedHashMap<String, Drift>()
        val sets = sets("test_data_set_")
        if (sets.isEmpty()) throw BundleException("there are no golden inputs")
        for (set in sets) {
            val inputs = tensors(set, "input")
            val expected = tensors(set, "output")
            val answers = Rows(manifest, engine).run(inputs)
            for (spec in manifest.outputs) {
                val reference = expected[spec.name] ?: throw BundleException("${set.name} has no output '${spec.name}'")
                val answer = answers[spec.name] ?: throw BundleException("the engine gave no output '${spec.name}'")
                val drift = Drift.of(spec.name, reference, answer, attended(manifest, spec, inputs, reference.shape))
                worst[spec.name] = worst[spec.name]?.worse(drift) ?: drift
            }
        }
        return worst
    }

    private fun judge(manifest: Manifest, worst: Map<String, Drift>) {
        val failures = worst.mapValues { (_, drift) -> drift.failure(manifest.gate) }
        worst.forEach { (name, drift) ->
            say("output $name: $drift: ${if (failures[name] == null) "pass" else "FAIL"}")
        }
        failures.entries.firstOrNull { it.value != null }
            ?.let { throw BundleException("output '${it.key}' drifted: ${it.value}") }
    }

    private fun process(word: String, entry: ProcessingEntry, manifest: Manifest) {
        val graph = entry.graph ?: return
        if (OrtEngine.EXTENSIONS in entry.needs && opener.extensions.isNotEmpty()) {
            return say("$word skipped: ${opener.extensions}")
        }
        val sets = sets("${word}_data_set_")
        if (sets.isEmpty()) throw BundleException("$word: the bundle holds no samples to check it on")
        opener.open(manifest.listed(graph).path, entry.needs).use { engine ->
            val different = sets.mapIndexedNotNull { number, set -> different(word, number, set, entry, engine) }
            val all = if (entry.bound > 0) "within ${Drift.short(entry.bound)}" else "equal"
            when {
                different.isEmpty() -> say("$word ${sets.size} samples $all")
                entry.exact -> throw BundleException(different.first())
                else -> say("$word ${different.size} of ${sets.size} samples differ; not exact: ${entry.reason}")
            }
        }
    }

    private fun different(word: String, number: Int, set: File, entry: ProcessingEntry, engine: Engine): String? {
        val answers = engine.run(tensors(set, "input"))
        val expected = tensors(set, "output")
        for (name in entry.outputs.map { it.name }) {
            val wanted = expected[name] ?: return "$word: sample $number has no output '$name'"
            val found = answers[name] ?: return "$word: there is no '$name' of sample $number"
            val off = distance(found, wanted)
            if (off == null) return "$word: '$name' of sample $number differs from the ${original(word)}'s"
            if (off > entry.bound) {
                val much = "${Drift.short(off)}, more than ${Drift.short(entry.bound)}"
                return "$word: '$name' of sample $number is off by $much"
            }
        }
        return null
    }

    private fun original(word: String) = if (word == "preprocess") "tokenizer" else "original"

    /** Of floats the largest distance, 0 for equal integers and texts; null for what differs in kind. */
    private fun distance(found: Tensor, wanted: Tensor): Double? {
        if (found.dtype != wanted.dtype || found.shape != wanted.shape) return null
        if (!wanted.dtype.startsWith("float")) {
            return if (found.bytes.contentEquals(wanted.bytes) && found.texts == wanted.texts) 0.0 else null
        }
        val (one, other) = found.toDoubles() to wanted.toDoubles()
        return one.indices.maxOfOrNull { if (one[it] == other[it]) 0.0 else abs(one[it] - other[it]) }
            ?.let { if (it.isNaN()) Double.POSITIVE_INFINITY else it } ?: 0.0
    }

    private fun sets(prefix: String): List<File> = folder.listFiles().orEmpty()
        .filter { it.name.startsWith(prefix) && it.name.removePrefix(prefix).toIntOrNull() != null }
        .sortedBy { it.name.removePrefix(prefix).toInt() }

    private fun tensors(set: File, word: String): Map<String, Tensor> = set.listFiles().orEmpty()
        .filter { it.name.startsWith("${word}_") && it.name.endsWith(".pb") }
        .sortedBy { it.name.removePrefix("${word}_").removeSuffix(".pb").toInt() }
        .associate(Tensor::read)
}
