// Replays a bundle's golden inputs through Core ML on this device and holds the answers to what eager fp32 PyTorch gave
// when the bundle was made. What it does, step by step, is docs/selftest.md of the toolkit.
//
//     swiftc -O -parse-as-library CoreMLModel.swift selftest.swift -o selftest
//     ./selftest BUNDLE            exit code 0: passed; 1: failed; 2: called wrongly
//
// In an app, call `SelfTest(bundle: url).run()`.

import CoreML
import CryptoKit
import Foundation

typealias Object = [String: Any]

@available(iOS 18, macOS 15, *)
@main
struct Main {
    static func main() async {
        guard CommandLine.arguments.count == 2 else {
            FileHandle.standardError.write(Data("usage: selftest BUNDLE\n".utf8))
            exit(2)
        }
        let passed = await SelfTest(bundle: URL(fileURLWithPath: CommandLine.arguments[1])).run()
        exit(passed ? 0 : 1)
    }
}

@available(iOS 18, macOS 15, *)
public struct SelfTest {
    let bundle: URL

    public init(bundle: URL) {
        self.bundle = bundle
    }

    /// Prints what was found, and answers whether all of it passed.
    public func run() async -> Bool {
        do {
            try await test()
            print("selftest passed")
            return true
        } catch {
            print("selftest FAILED: \(error)")
            FileHandle.standardError.write(Data("\(error)\n".utf8))
            return false
        }
    }

    private func test() async throws {
        let manifest = try Manifest(bundle)
        print("bundle \(manifest.name) \(manifest.target), made by toolkit \(manifest.toolkit)")
        print("files \(try manifest.verifyFiles()) unchanged")
        let model = try await CoreMLModel(bundle: bundle)
        try manifest.require(model.model.modelDescription)
        print("runtime Core ML on \(ProcessInfo.processInfo.operatingSystemVersionString), all compute units")
        let worst = try replay(manifest, model)
        var failures: [String] = []
        for output in manifest.outputs {
            guard let drift = worst[output.name] else { throw BundleFailure("output '\(output.name)' is missing") }
            let failure = drift.failure(output.name, manifest.gate)
            print("output \(output.name): \(drift): \(failure == nil ? "pass" : "FAIL")")
            failures += failure.map { [$0] } ?? []
        }
        for part in ["preprocess", "postprocess"] where manifest.hasGraph(part) {
            print("\(part) skipped: it is an ONNX graph, which Core ML does not run")
        }
        if let first = failures.first { throw BundleFailure(first) }
    }

    private func replay(_ manifest: Manifest, _ model: CoreMLModel) throws -> [String: Drift] {
        var worst: [String: Drift] = [:]
        var number = 0
        while true {
            let place = bundle.appendingPathComponent("test_data_set_\(number)")
            guard FileManager.default.fileExists(atPath: place.path) else { break }
            let (inputs, expected) = (try tensors(place, "input"), try tensors(place, "output"))
            let answers = try manifest.caches.isEmpty
                ? model.predict(inputs) : Cached(manifest: manifest, model: model).run(inputs)
            for output in manifest.outputs {
                guard let reference = expected[output.name], let answer = answers[output.name] else {
                    throw BundleFailure("output '\(output.name)' is missing")
                }
                let drift = try Drift(output, reference, answer, Padding(manifest, output, inputs))
                worst[output.name] = worst[output.name].map { $0.worse(drift) } ?? drift
            }
            number += 1
        }
        guard number > 0 else { throw BundleFailure("there are no golden inputs") }
        return worst
    }

    private func tensors(_ place: URL, _ word: String) throws -> [String: Numbers] {
        var found: [String: Numbers] = [:]
        var index = 0
        while let data = try? Data(contentsOf: place.appendingPathComponent("\(word)_\(index).pb")) {
            var message = TensorMessage(data)
            let (name, numbers) = try message.read()
            found[name] = numbers
            index += 1
        }
        return found
    }
}

/// A language model run with any cache: the past goes into its states, what they hold then comes out as `present`.
@available(iOS 18, macOS 15, *)
struct Cached {
    let manifest: Manifest
    let model: CoreMLModel

    func run(_ inputs: [String: Numbers]) throws -> [String: Numbers] {
        guard let rows = inputs["input_ids"]?.shape.first else { throw BundleFailure("input 'input_ids' is missing") }
        let answers = try (0..<rows).map { index in try row(inputs.mapValues { $0.row(index) }) }
        var joined = answers[0]
        for answer in answers.dropFirst() {
            for (name, numbers) in answer {
                joined[name]?.shape[0] += 1
                joined[name]?.floats += numbers.floats
                joined[name]?.integers += numbers.integers
            }
        }
        return joined
    }

