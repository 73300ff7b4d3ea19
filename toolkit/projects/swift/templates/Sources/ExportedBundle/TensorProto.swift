import Foundation

/// Just as much of protobuf as `TensorProto` messages need whose numbers are in `raw_data`.
struct TensorProto {
    private static let types: [UInt64: String] = [
        1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
        11: "float64",
    ]

    private let bytes: [UInt8]
    private var at = 0

    /// Name and tensor of the file. Throws for one that is broken.
    static func read(_ file: URL) throws -> (String, Tensor) {
        var proto = TensorProto(bytes: [UInt8](try Data(contentsOf: file)))
        return try proto.read()
    }

    private init(bytes: [UInt8]) {
        self.bytes = bytes
    }

    private mutating func read() throws -> (String, Tensor) {
        var (dims, texts) = ([Int](), [String]())
        var (name, type, raw) = ("", UInt64(0), Data())
        while at < bytes.count {
            let tag = try varint()
            switch tag {
            case 8: dims.append(Int(try varint()))
            case 10:
                let end = Int(try varint()) + at
                while at < end { dims.append(Int(try varint())) }
            case 16: type = try varint()
            case 50: texts.append(String(decoding: try chunk(), as: UTF8.self))
            case 66: name = String(decoding: try chunk(), as: UTF8.self)
            case 74: raw = Data(try chunk())
            default: try skip(Int(tag & 7))
            }
        }
        guard let dtype = TensorProto.types[type] else {
            throw BundleError("tensor '\(name)' is of ONNX type \(type), which is not read here")
        }
        if dtype == "string" { return (name, try Tensor(shape: dims, texts: texts)) }
        return (name, try Tensor(dtype: dtype, shape: dims, data: raw))
    }

    private mutating func varint() throws -> UInt64 {
        var (found, shift) = (UInt64(0), UInt64(0))
        while shift < 64 {
            guard at < bytes.count else { throw BundleError("a tensor file is cut off") }
            let next = UInt64(bytes[at])
            at += 1
            found |= (next & 0x7f) << shift
            if next < 0x80 { return found }
            shift += 7
        }
        throw BundleError("a tensor file is no ONNX tensor")
    }

    private mutating func chunk() throws -> ArraySlice<UInt8> {
        let size = Int(try varint())
        guard size <= bytes.count - at else { throw BundleError("a tensor file is cut off") }
        defer { at += size }
        return bytes[at..<at + size]
    }

    private mutating func skip(_ wire: Int) throws {
        switch wire {
        case 0: _ = try varint()
        case 1: at += 8
        case 2: _ = try chunk()
        case 5: at += 4
        default: throw BundleError("a tensor file is no ONNX tensor")
        }
    }
}
