// swift-tools-version: 6.2
// SPDX-License-Identifier: GPL-3.0-or-later

import PackageDescription

/// Every room: Swift 6 mode (from the tools version), strict memory safety, explicit `any`, imports that say what they are for.
let room: [SwiftSetting] = [
    .strictMemorySafety(),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableExperimentalFeature("Lifetimes"),
]

let package = Package(
    name: "nfqmigd",
    products: [
        .executable(name: "nfqmigd", targets: ["nfqmigd"]),
        .executable(name: "nfqmigctl", targets: ["nfqmigctl"]),
        // For Benchmarks/, a package of its own.
        .library(
            name: "NFQMigRooms",
            targets: ["Wire", "Rewriter", "Ruleset", "Migration", "Spoofer", "NFQueueBridge", "AllocationCounter"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/LebJe/TOMLKit", from: "0.6.0"),
    ],
    targets: [
        // C, seen through one module each.
        .systemLibrary(
            name: "CNetfilter",
            pkgConfig: "libnetfilter_queue libnftnl libmnl",
            providers: [.apt(["libmnl-dev", "libnfnetlink-dev", "libnetfilter-queue-dev", "libnftnl-dev"])]),
        .target(name: "CLinuxShims"),

        // Pure rooms: they open no socket, read no clock, roll no dice.
        .target(name: "Wire", swiftSettings: room),
        .target(name: "Rewriter", dependencies: ["Wire"], swiftSettings: room),
        .target(name: "Ruleset", dependencies: ["Wire"], swiftSettings: room),
        .target(name: "Migration", dependencies: ["Wire", "Rewriter", "Ruleset"], swiftSettings: room),

        // The rim: each room owns one kind of kernel handle.
        .target(name: "Conntrack", dependencies: ["Wire", "CNetfilter", "CLinuxShims"], swiftSettings: room),
        .target(name: "Spoofer", dependencies: ["Wire", "CNetfilter", "CLinuxShims"], swiftSettings: room),
        .target(
            name: "NFQueueBridge", dependencies: ["Wire", "Ruleset", "CNetfilter", "CLinuxShims"],
            swiftSettings: room),

        // What the daemon and its clients say to each other, and the two programs.
        .target(name: "ControlInterface", dependencies: ["Wire"], swiftSettings: room),
        .target(
            name: "Daemon",
            dependencies: [
                "Wire", "Rewriter", "Ruleset", "Migration", "Conntrack", "Spoofer", "NFQueueBridge", "ControlInterface",
                "CLinuxShims",
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "GRDB", package: "GRDB.swift"),
                .product(name: "TOMLKit", package: "TOMLKit"),
            ],
            swiftSettings: room),
        .executableTarget(
            name: "nfqmigd",
            dependencies: [
                "Daemon", "ControlInterface",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: room),
        .executableTarget(
            name: "nfqmigctl",
            dependencies: [
                "Wire", "ControlInterface",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
            ],
            swiftSettings: room),

        // Counts the allocations of each thread of a test process, by standing in for malloc.
        .target(name: "AllocationCounter", path: "Tests/AllocationCounter"),
        .testTarget(name: "WireTests", dependencies: ["Wire"]),
        .testTarget(name: "RewriterTests", dependencies: ["Rewriter", "Wire"]),
        .testTarget(name: "RulesetTests", dependencies: ["Ruleset", "Wire"]),
        .testTarget(name: "MigrationTests", dependencies: ["Migration", "Wire"]),
        .testTarget(name: "ConntrackTests", dependencies: ["Conntrack", "Wire", "CLinuxShims"]),
        .testTarget(name: "SpooferTests", dependencies: ["Spoofer", "Wire", "CLinuxShims"]),
        .testTarget(
            name: "NFQueueBridgeTests",
            dependencies: [
                "NFQueueBridge", "Ruleset", "Wire", "CLinuxShims", "AllocationCounter", "Daemon", "Rewriter",
            ]),
        .testTarget(name: "ControlInterfaceTests", dependencies: ["ControlInterface", "Wire"]),
        .testTarget(
            name: "DaemonTests",
            dependencies: [
                "Daemon", "Migration", "Rewriter", "Ruleset", "ControlInterface", "Wire", "NFQueueBridge",
                "CLinuxShims", "AllocationCounter",
            ]),
    ]
)
