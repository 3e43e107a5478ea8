// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc
internal import Synchronization

/// One thread that waits for file descriptors and deadlines (epoll), and the executor of the actor that lives on it.
///
/// Handlers and timers run on the loop's thread and so inside that actor, whose state they may use; they are to be set
/// from there only. What they do must not block longer than a netlink round trip.
final class EventLoop: SerialExecutor, @unchecked Sendable {
    /// Jobs that other threads want run here.
    private let jobs = Mutex<[UnownedJob]>([])
    private let wakeUp: Int32
    private let poll: Int32
    private let stopping = Atomic<Bool>(false)
    /// The loop's own thread; written before the first job can run.
    private let thread = Mutex<pthread_t?>(nil)

    // Used on the loop's thread only.
    private var handlers: [Int32: () -> Void] = [:]
    private var timers: [Timer] = []
    private var nextTimer: UInt64 = 1

    private struct Timer {
        let id: UInt64
        let deadline: UInt64
        let body: () -> Void
    }

    init() throws(SystemError) {
        poll = epoll_create1(Int32(EPOLL_CLOEXEC.rawValue))
        guard poll >= 0 else { throw SystemError(operation: .eventLoop, errno: errno) }
        wakeUp = eventfd(0, Int32(EFD_CLOEXEC.rawValue | EFD_NONBLOCK.rawValue))
        guard wakeUp >= 0 else { throw SystemError(operation: .eventLoop, errno: errno) }
        var event = epoll_event(events: EPOLLIN.rawValue, data: epoll_data_t(fd: wakeUp))
        guard unsafe epoll_ctl(poll, EPOLL_CTL_ADD, wakeUp, &event) == 0 else {
            throw SystemError(operation: .eventLoop, errno: errno)
        }
    }

    /// Nanoseconds of CLOCK_MONOTONIC.
    static var now: UInt64 {
        var time = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// Seconds of CLOCK_REALTIME since 1970.
    static var wallClock: Double {
        var time = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    // MARK: - Executor

    func enqueue(_ job: consuming ExecutorJob) {
        let unowned = UnownedJob(job)
        jobs.withLock { $0.append(unowned) }
        wake()
    }

    func checkIsolated() {
        precondition(isOnLoop, "called outside the event loop's thread")
    }

    func isIsolatingCurrentContext() -> Bool? { isOnLoop }

    private var isOnLoop: Bool {
        thread.withLock { $0.map { unsafe pthread_equal($0, pthread_self()) != 0 } ?? false }
    }

    private func wake() {
        _ = unsafe eventfd_write(wakeUp, 1)
    }

    // MARK: - On the loop's thread

    /// Calls `body` whenever `fileDescriptor` can be read, until `forget`.
    func watch(_ fileDescriptor: Int32, writable: Bool = false, _ body: @escaping () -> Void) {
        handlers[fileDescriptor] = body
        let interest = writable ? EPOLLOUT.rawValue : EPOLLIN.rawValue
        var event = epoll_event(events: interest, data: epoll_data_t(fd: fileDescriptor))
        _ = unsafe epoll_ctl(poll, EPOLL_CTL_ADD, fileDescriptor, &event)
    }

    func forget(_ fileDescriptor: Int32) {
        handlers[fileDescriptor] = nil
        _ = unsafe epoll_ctl(poll, EPOLL_CTL_DEL, fileDescriptor, nil)
    }

    /// Calls `body` once at `deadline` (nanoseconds of CLOCK_MONOTONIC). Returns a number for `cancel`.
    @discardableResult
    func schedule(at deadline: UInt64, _ body: @escaping () -> Void) -> UInt64 {
        let id = nextTimer
        nextTimer += 1
        let place = timers.firstIndex { $0.deadline > deadline } ?? timers.endIndex
        timers.insert(Timer(id: id, deadline: deadline, body: body), at: place)
        return id
    }

    func cancel(_ timer: UInt64) {
        timers.removeAll { $0.id == timer }
    }

    /// Runs on the calling thread until `stop`.
    func run() {
        thread.withLock { $0 = pthread_self() }
        var events = [epoll_event](repeating: epoll_event(), count: 32)
        while !stopping.load(ordering: .acquiring) {
            let timeout = millisecondsToNextTimer()
            let count = unsafe events.withUnsafeMutableBufferPointer { buffer in
                unsafe epoll_wait(poll, buffer.baseAddress, Int32(buffer.count), timeout)
            }
            if count > 0 {
                for event in events.prefix(Int(count)) {
                    let ready = unsafe event.data.fd
                    if ready == wakeUp {
                        var value: eventfd_t = 0
                        _ = unsafe eventfd_read(wakeUp, &value)
                    } else {
                        handlers[ready]?()
                    }
                }
            }
            runJobs()
            fireTimers()
        }
        runJobs()
    }

    /// Ends `run`; from any thread.
    func stop() {
        stopping.store(true, ordering: .releasing)
        wake()
    }

    private func runJobs() {
        while true {
            let batch = jobs.withLock { (waiting) -> [UnownedJob] in
                let batch = waiting
                waiting = []
                return batch
            }
            if batch.isEmpty { return }
            for job in batch { unsafe job.runSynchronously(on: asUnownedSerialExecutor()) }
        }
    }

    private func fireTimers() {
        let now = Self.now
        while let first = timers.first, first.deadline <= now {
            timers.removeFirst()
            first.body()
        }
    }

    private func millisecondsToNextTimer() -> Int32 {
        guard let first = timers.first else { return -1 }
        let now = Self.now
        if first.deadline <= now { return 0 }
        return Int32(min((first.deadline - now + 999_999) / 1_000_000, 60_000))
    }
}
