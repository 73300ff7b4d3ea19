import Foundation

/// How far answers are from the reference, at the worst of all sets.
struct Drift: CustomStringConvertible {
    var sqnr = Double.infinity
    var cosine = 1.0
    var relative = 0.0
    var largest = 0.0

    /// Of one output on one set; `attended` says which elements count, nil for all. Throws for what is no answer.
    init(name: String, reference: Tensor, answer: Tensor, attended: [Bool]?) throws {
        guard answer.shape == reference.shape else {
            throw BundleError("output '\(name)' is \(answer); the reference is \(reference)")
        }
        var (r, c) = (try reference.doubles(), try answer.doubles())
        for (values, whose) in [(r, " of the reference"), (c, "")] {
            let odd = values.filter { $0.isNaN || abs($0) > 1e100 }.count
            guard odd == 0 else {
                throw BundleError("output '\(name)' has \(odd) values\(whose) that are NaN, infinite or above 1e100")
            }
        }
        for (index, counts) in (attended ?? []).enumerated() where !counts {
            r[index] = 0
            c[index] = 0
        }
        measure(r, c)
    }

    private mutating func measure(_ r: [Double], _ c: [Double]) {
        var (signal, noise, product, other) = (0.0, 0.0, 0.0, 0.0)
        for (one, two) in zip(r, c) {
            signal += one * one
            noise += (one - two) * (one - two)
            product += one * two
            other += two * two
            largest = max(largest, abs(one - two))
        }
        if noise == 0 { return }
        if signal == 0 {
            (sqnr, cosine, relative) = (-Double.infinity, 0, Double.infinity)
            return
        }
        sqnr = 10 * log10(signal / noise)
        cosine = other == 0 ? 0 : product / (signal.squareRoot() * other.squareRoot())
        relative = (noise / signal).squareRoot()
    }

    func worse(_ other: Drift) -> Drift {
        var worst = self
        worst.sqnr = min(sqnr, other.sqnr)
        worst.cosine = min(cosine, other.cosine)
        worst.relative = max(relative, other.relative)
        worst.largest = max(largest, other.largest)
        return worst
    }

    /// The first bound that does not hold, in words; nil where all hold.
    func failure(_ gate: [String: Double]) -> String? {
        if let bound = gate["min_sqnr_db"], !(sqnr >= bound) {
            return "SQNR \(fixed(sqnr, 1)) dB, the gate asks for at least \(fixed(bound, 1)) dB"
        }
        if let bound = gate["min_cosine"], !(cosine >= bound) {
            return "cosine \(fixed(cosine, 6)), the gate asks for at least \(fixed(bound, 6))"
        }
        if let bound = gate["max_relative_l2"], !(relative <= bound) {
            return "relative L2 \(short(relative)), the gate asks for at most \(short(bound))"
        }
        if let bound = gate["max_abs"], !(largest <= bound) {
            return "max abs \(short(largest)), the gate asks for at most \(short(bound))"
        }
        return nil
    }

    var description: String {
        "SQNR \(fixed(sqnr, 1)) dB, cosine \(fixed(cosine, 6)), "
            + "relative L2 \(short(relative)), max abs \(short(largest))"
    }
}

func fixed(_ number: Double, _ digits: Int) -> String {
    String(format: "%.\(digits)f", number)
}

func short(_ number: Double) -> String {
    String(format: "%.1e", number)
}

/// Which elements of an output count: those at positions that the mask attends to; nil where all do.
func attended(_ manifest: Manifest, _ output: Spec, _ inputs: [String: Tensor], _ shape: [Int]) throws -> [Bool]? {
    guard let mask = inputs["attention_mask"] else { return nil }
    let tensors = ["attention_mask", "input_ids"].compactMap { name in manifest.inputs.first { $0.name == name } }
    let once = { (tensor: Spec) in tensor.shape.allSatisfy { axis in output.shape.filter { $0 == axis }.count == 1 } }
    guard let axes = tensors.first(where: once)?.shape.compactMap({ output.shape.firstIndex(of: $0) }), axes.count == 2
    else { return nil }
    let (rows, width) = (mask.shape[0], mask.shape[1])
    guard shape.count > axes.max()!, shape[axes[0]] == rows, shape[axes[1]] <= width else { return nil }
    let values = try mask.doubles()
    let strides = shape.indices.map { shape.dropFirst($0 + 1).reduce(1, *) }
    return (0..<shape.reduce(1, *)).map { index in
        let row = index / strides[axes[0]] % shape[axes[0]]
        let position = index / strides[axes[1]] % shape[axes[1]]
        return values[row * width + width - shape[axes[1]] + position] != 0
    }
}
