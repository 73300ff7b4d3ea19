import Foundation

/// What went wrong with a bundle, its inputs or its outputs, in words for the reader.
public struct BundleError: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}

/// A dimension is a number, or a name such as `batch`.
public enum Dim: Equatable, CustomStringConvertible {
    case size(Int)
    case name(String)

    public var description: String {
        switch self {
        case .size(let size): return String(size)
        case .name(let name): return name
        }
    }
}

/// Name, numpy dtype and shape of an input or output.
public struct Spec: CustomStringConvertible {
    public let name: String
    public let dtype: String
    public let shape: [Dim]

    public var description: String {
        "\(dtype) [\(shape.map(\.description).joined(separator: ", "))]"
    }
}

/// Numbers in row-major order, little-endian as numpy stores `dtype`; or, of dtype `string`, the texts.
public struct Tensor: CustomStringConvertible {
    public let dtype: String
    public let shape: [Int]
    let data: Data
    let texts: [String]

    private static let widths = [
        "float32": 4, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "float16": 2, "int8": 1, "uint8": 1, "bool": 1,
    ]

    /// A tensor of these bytes. Throws where their number does not fit the shape.
    public init(dtype: String, shape: [Int], data: Data) throws {
        self.dtype = dtype
        self.shape = shape
        self.data = data
        texts = []
        let width = try Tensor.width(of: dtype)
        if data.count != size * width {
            throw BundleError("\(self) has \(data.count) bytes of data")
        }
    }

    /// float32 numbers.
    public init(shape: [Int], floats: [Float]) throws {
        try self.init(dtype: "float32", shape: shape, data: floats.withUnsafeBytes { Data($0) })
    }

    /// int64 numbers, as token ids are.
    public init(shape: [Int], integers: [Int64]) throws {
        try self.init(dtype: "int64", shape: shape, data: integers.withUnsafeBytes { Data($0) })
    }

    /// uint8 numbers, as pixels are.
    public init(shape: [Int], bytes: [UInt8]) throws {
        try self.init(dtype: "uint8", shape: shape, data: Data(bytes))
    }

    /// Texts.
    public init(shape: [Int], texts: [String]) throws {
        dtype = "string"
        self.shape = shape
        data = Data()
        self.texts = texts
        if texts.count != size {
            throw BundleError("\(self) has \(texts.count) texts")
        }
    }

    /// How many elements it has.
    public var size: Int {
        shape.reduce(1, *)
    }

    public var description: String {
        "\(dtype) [\(shape.map(String.init).joined(separator: ", "))]"
    }

    /// Bytes of an element. Throws for a type that is not known.
    static func width(of dtype: String) throws -> Int {
        guard let width = widths[dtype] else { throw BundleError("numbers of type \(dtype) are not known") }
        return width
    }

    /// All elements as doubles. Throws for texts and for half precision.
    public func doubles() throws -> [Double] {
        switch dtype {
        case "float32": return numbers(Float.self).map(Double.init)
        case "float64": return numbers(Double.self)
        case "int64": return numbers(Int64.self).map(Double.init)
        case "int32": return numbers(Int32.self).map(Double.init)
        case "int16": return numbers(Int16.self).map(Double.init)
        case "int8": return numbers(Int8.self).map(Double.init)
        case "uint8": return numbers(UInt8.self).map(Double.init)
        case "bool": return numbers(UInt8.self).map { $0 == 0 ? 0 : 1 }
        default: throw BundleError("numbers of type \(dtype) are not read here")
        }
    }

    /// The elements of a float32 tensor. Throws for another.
    public func floats() throws -> [Float] {
        guard dtype == "float32" else { throw BundleError("a tensor of \(dtype) was read as float32") }
        return numbers(Float.self)
    }

    private func numbers<Number>(_ type: Number.Type) -> [Number] {
        data.withUnsafeBytes { bytes in
            (0..<size).map { bytes.loadUnaligned(fromByteOffset: $0 * MemoryLayout<Number>.size, as: type) }
        }
    }
}
