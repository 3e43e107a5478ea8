// SPDX-License-Identifier: GPL-3.0-or-later

import AllocationCounter
import Benchmark

extension BenchmarkMetric {
    /// Heap allocations of one thousand operations.
    static var allocations: BenchmarkMetric { .custom("Allocations (per 1000)", polarity: .prefersSmaller) }
}

/// Declares a benchmark. `prepare` is not measured; the closure that it returns is one operation, measured a thousand at a
/// time: the figures shown are those of one operation, but for the allocations.
func measure<Result>(_ name: String, _ prepare: @escaping @Sendable () -> () -> Result) {
    let configuration = Benchmark.Configuration(
        metrics: [.wallClock, .instructions, .allocations], timeUnits: .nanoseconds, warmupIterations: 20,
        scalingFactor: .kilo, maxDuration: .seconds(1), maxIterations: 3000)
    Benchmark(name, configuration: configuration) { benchmark in
        let operation = prepare()
        let before = allocation_count_of_this_thread()
        benchmark.startMeasurement()
        for _ in benchmark.scaledIterations { blackHole(operation()) }
        benchmark.stopMeasurement()
        benchmark.measurement(.allocations, allocation_count_of_this_thread() - before)
    }
}
