import Foundation

/// A bundle's engine, opened for an app. Not for several threads at once.
///
///     let bundle = try ModelBundle(folder: ModelBundle.shipped("NAME"))
///     let outputs = try bundle.run(["pixel_values": pixels])
public final class ModelBundle {
    public let manifest: Manifest
    private let engine: OrtEngine
    private let before: OrtEngine?
    private let after: OrtEngine?

    /// Opens the bundle in the folder; the files that are used are checked against the manifest first.
    public init(folder: URL) throws {
        manifest = try Manifest(folder: folder)
        engine = try OrtEngine(path: manifest.verifyEngine().path)
        before = try ModelBundle.processing(manifest, manifest.preprocess)
        after = try ModelBundle.processing(manifest, manifest.postprocess)
    }

    /// The folder of a bundle that this package ships.
    public static func shipped(_ name: String) -> URL {
        Foundation.Bundle.module.bundleURL.appendingPathComponent("bundles").appendingPathComponent(name)
    }

    /// The model's outputs by name. Throws for an input of wrong type or size.
    public func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        try Rows(manifest: manifest, engine: engine).run(inputs)
    }

    /// From texts or pixels to the model's inputs.
    public func preprocess(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        try processed(before, manifest.preprocess, "before", inputs)
    }

    /// From the model's outputs to answers, as probabilities or embeddings.
    public func postprocess(_ outputs: [String: Tensor]) throws -> [String: Tensor] {
        try processed(after, manifest.postprocess, "after", outputs)
    }

    private func processed(
        _ graph: OrtEngine?, _ entry: ProcessingEntry?, _ word: String, _ given: [String: Tensor]
    ) throws -> [String: Tensor] {
        guard let graph = graph, let entry = entry else {
            throw BundleError("this bundle has no graph \(word) the model: \(entry?.reason ?? "")")
        }
        return try graph.run(given.filter { name, _ in entry.inputs.contains { $0.name == name } })
    }

    private static func processing(_ manifest: Manifest, _ entry: ProcessingEntry?) throws -> OrtEngine? {
        guard let entry = entry, let graph = entry.graph else { return nil }
        return try OrtEngine(path: manifest.verify(graph).path, needs: entry.needs)
    }
}
