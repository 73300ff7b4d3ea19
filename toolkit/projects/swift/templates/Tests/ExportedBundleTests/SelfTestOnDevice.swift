import Foundation
import XCTest

@testable import ExportedBundle

/// Every bundle's self-test, on the device or simulator that Xcode runs the tests on.
final class SelfTestOnDevice: XCTestCase {
    func testEveryBundlePasses() throws {
        let bundles = Foundation.Bundle.module.bundleURL.appendingPathComponent("bundles")
        let folders = try FileManager.default.contentsOfDirectory(at: bundles, includingPropertiesForKeys: nil)
        XCTAssertFalse(folders.isEmpty, "there are no bundles among the test's resources")
        for folder in folders {
            var lines = [String]()
            let passed = SelfTest(folder: folder) { lines.append($0) }.run()
            print(lines.joined(separator: "\n"))
            XCTAssertTrue(passed, lines.joined(separator: "\n"))
        }
    }
}