    private func row(_ inputs: [String: Numbers]) throws -> [String: Numbers] {
        let state = model.model.makeState()
        let past = inputs[manifest.caches[0].name]?.shape[2] ?? 0
        let total = past + (inputs["input_ids"]?.shape[1] ?? 0)
        for cache in manifest.caches {
            guard let numbers = inputs[cache.name] else { throw BundleFailure("input '\(cache.name)' is missing") }
            try state.withMultiArray(for: stateName(cache.name)) { buffer in
                try fill(buffer, with: resized(numbers, buffer.shape[2].intValue))
            }
        }
        var fed = inputs.filter { !$0.key.hasPrefix("past_key_values.") }
        fed["write_indices"] = Numbers(shape: [1], integers: [Int32(past)])
        if let mask = fed["attention_mask"], let length = manifest.caches.first?.sizes[2] {
            let zeros = [Int32](repeating: 0, count: length - mask.integers.count)
            fed["attention_mask"] = Numbers(shape: [1, length], integers: mask.integers + zeros)
        }
        let taken = model.model.modelDescription.inputDescriptionsByName
        var answers = try model.predict(fed.filter { taken[$0.key] != nil }, state: state)
        for cache in manifest.caches {
            let held = try state.withMultiArray(for: stateName(cache.name)) { buffer in try numbers(buffer) }
            answers[cache.name.replacingOccurrences(of: "past_key_values", with: "present")] = resized(held, total)
        }
        return answers
    }

    private func stateName(_ past: String) -> String {
        past.replacingOccurrences(of: ".", with: "_")
    }

    /// [1, heads, positions, size] cut to, or filled with zeros up to, so many positions.
    private func resized(_ cache: Numbers, _ positions: Int) -> Numbers {
        let (heads, old, size) = (cache.shape[1], cache.shape[2], cache.shape[3])
        var made = Numbers(
            shape: [1, heads, positions, size], floats: [Float](repeating: 0, count: heads * positions * size))
        for head in 0..<heads {
            for place in 0..<min(old, positions) * size {
                made.floats[head * positions * size + place] = cache.floats[head * old * size + place]
            }
        }
        return made
    }
}

/// An input or output of the manifest; a size that varies has a name instead.
struct Declared {
    let name: String
    let dtype: String
    let dims: [String]

    init(_ json: Object) {
        name = json["name"] as? String ?? ""
        dtype = json["dtype"] as? String ?? ""
        dims = (json["shape"] as? [Any] ?? []).map { "\($0)" }
    }

    /// Its sizes, 0 where one varies.
    var sizes: [Int] { dims.map { Int($0) ?? 0 } }

    var words: String { "\(dtype) [\(dims.joined(separator: ", "))]" }
}

struct Manifest {
    let folder: URL
    let json: Object

    init(_ folder: URL) throws {
        self.folder = folder
        guard let data = try? Data(contentsOf: folder.appendingPathComponent("manifest.json")) else {
            throw BundleFailure("manifest.json: missing")
        }
        guard let found = try? JSONSerialization.jsonObject(with: data) as? Object else {
            throw BundleFailure("manifest.json: not JSON")
        }
        json = found
        let version = json["schema_version"] as? Int ?? 0
        guard version == 1 else {
            throw BundleFailure("manifest.json: schema version \(version); this program reads 1")
        }
    }

    var name: String { object("model")["name"] as? String ?? "" }
    var target: String { "\(object("target")["runtime"] ?? "")-\(object("target")["scheme"] ?? "")" }
    var toolkit: String { json["toolkit"] as? String ?? "" }
    var inputs: [Declared] { declared(json, "inputs") }
    var outputs: [Declared] { declared(json, "outputs") }
    var gate: Object { object("gates")["check"] as? Object ?? [:] }

    /// The caches that are states of the package, with their sizes; none for other models.
    var caches: [Declared] {
        declared(object("engine"), "inputs").filter { $0.name.hasPrefix("past_key_values.") }
    }

    func hasGraph(_ part: String) -> Bool {
        object(part)["graph"] is String
    }

    /// Checks each file's size and SHA-256, and answers how many there are.
    func verifyFiles() throws -> Int {
        let files = object("files")
        for (path, entry) in files.sorted(by: { $0.key < $1.key }) {
            let parts = path.split(separator: "/", omittingEmptySubsequences: false)
            if path.hasPrefix("/") || parts.contains(where: { ["", ".", ".."].contains($0) }) {
                throw BundleFailure("'\(path)' is not a relative path inside the bundle")
            }
            let given = entry as? Object ?? [:]
            try verify(path, bytes: given["bytes"] as? Int ?? -1, sha256: given["sha256"] as? String ?? "")
        }
        return files.count
    }

