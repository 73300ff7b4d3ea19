// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "ExportedBundle",
    platforms: [.iOS(.v15)],
    products: [.library(name: "ExportedBundle", targets: ["ExportedBundle"])],
    dependencies: [
        // The newest is resolved; bundles use operators of opset 23, which old releases lack.
        .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0")
    ],
    targets: [
        .target(
            name: "ExportedBundle",
            dependencies: [
                .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager"),
                .product(name: "onnxruntime_extensions", package: "onnxruntime-swift-package-manager"),
            ],
            resources: [.copy("bundles")]
        ),
        .testTarget(
            name: "ExportedBundleTests",
            dependencies: ["ExportedBundle"],
            resources: [.copy("bundles")]
        ),
    ]
)
