// SPDX-License-Identifier: GPL-3.0-or-later

internal import Synchronization

/// Messages that did not reach a queue's thread.
public enum MailboxError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The thread did not come to them in time. They were withdrawn: it will not take them.
    case unanswered(seconds: Int)
    /// The thread had begun with them and did not end in time. Some of them are in force.
    case unfinished(seconds: Int)
    /// The thread has been stopped.
    case stopped
    /// There is no descriptor left to wait with: this errno(3).
    case noDescriptor(errno: Int32)

    public var description: String {
        switch self {
        case .unanswered(let seconds):
            "A queue's thread did not take a change within \(seconds) s, and the change was withdrawn; is the machine overloaded?"
        case .unfinished(let seconds):
            "A queue's thread did not finish a change within \(seconds) s; restart the daemon if this does not pass."
        case .stopped:
            "A queue's thread has been stopped and takes no more changes."
        case .noDescriptor(let errno):
            "A change for a queue's thread cannot be waited for (errno \(errno)); raise the limit of open files."
        }
    }
}

/// Carries messages from any threads to one, without a lock: a stack that posters push to with compare-and-exchange and
/// the owner takes whole. The owner is woken through the socket that it receives from.
@usableFromInline
final class Mailbox<Message: Sendable>: Sendable {
    /// What `top` holds once the owner takes nothing more; no object has this address.
    private static var closed: UInt { 1 }

    /// How long a poster waits.
    private static var seconds: Int { 2 }

    /// The newest post's address, each holding that of the one before; 0 for none.
    private let top = Atomic<UInt>(0)
    private let stopping = Atomic<Bool>(false)
    private let waker: QueueWaker

    /// `portNumber` is that of the netlink socket from which the owner receives.
    @usableFromInline
    init(portNumber: UInt32) throws(NetlinkError) {
        waker = try QueueWaker(portNumber: portNumber)
    }

    deinit { refuseWaiting() }

    /// Whether the owner is to stop.
    @usableFromInline var isStopping: Bool { stopping.load(ordering: .acquiring) }

    // MARK: - For posters

    /// Posts `messages` and waits until the owner has taken all of them, in order, before it received its next packet.
    func post(_ messages: [Message]) throws(MailboxError) {
        let post: MailboxPost<Message>
        do {
            post = try MailboxPost(messages, acknowledged: true)
        } catch {
            throw .noDescriptor(errno: error.errno)
        }
        try push(post)
        if !post.wait(seconds: Self.seconds) {
            if post.withdraw() { throw .unanswered(seconds: Self.seconds) }
            if !post.wait(seconds: Self.seconds) { throw .unfinished(seconds: 2 * Self.seconds) }
        }
        if post.isRefused { throw .stopped }
    }

    /// Posts `messages` and returns at once; they are taken in order, or lost when the owner stops first.
    func postWithoutWaiting(_ messages: [Message]) throws(MailboxError) {
        let post: MailboxPost<Message>
        do {
            post = try MailboxPost(messages, acknowledged: false)
        } catch {
            throw .noDescriptor(errno: error.errno)
        }
        try push(post)
    }

    /// Tells the owner to stop.
    func stop() {
        stopping.store(true, ordering: .releasing)
        waker.wake()
    }

    private func push(_ post: MailboxPost<Message>) throws(MailboxError) {
        let address = unsafe UInt(bitPattern: Unmanaged.passRetained(post).toOpaque())
        var current = top.load(ordering: .relaxed)
        while true {
            if current == Self.closed {
                unsafe Unmanaged.passUnretained(post).release()
                throw .stopped
            }
            post.previous = current
            // Release: who takes the post sees its messages.
            let (exchanged, original) = top.weakCompareExchange(
                expected: current, desired: address, successOrdering: .releasing, failureOrdering: .relaxed)
            if exchanged { break }
            current = original
        }
        waker.wake()
    }

    // MARK: - For the owner

    /// Takes all posts that wait, oldest first, as a chain; nil when there are none. Costs one load then.
    @usableFromInline
    func takeAll() -> MailboxPost<Message>? {
        if top.load(ordering: .relaxed) == 0 { return nil }
        return oldestFirst(top.exchange(0, ordering: .acquiring))
    }

    /// Takes no more posts: those that wait and those that come are refused.
    @usableFromInline
    func close() { refuseWaiting() }

    private func refuseWaiting() {
        var waiting = oldestFirst(top.exchange(Self.closed, ordering: .acquiring))
        while let post = waiting {
            post.refuse()
            waiting = post.takeNext()
        }
    }

    private func oldestFirst(_ newest: UInt) -> MailboxPost<Message>? {
        var oldest: MailboxPost<Message>?
        var address = newest
        while address != Self.closed, let pointer = unsafe UnsafeRawPointer(bitPattern: address) {
            let post = unsafe Unmanaged<MailboxPost<Message>>.fromOpaque(pointer).takeRetainedValue()
            address = post.previous
            post.next = oldest
            oldest = post
        }
        return oldest
    }
}

/// Messages on their way to a queue's thread.
///
/// Unchecked: `previous` is the poster's until it is pushed and the owner's from then on, `next` is the owner's; the
/// stack's release and acquire order the two.
@usableFromInline
final class MailboxPost<Message: Sendable>: @unchecked Sendable {
    private enum State: UInt8, AtomicRepresentable {
        case waiting, begun, taken, refused, withdrawn
    }

    @usableFromInline let messages: [Message]
    fileprivate var previous: UInt = 0
    fileprivate var next: MailboxPost?
    private let state = Atomic<State>(.waiting)
    /// Only with an acknowledgement. Kept by the post, so that it outlives a poster who gave up.
    private let event: QueueEventDescriptor?

    fileprivate init(_ messages: [Message], acknowledged: Bool) throws(NetlinkError) {
        self.messages = messages
        if acknowledged {
            event = try QueueEventDescriptor()
        } else {
            event = nil
        }
    }

    // MARK: - For the poster

    fileprivate var isRefused: Bool { state.load(ordering: .acquiring) == .refused }

    fileprivate func wait(seconds: Int) -> Bool { event?.wait(milliseconds: 1000 * seconds) ?? true }

    /// Takes the post back, unless the owner has begun with it.
    fileprivate func withdraw() -> Bool { change(from: .waiting, to: .withdrawn) }

    // MARK: - For the owner

    /// Whether the messages are to be taken; false when the poster has given up.
    @usableFromInline
    func begin() -> Bool { change(from: .waiting, to: .begun) }

    /// The messages are in force.
    @usableFromInline
    func end() {
        state.store(.taken, ordering: .releasing)
        event?.signal()
    }

    fileprivate func refuse() {
        if change(from: .waiting, to: .refused) { event?.signal() }
    }

    @usableFromInline
    func takeNext() -> MailboxPost? {
        let post = next
        next = nil
        return post
    }

    private func change(from expected: State, to desired: State) -> Bool {
        state.compareExchange(expected: expected, desired: desired, ordering: .acquiringAndReleasing).exchanged
    }
}
