// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc
internal import Synchronization

/// One thread that waits for file descriptors and deadlines (poll), and the executor of the actor that lives on it.
///
/// Handlers and timers run on the loop's thread and so inside that actor, whose state they may use; they are to be set
/// from there only. What they do must not block longer than a netlink round trip.
final class EventLoop: SerialExecutor, @unchecked Sendable {
    /// Jobs that other threads want run here.
    private let jobs = Mutex<[UnownedJob]>([])
    /// A pipe: a byte written to its second end wakes the loop.
    private let wakeUp: (read: Int32, write: Int32)
    private let stopping = Atomic<Bool>(false)
    /// The loop's own thread; written before the first job can run.
    private let thread = Mutex<pthread_t?>(nil)

    // Used on the loop's thread only.
    private var handlers: [Int32: (interest: Int16, body: () -> Void)] = [:]
    private var timers = TimerQueue()
    /// What is to be done in the next turn.
    private var nextTurn: [() -> Void] = []
    /// Called before anything that is due in a turn of the loop is done.
    var turnBegan: (() -> Void)?
    /// Called when everything that was due in a turn of the loop has been done: what it led to is carried out together.
    var turnEnded: (() -> Void)?

    init() throws(SystemError) {
        var ends: [Int32] = [-1, -1]
        guard unsafe pipe(&ends) == 0 else { throw SystemError(operation: .eventLoop, errno: errno) }
        for end in ends {
            _ = fcntl(end, F_SETFL, O_NONBLOCK)
            _ = fcntl(end, F_SETFD, FD_CLOEXEC)
        }
        wakeUp = (ends[0], ends[1])
    }

    deinit {
        close(wakeUp.read)
        close(wakeUp.write)
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
        thread.withLock { $0.map { pthread_equal($0, pthread_self()) != 0 } ?? false }
    }

    private func wake() {
        var byte: UInt8 = 1
        _ = unsafe write(wakeUp.write, &byte, 1)
    }

    // MARK: - On the loop's thread

    /// Calls `body` whenever `fileDescriptor` can be read (or written), until `forget`.
    func watch(_ fileDescriptor: Int32, writable: Bool = false, _ body: @escaping () -> Void) {
        handlers[fileDescriptor] = (Int16(writable ? POLLOUT : POLLIN), body)
    }

    func forget(_ fileDescriptor: Int32) {
        handlers[fileDescriptor] = nil
    }

    /// Calls `body` once at `deadline` (nanoseconds of CLOCK_MONOTONIC). Returns a number for `cancel`.
    @discardableResult
    func schedule(at deadline: UInt64, _ body: @escaping () -> Void) -> UInt64 {
        timers.add(at: deadline, body)
    }

    /// Calls `body` in the next turn of the loop, in the order of these calls, ahead of what is due then.
    func next(_ body: @escaping () -> Void) { nextTurn.append(body) }

    func cancel(_ timer: UInt64) {
        timers.cancel(timer)
    }

    /// Runs on the calling thread until `stop`.
    func run() {
        thread.withLock { $0 = pthread_self() }
        var watched: [pollfd] = []
        while !stopping.load(ordering: .acquiring) {
            watched.removeAll(keepingCapacity: true)
            watched.append(pollfd(fd: wakeUp.read, events: Int16(POLLIN), revents: 0))
            for (descriptor, handler) in handlers {
                watched.append(pollfd(fd: descriptor, events: handler.interest, revents: 0))
            }
            let ready = unsafe poll(&watched, nfds_t(watched.count), millisecondsToNextTimer())
            turnBegan?()
            if ready > 0 {
                if watched[0].revents != 0 { drainWakeUp() }
                for entry in watched.dropFirst() where entry.revents != 0 { handlers[entry.fd]?.body() }
            }
            runJobs()
            fireTimers()
            turnEnded?()
        }
        runJobs()
    }

    private func drainWakeUp() {
        var bytes: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        while unsafe read(wakeUp.read, &bytes, 32) > 0 {}
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
        let turn = nextTurn
        nextTurn = []
        for body in turn { body() }
        let now = Self.now
        while let body = timers.take(at: now) { body() }
    }

    private func millisecondsToNextTimer() -> Int32 {
        if !nextTurn.isEmpty { return 0 }
        guard let deadline = timers.deadline else { return -1 }
        let now = Self.now
        if deadline <= now { return 0 }
        return Int32(min((deadline - now + 999_999) / 1_000_000, 60_000))
    }
}
