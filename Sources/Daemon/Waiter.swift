// SPDX-License-Identifier: GPL-3.0-or-later

internal import Synchronization

/// Somebody who waits for an outcome, for a time or for the end of the own task, whichever comes first.
final class Waiter: @unchecked Sendable {
    private let state: Mutex<(continuation: CheckedContinuation<Void, Never>?, isOver: Bool)>
    /// Belongs to whoever has made the waiter.
    var timer: UInt64?

    init() { state = Mutex((nil, false)) }

    init(_ continuation: CheckedContinuation<Void, Never>) { state = Mutex((continuation, false)) }

    /// Returns when `resume` has been called, before or after, or the task is cancelled.
    func wait() async {
        await withTaskCancellationHandler {
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
                let isOver = state.withLock { state in
                    if !state.isOver { state.continuation = continuation }
                    return state.isOver
                }
                if isOver { continuation.resume() }
            }
        } onCancel: {
            resume()
        }
    }

    func resume() {
        let continuation = state.withLock { state in
            let continuation = state.continuation
            state = (nil, true)
            return continuation
        }
        continuation?.resume()
    }
}
