// Loads the Core ML package of a bundle and runs it. Copy this file into an app; it needs iOS 18 or macOS 15.
// Names, types and sizes of inputs and outputs are in the bundle's manifest.json.

import CoreML
import Foundation

/// Why a bundle could not be used, in words for the reader.
public struct BundleFailure: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}

/// Numbers in row-major order: `floats` of float32, or `integers` of token ids, masks and positions.
public struct Numbers {
    public var shape: [Int]
    public var floats: [Float] = []
    public var integers: [Int32] = []

    public init(shape: [Int], floats: [Float]) {
        self.shape = shape
        self.floats = floats
    }

    public init(shape: [Int], integers: [Int32]) {
        self.shape = shape
        self.integers = integers
    }

    /// Row `index` of axis 0 alone, as [1, ...].
    public func row(_ index: Int) -> Numbers {
        let width = shape.dropFirst().reduce(1, *)
        var one = self
        one.shape[0] = 1
        one.floats = floats.isEmpty ? [] : Array(floats[index * width..<(index + 1) * width])
        one.integers = integers.isEmpty ? [] : Array(integers[index * width..<(index + 1) * width])
        return one
    }
}

/// The package `model.mlpackage` of a bundle, compiled on this device.
@available(iOS 18, macOS 15, *)
public final class CoreMLModel {
    public let model: MLModel

    /// Compiles and loads the package. Core ML chooses among the processor, the GPU and the Neural Engine by `units`.
    public init(bundle: URL, units: MLComputeUnits = .all) async throws {
        let compiled = try await MLModel.compileModel(at: bundle.appendingPathComponent("model.mlpackage"))
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
    }

    /// All outputs by name. A language model's `state` holds its cache and is changed.
    public func predict(_ inputs: [String: Numbers], state: MLState? = nil) throws -> [String: Numbers] {
        var features: [String: MLFeatureValue] = [:]
        for (name, description) in model.modelDescription.inputDescriptionsByName {
            guard let numbers = inputs[name] else { throw BundleFailure("input '\(name)' is missing") }
            guard let wanted = description.multiArrayConstraint else {
                throw BundleFailure("input '\(name)' of the package is no array")
            }
            features[name] = MLFeatureValue(multiArray: try array(numbers, wanted.dataType))
        }
        let provider = try MLDictionaryFeatureProvider(dictionary: features)
        let answer = try state.map { try model.prediction(from: provider, using: $0) }
            ?? model.prediction(from: provider)
        var outputs: [String: Numbers] = [:]
        for name in answer.featureNames {
            guard let found = answer.featureValue(for: name)?.multiArrayValue else {
                throw BundleFailure("output '\(name)' is no array")
            }
            outputs[name] = try numbers(found)
        }
        return outputs
    }
}

/// Writes text with a language model whose cache Core ML keeps as states: one row, from the first token on.
@available(iOS 18, macOS 15, *)
public final class CoreMLGenerator {
    private let model: CoreMLModel
    private let state: MLState
    private let length: Int
    private var held = 0

    /// `length` is how many positions the states hold: axis 2 of each entry of `engine.details.states`.
    public init(model: CoreMLModel, length: Int) {
        self.model = model
        self.length = length
        state = model.model.makeState()
    }

    /// Appends tokens, a whole prompt or one, and answers the logits after the last of them.
    public func append(_ tokens: [Int32]) throws -> [Float] {
        guard !tokens.isEmpty, held + tokens.count <= length else {
            throw BundleFailure("\(tokens.count) tokens behind \(held); the cache holds \(length)")
        }
        let steps = (0..<tokens.count).map { Int32(held + $0) }
        let filled = (0..<length).map { Int32($0 < held + tokens.count ? 1 : 0) }
        let every = [
            "input_ids": Numbers(shape: [1, tokens.count], integers: tokens),
            "attention_mask": Numbers(shape: [1, length], integers: filled),
            "position_ids": Numbers(shape: [1, tokens.count], integers: steps),
            "write_indices": Numbers(shape: [1], integers: [Int32(held)]),
        ]
        let taken = model.model.modelDescription.inputDescriptionsByName
        let answer = try model.predict(every.filter { taken[$0.key] != nil }, state: state)
        guard let logits = answer["logits"], let vocabulary = logits.shape.last else {
            throw BundleFailure("the model answers no logits")
        }
        held += tokens.count
        return Array(logits.floats.suffix(vocabulary))
    }

    /// The most probable next token.
    public static func greedy(_ logits: [Float]) -> Int32 {
        Int32(logits.indices.max { logits[$0] < logits[$1] } ?? 0)
    }
}

/// The numbers as Core ML's array of that type.
@available(iOS 18, macOS 15, *)
func array(_ numbers: Numbers, _ type: MLMultiArrayDataType) throws -> MLMultiArray {
    let made = try MLMultiArray(shape: numbers.shape.map { NSNumber(value: $0) }, dataType: type)
    try fill(made, with: numbers)
    return made
}

/// Writes the numbers over an array of their shape, wherever its rows lie in memory.
@available(iOS 18, macOS 15, *)
func fill(_ array: MLMultiArray, with numbers: Numbers) throws {
    guard array.shape.map(\.intValue) == numbers.shape else {
        throw BundleFailure("an array \(array.shape) for numbers \(numbers.shape)")
    }
    let type = array.dataType
    try array.withUnsafeMutableBytes { bytes, strides in
        for (index, place) in places(numbers.shape, strides).enumerated() {
            let number = numbers.floats.isEmpty ? Float(numbers.integers[index]) : numbers.floats[index]
            switch type {
            case .float32: bytes.storeBytes(of: number, toByteOffset: place * 4, as: Float.self)
            case .float16: bytes.storeBytes(of: Float16(number), toByteOffset: place * 2, as: Float16.self)
            case .int32:
                let whole = numbers.integers.isEmpty ? Int32(number) : numbers.integers[index]
                bytes.storeBytes(of: whole, toByteOffset: place * 4, as: Int32.self)
            default: throw BundleFailure("arrays of type \(type.rawValue) are not known here")
            }
        }
    }
}

/// A copy of Core ML's array, in row-major order.
@available(iOS 18, macOS 15, *)
func numbers(_ array: MLMultiArray) throws -> Numbers {
    let shape = array.shape.map(\.intValue)
    let order = places(shape, array.strides.map(\.intValue))
    return try array.withUnsafeBytes { bytes in
        switch array.dataType {
        case .float32:
            return Numbers(shape: shape, floats: order.map { bytes.load(fromByteOffset: $0 * 4, as: Float.self) })
        case .float16:
            let halves = order.map { bytes.load(fromByteOffset: $0 * 2, as: Float16.self) }
            return Numbers(shape: shape, floats: halves.map { Float($0) })
        case .int32:
            return Numbers(shape: shape, integers: order.map { bytes.load(fromByteOffset: $0 * 4, as: Int32.self) })
        default:
            throw BundleFailure("arrays of type \(array.dataType.rawValue) are not known here")
        }
    }
}

/// Where each element lies, in row-major order of the shape.
func places(_ shape: [Int], _ strides: [Int]) -> [Int] {
    var found = [0]
    for (size, stride) in zip(shape, strides) {
        found = found.flatMap { start in (0..<size).map { start + $0 * stride } }
    }
    return found
}
