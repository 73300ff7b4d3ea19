import Foundation

/// Replays a bundle's golden inputs here and holds the answers to what PyTorch gave when the bundle was made.
public struct SelfTest {
    private let folder: URL
    private let say: (String) -> Void

    public init(folder: URL, say: @escaping (String) -> Void) {
        self.folder = folder
        self.say = say
    }

    /// Whether it passed; the last line that is said gives the reason where it did not.
    public func run() -> Bool {
        do {
            try test()
            say("selftest passed")
            return true
        } catch {
            say("selftest FAILED: \(error)")
            return false
        }
    }

    private func test() throws {
        let manifest = try Manifest(folder: folder)
        say("bundle \(manifest.name) \(manifest.target), made by toolkit \(manifest.toolkit)")
        let count = try manifest.verify()
        say("files \(count) unchanged")
        let engine = try OrtEngine(path: manifest.listed(manifest.engine).path)
        // The binding tells no types and shapes of a session, so those are met when it runs.
        try requireSame("input", engine.inputs, manifest.engineInputs.map(\.name))
        try requireSame("output", engine.outputs, manifest.engineOutputs.map(\.name))
        say("runtime \(engine.runtime)")
        try judge(manifest, replay(manifest, engine))
        try process("preprocess", manifest.preprocess, manifest)
        try process("postprocess", manifest.postprocess, manifest)
    }

    private func requireSame(_ word: String, _ found: [String], _ wanted: [String]) throws {
        if let name = wanted.first(where: { !found.contains($0) }) {
            throw BundleError("the engine has no \(word) '\(name)'")
        }
        if let name = found.first(where: { !wanted.contains($0) }) {
            throw BundleError("the manifest has no \(word) '\(name)', which the engine has")
        }
    }

    private func replay(_ manifest: Manifest, _ engine: OrtEngine) throws -> [String: Drift] {
        var worst = [String: Drift]()
        let sets = try self.sets("test_data_set_")
        guard !sets.isEmpty else { throw BundleError("there are no golden inputs") }
        for set in sets {
            let (inputs, expected) = (try tensors(set, "input"), try tensors(set, "output"))
            let answers = try Rows(manifest: manifest, engine: engine).run(inputs)
            for spec in manifest.outputs {
                guard let reference = expected[spec.name], let answer = answers[spec.name] else {
                    throw BundleError("output '\(spec.name)' is missing")
                }
                let counted = try attended(manifest, spec, inputs, reference.shape)
                let drift = try Drift(name: spec.name, reference: reference, answer: answer, attended: counted)
                worst[spec.name] = worst[spec.name]?.worse(drift) ?? drift
            }
        }
        return worst
    }

    private func judge(_ manifest: Manifest, _ worst: [String: Drift]) throws {
        var failures = [String]()
        for spec in manifest.outputs {
            guard let drift = worst[spec.name] else { continue }
            let failure = drift.failure(manifest.gate)
            say("output \(spec.name): \(drift): \(failure == nil ? "pass" : "FAIL")")
            if let failure = failure { failures.append("output '\(spec.name)' drifted: \(failure)") }
        }
        if let failure = failures.first { throw BundleError(failure) }
    }

    private func process(_ word: String, _ entry: ProcessingEntry?, _ manifest: Manifest) throws {
        guard let entry = entry, let graph = entry.graph else { return }
        let engine = try OrtEngine(path: manifest.listed(graph).path, needs: entry.needs)
        let sets = try self.sets("\(word)_data_set_")
        guard !sets.isEmpty else { throw BundleError("\(word): the bundle holds no samples to check it on") }
        let different = try sets.enumerated().compactMap { try difference(word, $0, $1, entry, engine) }
        guard let first = different.first else {
            say("\(word) \(sets.count) samples \(entry.bound > 0 ? "within \(short(entry.bound))" : "equal")")
            return
        }
        if entry.exact { throw BundleError(first) }
        say("\(word) \(different.count) of \(sets.count) samples differ; not exact: \(entry.reason)")
    }

    private func difference(
        _ word: String, _ number: Int, _ set: URL, _ entry: ProcessingEntry, _ engine: OrtEngine
    ) throws -> String? {
        let answers = try engine.run(tensors(set, "input"))
        let expected = try tensors(set, "output")
        for name in entry.outputs.map(\.name) {
            guard let wanted = expected[name] else { return "\(word): sample \(number) has no output '\(name)'" }
            guard let found = answers[name] else { return "\(word): there is no '\(name)' of sample \(number)" }
            guard let off = try distance(found, wanted) else {
                let original = word == "preprocess" ? "tokenizer" : "original"
                return "\(word): '\(name)' of sample \(number) differs from the \(original)'s"
            }
            if !(off <= entry.bound) {
                return "\(word): '\(name)' of sample \(number) is off by \(short(off)), more than \(short(entry.bound))"
            }
        }
        return nil
    }

    /// Of floats the largest distance, 0 for equal integers and texts; nil for what differs in kind.
    private func distance(_ found: Tensor, _ wanted: Tensor) throws -> Double? {
        guard found.dtype == wanted.dtype, found.shape == wanted.shape else { return nil }
        guard wanted.dtype.hasPrefix("float") else {
            return found.data == wanted.data && found.texts == wanted.texts ? 0 : nil
        }
        let off = zip(try found.doubles(), try wanted.doubles()).map { $0 == $1 ? 0 : abs($0 - $1) }
        return off.contains(where: \.isNaN) ? Double.infinity : (off.max() ?? 0)
    }

    private func sets(_ prefix: String) throws -> [URL] {
        try numbered(folder, prefix, "")
    }

    private func tensors(_ set: URL, _ word: String) throws -> [String: Tensor] {
        Dictionary(uniqueKeysWithValues: try numbered(set, "\(word)_", ".pb").map(TensorProto.read))
    }

    private func numbered(_ place: URL, _ prefix: String, _ suffix: String) throws -> [URL] {
        let found = try FileManager.default.contentsOfDirectory(at: place, includingPropertiesForKeys: nil)
        let places = found.compactMap { file -> (Int, URL)? in
            let name = file.lastPathComponent
            guard name.hasPrefix(prefix), name.hasSuffix(suffix) else { return nil }
            return Int(name.dropFirst(prefix.count).dropLast(suffix.count)).map { ($0, file) }
        }
        return places.sorted { $0.0 < $1.0 }.map(\.1)
    }
}
