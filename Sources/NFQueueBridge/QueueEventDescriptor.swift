// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Glibc

/// An eventfd(2), by which one thread wakes another that waits in poll(2) or epoll(7). Closed with its owner.
@usableFromInline
struct QueueEventDescriptor: ~Copyable, Sendable {
    @usableFromInline let fileDescriptor: Int32

    @usableFromInline
    init() throws(NetlinkError) {
        let descriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
        guard descriptor >= 0 else { throw NetlinkError(operation: .makeEventDescriptor, errno: errno) }
        fileDescriptor = descriptor
    }

    @usableFromInline
    deinit { close(fileDescriptor) }

    /// Makes the descriptor readable until `clear`. Fails only when it is readable already.
    @usableFromInline
    func signal() { _ = eventfd_write(fileDescriptor, 1) }

    /// Makes the descriptor not readable.
    @usableFromInline
    func clear() {
        var value: eventfd_t = 0
        _ = unsafe eventfd_read(fileDescriptor, &value)
    }

    /// Waits until the descriptor is readable. False when `milliseconds` have passed.
    func wait(milliseconds: Int) -> Bool {
        var start = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &start)
        var remaining = milliseconds
        while true {
            var descriptor = pollfd(fd: fileDescriptor, events: Int16(POLLIN), revents: 0)
            let ready = unsafe poll(&descriptor, 1, Int32(max(0, remaining)))
            if ready > 0 { return true }
            if ready == 0 { return false }
            // Interrupted by a signal: go on for what is left of the time.
            var now = timespec()
            unsafe clock_gettime(CLOCK_MONOTONIC, &now)
            let passed = (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1_000_000
            remaining = milliseconds - passed
        }
    }
}
