// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import NIOCore
internal import NIOHTTP1

/// One connection of the control interface: collects requests, within limits, and has them answered one after the other.
/// Confined to the channel's event loop.
final class ControlConnection: ChannelDuplexHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundIn = HTTPServerResponsePart
    typealias OutboundOut = HTTPServerResponsePart

    /// A request has to be there so many seconds after the connection's begin, or after the answer before.
    static let patience: Int64 = 30
    /// Seconds that a refused sender has to read the refusal.
    static let lingering: Int64 = 1

    private enum State {
        case receiving
        case answering
        /// The last answer is on its way; what still comes is thrown away.
        case closing
    }

    private let responder: ControlResponder
    private let caller: Caller
    private let connections: OpenConnections
    private let meter: RequestMeter
    private let isOneTooMany: Bool
    /// The longest body that the present request may have, in octets.
    private var longestBody = ControlRoute.shortBody
    /// Octets of room that the present request's body takes up.
    private var room = 0
    private var state = State.receiving
    private var head: HTTPRequestHead?
    private var body = ByteBuffer()
    private var answering: Task<Void, Never>?
    private var deadline: Scheduled<Void>?
    private var isInputClosed = false

    init(
        responder: ControlResponder, caller: Caller, connections: OpenConnections, meter: RequestMeter,
        isOneTooMany: Bool
    ) {
        self.responder = responder
        self.caller = caller
        self.connections = connections
        self.meter = meter
        self.isOneTooMany = isOneTooMany
    }

    func channelActive(context: ChannelHandlerContext) {
        awaitRequest(context)
        context.fireChannelActive()
    }

    func channelInactive(context: ChannelHandlerContext) {
        // Whoever waited for an outcome or for events has gone.
        answering?.cancel()
        answering = nil
        deadline?.cancel()
        giveBackRoom()
        context.fireChannelInactive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard state != .closing else { return }
        switch unwrapInboundIn(data) {
        case .head(let head):
            self.head = head
            longestBody = responder.longestBody(of: head)
            if isOneTooMany {
                refuse(
                    context,
                    Problem(
                        kind: .tooManyConnections,
                        detail:
                            "nfqmigd serves \(OpenConnections.limit) connections at once, and fewer of one user: close some of yours."
                    ))
            } else if let length = head.headers.first(name: "content-length").flatMap({ Int($0) }),
                length > longestBody
            {
                refuse(context, .bodyTooLarge(longestBody))
            } else if let flaw = head.flaw {
                refuse(context, Problem(kind: .malformedRequest, detail: flaw))
            } else if head.headers[canonicalForm: "expect"].contains("100-continue") {
                let goOn = HTTPResponseHead(version: head.version, status: .continue)
                context.writeAndFlush(wrapOutboundOut(.head(goOn)), promise: nil)
            }
        case .body(var part):
            guard body.readableBytes + part.readableBytes <= longestBody else {
                return refuse(context, .bodyTooLarge(longestBody))
            }
            guard connections.takeRoom(part.readableBytes, for: caller.user) else {
                return refuse(
                    context,
                    Problem(
                        kind: .tooManyConnections,
                        detail:
                            "nfqmigd holds \(OpenConnections.roomForBodies) octets of bodies at once, and fewer of one user: send this one again later."
                    ))
            }
            room += part.readableBytes
            body.writeBuffer(&part)
        case .end:
            guard let head else { return }
            deadline?.cancel()
            state = .answering
            let request = ReceivedRequest(caller: caller, head: head, body: Data(body.readableBytesView))
            self.head = nil
            // Not cleared: a connection that stays open keeps no room.
            body = ByteBuffer()
            let (responder, channel) = (responder, context.channel)
            answering = Task { await responder.answer(request, on: channel) }
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if error is RequestTooLong, state == .receiving { return refuse(context, .bodyTooLarge(longestBody)) }
        switch (error as? HTTPParserError, state) {
        case (.headerOverflow?, .receiving):
            refuse(
                context,
                Problem(
                    kind: .headersTooLarge,
                    detail: "The headers may have \(ControlService.longestHeaders) octets together: send fewer."))
        case (_?, .receiving):
            refuse(context, Problem(kind: .malformedRequest, detail: "This is not an HTTP/1.1 request (\(error))."))
        case (_, .answering) where !(error is IOError) && !(error is ChannelError):
            // What the parser minds comes behind requests that are still to be answered, and is said again then.
            break
        default:
            context.close(promise: nil)
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        switch event {
        case ChannelEvent.inputClosed:
            // Somebody who has sent a whole request may still read its answer.
            isInputClosed = true
            guard state == .receiving else { return }
            // Not at once: this may come in the middle of a write, before the answer ahead of it is flushed.
            let bound = NIOLoopBound(context, eventLoop: context.eventLoop)
            context.eventLoop.execute { bound.value.close(promise: nil) }
        case is ControlService.Ending:
            if state == .receiving { context.close(promise: nil) }
        default:
            context.fireUserInboundEventTriggered(event)
        }
    }

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        guard case .end = unwrapOutboundIn(data), state == .answering else {
            return context.write(data, promise: promise)
        }
        answering = nil
        giveBackRoom()
        guard isInputClosed else {
            state = .receiving
            awaitRequest(context)
            return context.write(data, promise: promise)
        }
        // Nothing more comes: the last answer ends the connection.
        state = .closing
        let written = promise ?? context.eventLoop.makePromise()
        let bound = NIOLoopBound(context, eventLoop: context.eventLoop)
        written.futureResult.whenComplete { _ in bound.value.close(promise: nil) }
        context.write(data, promise: written)
    }

    private func giveBackRoom() {
        connections.giveBackRoom(room, of: caller.user)
        room = 0
    }

    private func awaitRequest(_ context: ChannelHandlerContext) {
        deadline?.cancel()
        meter.begin()
        let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
        deadline = context.eventLoop.scheduleTask(in: .seconds(Self.patience)) {
            let (connection, context) = bound.value
            guard connection.state == .receiving else { return }
            if connection.head == nil { return context.close(promise: nil) }
            connection.refuse(
                context,
                Problem(
                    kind: .requestTimeout,
                    detail: "The request was not complete after \(Self.patience) s: send it without a pause."))
        }
    }

    /// Answers what has not come to its end, and closes.
    private func refuse(_ context: ChannelHandlerContext, _ problem: Problem) {
        state = .closing
        deadline?.cancel()
        head = nil
        body = ByteBuffer()
        giveBackRoom()
        let reply = Reply(problem)
        context.write(wrapOutboundOut(.head(reply.head(version: .http1_1, closes: true))), promise: nil)
        context.write(wrapOutboundOut(.body(.byteBuffer(ByteBuffer(bytes: reply.body)))), promise: nil)
        context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        if isInputClosed { return context.close(promise: nil) }
        // The sender is still sending: closed at once, it would see its own failure before it reads the answer.
        context.close(mode: .output, promise: nil)
        let bound = NIOLoopBound(context, eventLoop: context.eventLoop)
        context.eventLoop.scheduleTask(in: .seconds(Self.lingering)) { bound.value.close(promise: nil) }
    }
}

/// A whole request.
struct ReceivedRequest: Sendable {
    var caller: Caller
    var head: HTTPRequestHead
    var body: Data
}

extension HTTPRequestHead {
    /// What about it leaves open what is asked of whom, or where it ends, although the parser takes it; a sentence.
    fileprivate var flaw: String? {
        if version == .http1_1, headers["host"].count != 1 { return "An HTTP/1.1 request has one Host: send one." }
        let codings = headers[canonicalForm: "transfer-encoding"]
        if !codings.isEmpty, codings.map({ $0.lowercased() }) != ["chunked"] {
            return "The only transfer coding here is chunked: send the body so, or with Content-Length."
        }
        for name in ["content-type", "idempotency-key", "last-event-id"] where headers[name].count > 1 {
            return "The request has more than one \(name): send one."
        }
        return nil
    }
}

extension Problem {
    fileprivate static func bodyTooLarge(_ longest: Int) -> Problem {
        Problem(
            kind: .contentTooLarge, detail: "The body may have \(longest) octets here: ask for less at once.")
    }
}
