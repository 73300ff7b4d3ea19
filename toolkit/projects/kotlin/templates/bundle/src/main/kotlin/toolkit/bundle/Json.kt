package toolkit.bundle

/** Reads JSON into maps, lists, strings, doubles, booleans and null. Android has a reader, a plain JVM has none. */
internal class Json private constructor(private val text: String) {
    private var at = 0

    private fun value(): Any? {
        skip()
        return when (text.getOrNull(at)) {
            '{' -> members()
            '[' -> items()
            '"' -> string()
            else -> scalar()
        }
    }

    private fun members(): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        sequence('}') {
            skip()
            val name = string()
            expect(':')
            found[name] = value()
        }
        return found
    }

    private fun items(): List<Any?> {
        val found = ArrayList<Any?>()
        sequence(']') { found.add(value()) }
        return found
    }

    private fun sequence(end: Char, item: () -> Unit) {
        at++
        skip()
        if (text.getOrNull(at) == end) {
            at++
            return
        }
        while (true) {
            item()
            skip()
            when (text.getOrNull(at++)) {
                ',' -> continue
                end -> return
                else -> fail()
            }
        }
    }

    private fun string(): String {
        if (text.getOrNull(at) != '"') fail()
        at++
        val found = StringBuilder()
        while (true) {
            val next = text.getOrNull(at++) ?: fail()
            when (next) {
                '"' -> return found.toString()
                '\\' -> found.append(escaped())
                else -> found.append(next)
            }
        }
    }

    private fun escaped(): Char {
        val kind = text.getOrNull(at++) ?: fail()
        if (kind == 'u') {
            val code = if (at + 4 <= text.length) text.substring(at, at + 4).toIntOrNull(16) else null
            at += 4
            return (code ?: fail()).toChar()
        }
        val place = "\"\\/bfnrt".indexOf(kind)
        return if (place < 0) fail() else "\"\\/\b\u000c\n\r\t"[place]
    }

    private fun scalar(): Any? {
        val start = at
        while (at < text.length && text[at] !in ",]}" && !text[at].isWhitespace()) at++
        return when (val word = text.substring(start, at)) {
            "true" -> true
            "false" -> false
            "null" -> null
            else -> word.toDoubleOrNull() ?: fail()
        }
    }

    private fun expect(char: Char) {
        skip()
        if (text.getOrNull(at++) != char) fail()
    }

    private fun skip() {
        while (at < text.length && text[at].isWhitespace()) at++
    }

    private fun fail(): Nothing = throw BundleException("broken JSON at character $at")

    companion object {
        /** The object that the text holds; a [BundleException] for anything else. */
        fun parse(text: String): Map<String, Any?> {
            val reader = Json(text)
            val found = reader.value()
            reader.skip()
            if (reader.at != text.length || found !is Map<*, *>) reader.fail()
            @Suppress("UNCHECKED_CAST")
            return found as Map<String, Any?>
        }
    }
}
