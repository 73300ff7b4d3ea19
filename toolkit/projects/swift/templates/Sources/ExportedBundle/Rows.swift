import Foundation

/// Feeds an engine of one fixed shape with any: axis 0 is cut into single rows, every other axis is padded with zeros
/// at its end, and the answers are put together and cut to the sizes that their named axes had in the inputs.
struct Rows {
    let manifest: Manifest
    let engine: OrtEngine

    func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        try check(inputs)
        let fixed = Dictionary(uniqueKeysWithValues: manifest.engineInputs.map { ($0.name, $0.shape) })
        guard manifest.engineInputs.contains(where: { differs($0.shape, inputs[$0.name]!.shape) }) else {
            return try engine.run(inputs)
        }
        let single = manifest.inputs.filter { isName($0.shape.first) && fixed[$0.name]!.first == .size(1) }
        let byRow = Set(single.map(\.name))
        let rows = byRow.map { inputs[$0]!.shape[0] }.max() ?? 1
        guard rows > 0 else { throw BundleError("the inputs have no rows") }
        var answers = [[String: Tensor]]()
        for row in 0..<rows {
            var fed = [String: Tensor]()
            for (name, all) in inputs {
                fed[name] = try fitted(name, byRow.contains(name) ? all.row(row) : all, fixed[name]!)
            }
            answers.append(try engine.run(fed))
        }
        let sizes = self.sizes(inputs)
        return Dictionary(uniqueKeysWithValues: try manifest.outputs.map { ($0.name, try joined($0, answers, sizes)) })
    }

    /// Names, types and ranks, and each size that the model has as a number.
    private func check(_ inputs: [String: Tensor]) throws {
        for spec in manifest.inputs where inputs[spec.name] == nil {
            throw BundleError("input '\(spec.name)' is missing")
        }
        for name in inputs.keys where !manifest.inputs.contains(where: { $0.name == name }) {
            throw BundleError("the model has no input '\(name)'")
        }
        for spec in manifest.inputs {
            let given = inputs[spec.name]!
            let same = given.dtype == spec.dtype && given.shape.count == spec.shape.count
            if !same || differs(spec.shape, given.shape) {
                throw BundleError("input '\(spec.name)' is \(given); the model takes \(spec)")
            }
        }
    }

    private func fitted(_ name: String, _ one: Tensor, _ shape: [Dim]) throws -> Tensor {
        let wanted = zip(shape, one.shape).map { dim, size -> Int in
            if case .size(let fixed) = dim { return fixed }
            return size
        }
        if zip(wanted, one.shape).contains(where: { $0 < $1 }) {
            let most = Spec(name: name, dtype: one.dtype, shape: shape)
            throw BundleError("input '\(name)' is \(one); the engine takes at most \(most)")
        }
        return try one.resized(wanted)
    }

    private func sizes(_ inputs: [String: Tensor]) -> [String: Int] {
        var found = [String: Int]()
        for spec in manifest.inputs {
            for (dim, size) in zip(spec.shape, inputs[spec.name]!.shape) {
                if case .name(let name) = dim { found[name] = size }
            }
        }
        return found
    }

    private func joined(_ spec: Spec, _ answers: [[String: Tensor]], _ sizes: [String: Int]) throws -> Tensor {
        let parts = try answers.map { answer -> Tensor in
            guard let one = answer[spec.name] else { throw BundleError("the engine gave no output '\(spec.name)'") }
            return try one.resized(one.shape.enumerated().map { axis, size in
                if axis > 0, case .name(let name) = spec.shape[axis] { return sizes[name] ?? size }
                return size
            })
        }
        let shape = [parts.map { $0.shape[0] }.reduce(0, +)] + parts[0].shape.dropFirst()
        return try Tensor(dtype: parts[0].dtype, shape: shape, data: parts.reduce(into: Data()) { $0.append($1.data) })
    }
}

private func isName(_ dim: Dim?) -> Bool {
    if case .name = dim { return true }
    return false
}

private func differs(_ shape: [Dim], _ given: [Int]) -> Bool {
    zip(shape, given).contains { dim, size in
        if case .size(let fixed) = dim { return fixed != size }
        return false
    }
}

extension Tensor {
    /// One row of axis 0, which stays as an axis of size 1.
    func row(_ index: Int) throws -> Tensor {
        guard index < shape[0] else { throw BundleError("an input has \(shape[0]) rows, another has more") }
        let width = data.count / shape[0]
        let bytes = data.subdata(in: index * width..<(index + 1) * width)
        return try Tensor(dtype: dtype, shape: [1] + shape.dropFirst(), data: bytes)
    }

    /// The same numbers in another shape of as many axes: cut, or filled with zeros, at each axis' end.
    func resized(_ wanted: [Int]) throws -> Tensor {
        if wanted == shape { return self }
        let width = try Tensor.width(of: dtype)
        var target = Data(count: wanted.reduce(width, *))
        copyAxis(&target, wanted, 0, 0, 0, width)
        return try Tensor(dtype: dtype, shape: wanted, data: target)
    }

    private func copyAxis(_ target: inout Data, _ wanted: [Int], _ axis: Int, _ from: Int, _ to: Int, _ width: Int) {
        if axis == shape.count {
            target.replaceSubrange(to..<to + width, with: data.subdata(in: from..<from + width))
            return
        }
        let step = shape.dropFirst(axis + 1).reduce(width, *)
        let stride = wanted.dropFirst(axis + 1).reduce(width, *)
        for index in 0..<min(shape[axis], wanted[axis]) {
            copyAxis(&target, wanted, axis + 1, from + index * step, to + index * stride, width)
        }
    }
}
