// swift-tools-version: 6.2
// SPDX-License-Identifier: GPL-3.0-or-later

import PackageDescription

// A package of its own, so that nobody who builds the daemon fetches a benchmark library.
let package = Package(
    name: "nfqmigd-benchmarks",
    dependencies: [
        .package(name: "nfqmigd", path: ".."),
        // Without its traits it needs no jemalloc. Allocations are counted by AllocationCounter, as in the tests.
        .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.1", traits: []),
    ],
    targets: [
        .executableTarget(
            name: "MicroBenchmarks",
            dependencies: [
                .product(name: "Benchmark", package: "benchmark"),
                .product(name: "NFQMigRooms", package: "nfqmigd"),
            ],
            path: "Benchmarks/MicroBenchmarks",
            plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")])
    ]
)
