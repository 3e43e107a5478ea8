// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Glibc
internal import Synchronization

/// A packet queue and the thread that decides about its packets with a handler of its own, sharing nothing.
///
/// Each packet gets exactly one verdict: the handler's, drop when it cannot be read, or, where the handler said `.hold`,
/// what `release` says. When the thread is stopped, it
/// decides about what it has been sent; the kernel drops the rest with the binding.
public final class QueueThread<Handler: VerdictHandler & ~Copyable>: Sendable {
    @usableFromInline let channel: QueueChannel
    @usableFromInline let mailbox: Mailbox<QueueOrder<Handler.Message>>
    @usableFromInline let thread: QueueThreadHandle

    /// Binds packet queue `queue` of the calling thread's network namespace and starts its thread, on which `makeHandler`
    /// is called once. Packets that arrive before the handler is made wait in the queue.
    ///
    /// Throws `NetlinkError` when the queue cannot be bound (`.bindQueue` with EBUSY: another process has it) or the
    /// thread cannot be started.
    @inlinable
    public init(
        queue: UInt16, options: QueueOptions = QueueOptions(), makeHandler: @escaping @Sendable () -> Handler
    ) throws(NetlinkError) {
        let channel = try QueueChannel(queue: queue, options: options)
        let mailbox = try Mailbox<QueueOrder<Handler.Message>>(portNumber: channel.portNumber)
        self.channel = channel
        self.mailbox = mailbox
        thread = try QueueThreadHandle(queue: queue, isPinned: options.isPinned) {
            Self.serve(channel, mailbox, makeHandler)
        }
    }

    deinit { stop() }

    /// The number of the queue.
    public var queue: UInt16 { channel.queue }

    /// What the thread has done so far; from any thread.
    public var counters: QueueCounters { channel.cells.snapshot }

    /// Not nil when the kernel gave smaller buffers than asked for.
    public var shortfall: QueueBufferShortfall? { channel.shortfall }

    /// Gives `messages` to the handler, in order, and waits until it has them: every packet that is received later is
    /// decided with them in force. Not to be called on the queue's own thread. Throws `MailboxError` after 2 s.
    public func post(_ messages: [Handler.Message]) throws(MailboxError) {
        try mailbox.post(messages.map { .message($0) })
    }

    /// Gives `messages` to the handler, in order, without waiting for that.
    public func postWithoutWaiting(_ messages: [Handler.Message]) throws(MailboxError) {
        try mailbox.postWithoutWaiting(messages.map { .message($0) })
    }

    /// Gives `messages` to the handler as `post` does, and in any case: a thread that is late takes them when it comes to
    /// them, before whatever is posted later. Only a thread that has been stopped does not.
    public func postInAnyCase(_ messages: [Handler.Message]) {
        do {
            try post(messages)
        } catch {
            // What was withdrawn is posted again.
            try? postWithoutWaiting(messages)
        }
    }

    /// Gives packets that are held their verdict, without waiting for that; after whatever was posted before. A number
    /// that is not held is ignored. Throws `MailboxError.stopped` when the kernel has dropped them with the queue.
    public func release(_ packets: [(number: UInt32, decision: Verdict.Decision)]) throws(MailboxError) {
        try mailbox.postWithoutWaiting(packets.map { .release($0.number, $0.decision) })
    }

    /// Ends the thread, destroys its handler and gives the queue back; returns when that is done. Any number of times.
    public func stop() {
        mailbox.stop()
        thread.join()
    }

    /// What the queue's thread does.
    @inlinable
    static func serve(
        _ channel: QueueChannel, _ mailbox: Mailbox<QueueOrder<Handler.Message>>, _ makeHandler: () -> Handler
    ) {
        var handler = makeHandler()
        while !mailbox.isStopping {
            if let post = mailbox.takeAll() { take(post, channel, &handler) }
            let count = channel.receive()
            if count > 0 { decide(channel, count, &handler) }
        }
        // Packets that the kernel has already sent get their verdict still; a flood must not keep the thread, though.
        var remaining = channel.mostWaiting
        while remaining > 0 {
            let count = channel.receiveWaiting()
            if count == 0 { break }
            decide(channel, count, &handler)
            remaining -= count
        }
        channel.close()
        mailbox.close()
    }

