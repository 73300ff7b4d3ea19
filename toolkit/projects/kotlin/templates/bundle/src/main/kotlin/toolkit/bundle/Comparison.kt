package toolkit.bundle

import java.util.Locale
import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sqrt

/** How far answers are from the reference, at the worst of all sets. */
internal class Drift(
    val sqnr: Double = Double.POSITIVE_INFINITY,
    val cosine: Double = 1.0,
    val relative: Double = 0.0,
    val largest: Double = 0.0,
) {
    fun worse(other: Drift) = Drift(
        min(sqnr, other.sqnr), min(cosine, other.cosine), max(relative, other.relative), max(largest, other.largest),
    )

    /** The first bound that does not hold, in words; null where all hold. */
    fun failure(gate: Map<String, Double>): String? {
        val bounds = listOf(
            Bound("min_sqnr_db", sqnr, true) { "SQNR ${fixed(it, 1)} dB" to "${fixed(it, 1)} dB" },
            Bound("min_cosine", cosine, true) { "cosine ${fixed(it, 6)}" to fixed(it, 6) },
            Bound("max_relative_l2", relative, false) { "relative L2 ${short(it)}" to short(it) },
            Bound("max_abs", largest, false) { "max abs ${short(it)}" to short(it) },
        )
        return bounds.firstNotNullOfOrNull { it.failure(gate[it.name]) }
    }

    override fun toString() = "SQNR ${fixed(sqnr, 1)} dB, cosine ${fixed(cosine, 6)}, " +
        "relative L2 ${short(relative)}, max abs ${short(largest)}"

    private class Bound(
        val name: String,
        val value: Double,
        val least: Boolean,
        val words: (Double) -> Pair<String, String>,
    ) {
        fun failure(bound: Double?): String? {
            if (bound == null || (if (least) value >= bound else value <= bound)) return null
            val side = if (least) "at least" else "at most"
            return "${words(value).first}, the gate asks for $side ${words(bound).second}"
        }
    }

    companion object {
        private const val HUGE = 1e100

        /** Of one output on one set; `attended` says which elements count, null for all. */
        fun of(name: String, reference: Tensor, answer: Tensor, attended: BooleanArray?): Drift {
            if (answer.shape != reference.shape) {
                throw BundleException("output '$name' is $answer; the reference is $reference")
            }
            val (r, c) = reference.toDoubles() to answer.toDoubles()
            for ((values, whose) in listOf(r to " of the reference", c to "")) {
                val odd = values.count { it.isNaN() || abs(it) > HUGE }
                if (odd == 0) continue
                throw BundleException("output '$name' has $odd values$whose that are NaN, infinite or above 1e100")
            }
            if (attended != null) for (i in r.indices) if (!attended[i]) { r[i] = 0.0; c[i] = 0.0 }
            return of(r, c)
        }

        private fun of(r: DoubleArray, c: DoubleArray): Drift {
            if (r.contentEquals(c)) return Drift()
            var (signal, noise) = 0.0 to 0.0
            var (product, other) = 0.0 to 0.0
            var largest = 0.0
            for (i in r.indices) {
                val off = r[i] - c[i]
                signal += r[i] * r[i]
                noise += off * off
                product += r[i] * c[i]
                other += c[i] * c[i]
                largest = max(largest, abs(off))
            }
            if (noise == 0.0) return Drift()
            if (signal == 0.0) return Drift(Double.NEGATIVE_INFINITY, 0.0, Double.POSITIVE_INFINITY, largest)
            val cosine = if (other == 0.0) 0.0 else product / (sqrt(signal) * sqrt(other))
            return Drift(10 * log10(signal / noise), cosine, sqrt(noise / signal), largest)
        }

        fun fixed(number: Double, digits: Int) =
            if (number.isInfinite()) infinite(number) else "%.${digits}f".format(Locale.ROOT, number)

        fun short(number: Double) =
            if (number.isInfinite()) infinite(number) else "%.1e".format(Locale.ROOT, number)

        private fun infinite(number: Double) = if (number > 0) "inf" else "-inf"
    }
}

/** Which elements of an output count: those at positions that the mask attends to; null where all do. */
internal fun attended(manifest: Manifest, output: Spec, inputs: Map<String, Tensor>, shape: List<Int>): BooleanArray? {
    val mask = inputs["attention_mask"] ?: return null
    val axes = manifest.inputs.filter { it.name == "attention_mask" || it.name == "input_ids" }
        .sortedBy { it.name }
        .firstOrNull { tensor -> tensor.shape.all { axis -> output.shape.count { it == axis } == 1 } } ?: return null
    val (rowAxis, axis) = axes.shape.map { output.shape.indexOf(it) }
    val (rows, width) = mask.shape
    if (shape.size <= max(rowAxis, axis) || shape[rowAxis] != rows || shape[axis] > width) return null
    val values = mask.toDoubles()
    val strides = IntArray(shape.size) { place -> shape.drop(place + 1).fold(1) { product, dim -> product * dim } }
    return BooleanArray(shape.fold(1) { product, dim -> product * dim }) { index ->
        val row = index / strides[rowAxis] % shape[rowAxis]
        val position = index / strides[axis] % shape[axis]
        values[row * width + width - shape[axis] + position] != 0.0
    }
}