    private func verify(_ path: String, bytes: Int, sha256: String) throws {
        guard let data = try? Data(contentsOf: folder.appendingPathComponent(path), options: .mappedIfSafe) else {
            throw BundleFailure("\(path): missing")
        }
        guard data.count == bytes else {
            throw BundleFailure("\(path): changed, \(data.count) bytes where the manifest has \(bytes)")
        }
        let digest = SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
        guard digest == sha256 else { throw BundleFailure("\(path): changed, another SHA-256 than the manifest's") }
    }

    /// The package must take and answer what the manifest says, as far as Core ML describes it.
    @available(iOS 18, macOS 15, *)
    func require(_ model: MLModelDescription) throws {
        let own = declared(object("engine"), "inputs")
        let fed = (own.isEmpty ? inputs : own).filter { !$0.name.hasPrefix("past_key_values.") }
        try require("input", fed, model.inputDescriptionsByName)
        try require("output", outputs.filter { !$0.name.hasPrefix("present.") }, model.outputDescriptionsByName)
        for cache in caches where model.stateDescriptionsByName[cache.name.replacingOccurrences(of: ".", with: "_")] == nil {
            throw BundleFailure("the package has no state for '\(cache.name)'")
        }
    }

    @available(iOS 18, macOS 15, *)
    private func require(_ word: String, _ wanted: [Declared], _ found: [String: MLFeatureDescription]) throws {
        for tensor in wanted {
            guard let array = found[tensor.name]?.multiArrayConstraint else {
                throw BundleFailure("the package has no \(word) '\(tensor.name)'")
            }
            let integer = tensor.dtype.hasPrefix("int") || tensor.dtype == "bool"
            let rank = array.shape.count
            guard (array.dataType == .int32) == integer, rank == 0 || rank == tensor.dims.count else {
                let has = "\(array.dataType == .int32 ? "int32" : "float") \(array.shape)"
                throw BundleFailure("\(word) '\(tensor.name)' is \(tensor.words); the model takes \(has)")
            }
        }
    }

    private func object(_ name: String) -> Object { json[name] as? Object ?? [:] }

    private func declared(_ json: Object, _ name: String) -> [Declared] {
        (json[name] as? [Object] ?? []).map { Declared($0) }
    }
}

/// Positions that nobody attends to, which do not count: the mask and the output's axes of rows and positions.
struct Padding {
    var mask: Numbers?
    var rows = 0
    var positions = 0

    init(_ manifest: Manifest, _ output: Declared, _ inputs: [String: Numbers]) {
        guard let given = inputs["attention_mask"], given.shape.count == 2 else { return }
        for name in ["attention_mask", "input_ids"] {
            guard let axes = manifest.inputs.first(where: { $0.name == name })?.dims, axes.count == 2 else { continue }
            guard axes.allSatisfy({ axis in output.dims.filter { $0 == axis }.count == 1 }) else { continue }
            mask = given
            rows = output.dims.firstIndex(of: axes[0]) ?? 0
            positions = output.dims.firstIndex(of: axes[1]) ?? 0
            return
        }
    }

    /// Whether the element counts; of a mask that is longer than the output's axis the last columns are meant.
    func counts(_ index: Int, _ shape: [Int]) -> Bool {
        guard let mask = mask, shape.count > max(rows, positions), shape[rows] == mask.shape[0],
            shape[positions] <= mask.shape[1]
        else { return true }
        let row = index / shape.dropFirst(rows + 1).reduce(1, *) % shape[rows]
        let position = index / shape.dropFirst(positions + 1).reduce(1, *) % shape[positions]
        return mask.integers[(row + 1) * mask.shape[1] - shape[positions] + position] != 0
    }
}

/// How far an output is from the reference.
struct Drift: CustomStringConvertible {
    var sqnr = Double.infinity
    var cosine = 1.0
    var relative = 0.0
    var largest = 0.0

    init(_ output: Declared, _ reference: Numbers, _ answer: Numbers, _ padding: Padding) throws {
        guard reference.shape == answer.shape else {
            throw BundleFailure("output '\(output.name)' is \(answer.shape); the reference is \(reference.shape)")
        }
        let (r, c) = (doubles(reference), doubles(answer))
        let odd = c.filter { !($0.magnitude <= 1e100) }.count
        guard odd == 0 else {
            throw BundleFailure("output '\(output.name)' has \(odd) values that are NaN, infinite or above 1e100")
        }
        var (signal, noise, product, square) = (0.0, 0.0, 0.0, 0.0)
        for index in r.indices where padding.counts(index, reference.shape) {
            let gap = r[index] - c[index]
            signal += r[index] * r[index]
            noise += gap * gap
            product += r[index] * c[index]
            square += c[index] * c[index]
            largest = max(largest, abs(gap))
        }
        if noise == 0 { return }
        sqnr = signal == 0 ? -Double.infinity : 10 * log10(signal / noise)
        cosine = signal == 0 || square == 0 ? 0 : product / (signal.squareRoot() * square.squareRoot())
        relative = signal == 0 ? Double.infinity : (noise / signal).squareRoot()
    }

