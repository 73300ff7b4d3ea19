package toolkit.bundle

/** A graph that runs: on a phone [OrtEngine]. */
interface Engine : AutoCloseable {
    /** Library, version and provider, as `onnxruntime 1.29.0 CPUExecutionProvider`. */
    val runtime: String

    /** Names, types and shapes as the graph itself has them; dimensions that are open are `?`. */
    val inputs: List<Spec>
    val outputs: List<Spec>

    /** All outputs by name. */
    fun run(inputs: Map<String, Tensor>): Map<String, Tensor>
}

/** Opens graphs. `extensions` says why operators of onnxruntime-extensions are not at hand; empty where they are. */
interface Opener {
    val extensions: String

    fun open(path: String, needs: List<String>): Engine
}
