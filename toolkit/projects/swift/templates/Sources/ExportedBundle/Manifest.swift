import CryptoKit
import Foundation

private typealias Object = [String: Any]

/// The graph before or after the model. `reason` says why there is none, or on what it is not exact.
public struct ProcessingEntry {
    public let graph: String?
    public let inputs: [Spec]
    public let outputs: [Spec]
    public let exact: Bool
    public let bound: Double
    public let reason: String
    public let needs: [String]
}

/// What `manifest.json` says of a bundle, as far as a program needs it.
public struct Manifest {
    public let folder: URL
    public let toolkit: String
    public let name: String
    public let target: String
    public let labels: [String]
    public let inputs: [Spec]
    public let outputs: [Spec]
    /// The engine's own, which has numbers where it takes one fixed shape.
    public let engineInputs: [Spec]
    public let engineOutputs: [Spec]
    public let preprocess: ProcessingEntry?
    public let postprocess: ProcessingEntry?
    /// Bounds of the gate that an answer must hold, by name, as `min_sqnr_db`.
    public let gate: [String: Double]
    /// What ONNX Runtime opens: the `.ort` file where there is one, else the graph.
    public let engine: String

    private let files: [String: (sha256: String, bytes: Int)]

    /// Reads `manifest.json` of the folder. Throws where it is missing, broken or newer.
    public init(folder: URL) throws {
        let file = folder.appendingPathComponent("manifest.json")
        guard let data = try? Data(contentsOf: file) else { throw BundleError("manifest.json: missing") }
        guard let json = try? JSONSerialization.jsonObject(with: data) as? Object else {
            throw BundleError("manifest.json: broken JSON")
        }
        let version = json["schema_version"] as? Int
        guard version == 1 else {
            throw BundleError("manifest.json: schema version \(version.map(String.init) ?? "?"); this program reads 1")
        }
        let (model, target): (Object, Object) = (try value(json, "model"), try value(json, "target"))
        let (engine, gates): (Object, Object) = (try value(json, "engine"), try value(json, "gates"))
        let gate: Object = try value(gates, "check")
        let engineFiles: [String] = try value(engine, "files")
        self.folder = folder
        toolkit = try value(json, "toolkit")
        name = try value(model, "name")
        let (runtime, scheme): (String, String) = (try value(target, "runtime"), try value(target, "scheme"))
        self.target = "\(runtime)-\(scheme)"
        labels = try value(model, "labels")
        inputs = try specs(json, "inputs")
        outputs = try specs(json, "outputs")
        let (ownInputs, ownOutputs) = (try specs(engine, "inputs"), try specs(engine, "outputs"))
        engineInputs = ownInputs.isEmpty ? inputs : ownInputs
        engineOutputs = ownOutputs.isEmpty ? outputs : ownOutputs
        preprocess = try processing(json, "preprocess")
        postprocess = try processing(json, "postprocess")
        self.gate = gate.compactMapValues { $0 as? Double }
        self.engine = try engineFiles.first { $0.hasSuffix(".ort") } ?? value(json, "graph")
        let entries: [String: Object] = try value(json, "files")
        files = try entries.mapValues { (try value($0, "sha256"), try value($0, "bytes")) }
        try files.keys.forEach(checkPath)
        guard !outputs.isEmpty else { throw BundleError("manifest.json: the model has no outputs") }
    }

    /// Checks size and SHA-256 of all files and answers their number. Throws naming one that differs.
    public func verify() throws -> Int {
        for path in files.keys.sorted() { _ = try verify(path) }
        return files.count
    }

    /// Checks one file, and answers it. Throws saying what differs.
    public func verify(_ path: String) throws -> URL {
        guard let entry = files[path] else { throw BundleError("\(path): not listed in the manifest") }
        let file = folder.appendingPathComponent(path)
        guard let data = try? Data(contentsOf: file, options: .mappedIfSafe) else {
            throw BundleError("\(path): missing")
        }
        guard data.count == entry.bytes else {
            throw BundleError("\(path): changed, \(data.count) bytes where the manifest has \(entry.bytes)")
        }
        let digest = SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
        guard digest == entry.sha256 else {
            throw BundleError("\(path): changed, another SHA-256 than the manifest's")
        }
        return file
    }

    /// The file, which must be among those whose hashes are checked.
    func listed(_ path: String) throws -> URL {
        guard files[path] != nil else { throw BundleError("\(path): not listed in the manifest") }
        return folder.appendingPathComponent(path)
    }

    /// The engine's file and what it needs beside it, checked.
    func verifyEngine() throws -> URL {
        if files["\(engine).data"] != nil { _ = try verify("\(engine).data") }
        return try verify(engine)
    }
}

private func checkPath(_ path: String) throws {
    let parts = path.components(separatedBy: "/")
    if parts.contains(where: { ["", ".", ".."].contains($0) }) || path.contains("\\") || parts[0].contains(":") {
        throw BundleError("'\(path)' is not a relative path inside the bundle")
    }
}

private func value<Kind>(_ object: Object, _ name: String) throws -> Kind {
    guard let found = object[name] as? Kind else {
        throw BundleError("manifest.json: not as it was written: '\(name)' is missing or of another kind")
    }
    return found
}

private func specs(_ object: Object, _ name: String) throws -> [Spec] {
    let list: [Object] = try value(object, name)
    return try list.map { entry in
        let shape: [Any] = try value(entry, "shape")
        let dims = try shape.map { dim -> Dim in
            if let size = dim as? Int { return .size(size) }
            if let name = dim as? String { return .name(name) }
            throw BundleError("manifest.json: a dimension is neither a number nor a name")
        }
        return Spec(name: try value(entry, "name"), dtype: try value(entry, "dtype"), shape: dims)
    }
}

private func processing(_ object: Object, _ name: String) throws -> ProcessingEntry? {
    guard let entry = object[name] as? Object else { return nil }
    return ProcessingEntry(
        graph: entry["graph"] as? String,
        inputs: try specs(entry, "inputs"),
        outputs: try specs(entry, "outputs"),
        exact: try value(entry, "exact"),
        bound: try value(entry, "bound"),
        reason: try value(entry, "reason"),
        needs: try value(entry, "needs")
    )
}