    func worse(_ other: Drift) -> Drift {
        var both = self
        both.sqnr = min(sqnr, other.sqnr)
        both.cosine = min(cosine, other.cosine)
        both.relative = max(relative, other.relative)
        both.largest = max(largest, other.largest)
        return both
    }

    /// The first bound of the gate that does not hold, in words.
    func failure(_ name: String, _ gate: Object) -> String? {
        let said = "output '\(name)' drifted:"
        if let bound = gate["min_sqnr_db"] as? Double, !(sqnr >= bound) {
            return String(format: "\(said) SQNR %.1f dB, the gate asks for at least %.1f dB", sqnr, bound)
        }
        if let bound = gate["min_cosine"] as? Double, !(cosine >= bound) {
            return String(format: "\(said) cosine %.6f, the gate asks for at least %.6f", cosine, bound)
        }
        if let bound = gate["max_relative_l2"] as? Double, !(relative <= bound) {
            return String(format: "\(said) relative L2 %.1e, the gate asks for at most %.1e", relative, bound)
        }
        if let bound = gate["max_abs"] as? Double, !(largest <= bound) {
            return String(format: "\(said) max abs %.1e, the gate asks for at most %.1e", largest, bound)
        }
        return nil
    }

    var description: String {
        String(format: "SQNR %.1f dB, cosine %.6f, relative L2 %.1e, max abs %.1e", sqnr, cosine, relative, largest)
    }
}

private func doubles(_ numbers: Numbers) -> [Double] {
    numbers.floats.isEmpty ? numbers.integers.map { Double($0) } : numbers.floats.map { Double($0) }
}

/// Just as much of protobuf as `TensorProto` messages need whose numbers are in `raw_data`.
struct TensorMessage {
    private let bytes: [UInt8]
    private var at = 0

    init(_ data: Data) {
        bytes = [UInt8](data)
    }

    mutating func read() throws -> (String, Numbers) {
        var (shape, name, type, raw) = ([Int](), "", 0, [UInt8]())
        while at < bytes.count {
            let tag = try varint()
            switch (tag >> 3, tag & 7) {
            case (1, 0): shape.append(try varint())
            case (1, 2):
                let end = try length() + at
                while at < end { shape.append(try varint()) }
            case (2, 0): type = try varint()
            case (8, 2): name = String(decoding: try chunk(), as: UTF8.self)
            case (9, 2): raw = try chunk()
            case (_, 0): _ = try varint()
            case (_, 1): at += 8
            case (_, 2): _ = try chunk()
            case (_, 5): at += 4
            default: throw BundleFailure("a tensor file is no ONNX tensor")
            }
        }
        return (name, try numbers(name, type, shape, raw))
    }

    private func numbers(_ name: String, _ type: Int, _ shape: [Int], _ raw: [UInt8]) throws -> Numbers {
        let count = shape.reduce(1, *)
        let width = [1: 4, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8][type] ?? 0
        guard width > 0, raw.count == count * width else {
            throw BundleFailure("tensor '\(name)' of ONNX type \(type) has \(raw.count) bytes for \(count) numbers")
        }
        return raw.withUnsafeBytes { bytes in
            func all<Number>(_ kind: Number.Type) -> [Number] {
                (0..<count).map { bytes.loadUnaligned(fromByteOffset: $0 * width, as: kind) }
            }
            switch type {
            case 1: return Numbers(shape: shape, floats: all(Float.self))
            case 10: return Numbers(shape: shape, floats: all(Float16.self).map { Float($0) })
            case 11: return Numbers(shape: shape, floats: all(Double.self).map { Float($0) })
            case 6: return Numbers(shape: shape, integers: all(Int32.self))
            case 9: return Numbers(shape: shape, integers: all(UInt8.self).map { Int32($0) })
            default: return Numbers(shape: shape, integers: all(Int64.self).map { Int32(clamping: $0) })
            }
        }
    }

    private mutating func varint() throws -> Int {
        var (found, shift) = (UInt64(0), UInt64(0))
        while at < bytes.count, shift < 64 {
            let next = UInt64(bytes[at])
            at += 1
            found |= (next & 0x7f) << shift
            if next < 0x80 { return Int(truncatingIfNeeded: found) }
            shift += 7
        }
        throw BundleFailure("a tensor file is cut off")
    }

    private mutating func length() throws -> Int {
        let size = try varint()
        guard size >= 0, size <= bytes.count - at else { throw BundleFailure("a tensor file is cut off") }
        return size
    }

    private mutating func chunk() throws -> [UInt8] {
        let size = try length()
        defer { at += size }
        return Array(bytes[at..<at + size])
    }
}