    @inlinable
    static func decide(_ channel: QueueChannel, _ count: Int, _ handler: inout Handler) {
        let packets = unsafe channel.packets
        for index in 0..<count {
            let length = unsafe packets[index].length
            if length == 0 { continue }
            var octets = unsafe MutableSpan(_unsafeStart: packets[index].payload, count: length)
            let verdict = unsafe handler.verdict(for: &octets, packets[index].metadata)
            unsafe packets[index].verdict = verdict
        }
        channel.sendVerdicts()
        handler.endOfBatch(at: channel.time)
    }

    @inlinable
    static func take(
        _ first: MailboxPost<QueueOrder<Handler.Message>>, _ channel: QueueChannel, _ handler: inout Handler
    ) {
        var waiting: MailboxPost<QueueOrder<Handler.Message>>? = first
        while let post = waiting {
            if post.begin() {
                for order in post.messages {
                    switch order {
                    case .message(let message): handler.receive(message)
                    case .release(let number, let decision): channel.release(number, decision)
                    }
                }
                post.end()
            }
            waiting = post.takeNext()
        }
    }
}

/// What a queue's thread is told.
@usableFromInline
enum QueueOrder<Message: Sendable>: Sendable {
    /// For the handler.
    case message(Message)
    /// The verdict of a packet that is held.
    case release(UInt32, Verdict.Decision)
}

/// A POSIX thread that can be waited for.
@usableFromInline
final class QueueThreadHandle: Sendable {
    private final class Start: Sendable {
        let queue: UInt16
        let isPinned: Bool
        let body: @Sendable () -> Void

        init(queue: UInt16, isPinned: Bool, body: @escaping @Sendable () -> Void) {
            self.queue = queue
            self.isPinned = isPinned
            self.body = body
        }
    }

    private let thread: Mutex<pthread_t?>

    /// Starts a thread named after the queue, which takes no signals: they are the main program's.
    @usableFromInline
    init(queue: UInt16, isPinned: Bool, body: @escaping @Sendable () -> Void) throws(NetlinkError) {
        let start = unsafe Unmanaged.passRetained(Start(queue: queue, isPinned: isPinned, body: body))
        var identifier = pthread_t()
        let number = unsafe pthread_create(
            &identifier, nil,
            { context in
                guard let context = unsafe context else { return nil }
                let start = unsafe Unmanaged<Start>.fromOpaque(context).takeRetainedValue()
                QueueThreadHandle.prepare(queue: start.queue, isPinned: start.isPinned)
                start.body()
                return nil
            }, start.toOpaque())
        guard number == 0 else {
            unsafe start.release()
            throw NetlinkError(operation: .startThread(queue), errno: number)
        }
        thread = Mutex(identifier)
    }

    private static func prepare(queue: UInt16, isPinned: Bool) {
        var signals = sigset_t()
        unsafe sigfillset(&signals)
        _ = unsafe pthread_sigmask(SIG_SETMASK, &signals, nil)
        _ = unsafe nfqmig_name_thread("nfq-\(queue)")
        let processors = sysconf(Int32(_SC_NPROCESSORS_ONLN))
        // A CPU that the process may not use costs speed, not correctness.
        if isPinned && processors > 0 { _ = nfqmig_pin_thread(UInt32(queue) % UInt32(processors)) }
    }

    /// Waits for the thread's end; for a thread that calls it on itself, lets it end unwatched.
    @usableFromInline
    func join() {
        thread.withLock { thread in
            guard let identifier = thread else { return }
            thread = nil
            if pthread_equal(identifier, pthread_self()) != 0 {
                pthread_detach(identifier)
            } else {
                _ = pthread_join(identifier, nil)
            }
        }
    }
}
