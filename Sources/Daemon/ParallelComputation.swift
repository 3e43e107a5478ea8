// SPDX-License-Identifier: GPL-3.0-or-later

internal import Dispatch
internal import Synchronization

/// A value that another thread computes while this one goes on.
final class ParallelComputation<Value: Sendable>: Sendable {
    private let value = Mutex<Value?>(nil)
    private let done = DispatchSemaphore(value: 0)

    init(_ body: @escaping @Sendable () -> Value) {
        DispatchQueue.global().async { [self] in
            let computed = body()
            value.withLock { $0 = computed }
            done.signal()
        }
    }

    /// Waits for the value and hands it over. To be called once.
    func result() -> Value {
        done.wait()
        return value.withLock { value in
            guard let computed = value.take() else { preconditionFailure("the value has been handed over before") }
            return computed
        }
    }
}
