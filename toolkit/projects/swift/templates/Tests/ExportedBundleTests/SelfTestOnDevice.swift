import Foundation
import XCTest

@testable import ExportedBundle

/// Every bundle's self-test, on the device or simulator that Xcode runs the tests on.
final class SelfTestOnDevice: XCTestCase {
    func testEveryBundlePasses() throws {
        let bundles = Foundation.Bundle.module.bundleURL.appendingPathComponent("bundles")
        for folder in try FileManager.default.contentsOfDirectory(at: bundles, includingPropertiesForKeys: nil) {
            var lines = [String]()
            let passed = SelfTest(folder: folder) { lines.append($0) }.run()
            print(lines.joined(separator: "\n"))
            XCTAssertTrue(passed, lines.joined(separator: "\n"))
        }
    }
}
