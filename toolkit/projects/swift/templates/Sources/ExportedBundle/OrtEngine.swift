import Foundation
import OnnxRuntimeBindings
import OnnxRuntimeExtensions

/// A graph on ONNX Runtime. `configure` may add an execution provider, as `appendCoreMLExecutionProvider(with:)`.
public final class OrtEngine {
    static let extensions = "onnxruntime-extensions"
    private static let environment = Result { try ORTEnv(loggingLevel: .warning) }
    private static let types: [String: ORTTensorElementDataType] = [
        "float32": .float, "int8": .int8, "uint8": .uInt8, "int32": .int32, "int64": .int64, "string": .string,
    ]

    public let runtime: String
    public let inputs: [String]
    public let outputs: [String]
    private let session: ORTSession

    public init(path: String, needs: [String] = [], configure: (ORTSessionOptions) throws -> Void = { _ in }) throws {
        do {
            let options = try ORTSessionOptions()
            if needs.contains(OrtEngine.extensions) {
                try options.registerCustomOps(usingFunction: "RegisterCustomOps")
            }
            try configure(options)
            session = try ORTSession(env: OrtEngine.environment.get(), modelPath: path, sessionOptions: options)
            inputs = try session.inputNames()
            outputs = try session.outputNames()
        } catch {
            throw BundleError("ONNX Runtime does not open \(path): \(error.localizedDescription)")
        }
        runtime = "onnxruntime \(ORTVersion()) CPUExecutionProvider"
    }

    /// All outputs by name.
    public func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        let fed = try inputs.mapValues(given)
        do {
            let answers = try session.run(withInputs: fed, outputNames: Set(outputs), runOptions: nil)
            return try answers.mapValues(taken)
        } catch let error as BundleError {
            throw error
        } catch {
            throw BundleError("ONNX Runtime does not run the graph: \(error.localizedDescription)")
        }
    }

    private func given(_ tensor: Tensor) throws -> ORTValue {
        let shape = tensor.shape.map { NSNumber(value: $0) }
        guard let type = OrtEngine.types[tensor.dtype] else {
            throw BundleError("numbers of type \(tensor.dtype) are not fed here")
        }
        if type == .string {
            return try ORTValue(tensorStringData: tensor.texts, shape: shape)
        }
        return try ORTValue(tensorData: NSMutableData(data: tensor.data), elementType: type, shape: shape)
    }

    private func taken(_ value: ORTValue) throws -> Tensor {
        let info = try value.tensorTypeAndShapeInfo()
        let shape = info.shape.map(\.intValue)
        if info.elementType == .string {
            return try Tensor(shape: shape, texts: value.tensorStringData())
        }
        guard let dtype = OrtEngine.types.first(where: { $0.value == info.elementType })?.key else {
            throw BundleError("an output's type is not read here")
        }
        return try Tensor(dtype: dtype, shape: shape, data: Data(referencing: value.tensorData()).copied())
    }
}

extension Data {
    /// The bytes themselves: what ONNX Runtime hands out lives no longer than its value.
    fileprivate func copied() -> Data {
        withUnsafeBytes { Data($0) }
    }
}
