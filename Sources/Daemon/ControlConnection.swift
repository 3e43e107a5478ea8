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

    /// The longest body, in octets: room for an order that lists ten thousand sessions.
    static let longestBody = 2 << 20
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
    private let isOneTooMany: Bool
    private var state = State.receiving
    private var head: HTTPRequestHead?
    private var body = ByteBuffer()
    private var answering: Task<Void, Never>?
    private var deadline: Scheduled<Void>?
    private var isInputClosed = false

    init(responder: ControlResponder, caller: Caller, isOneTooMany: Bool) {
        self.responder = responder
        self.caller = caller
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
        context.fireChannelInactive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard state != .closing else { return }
        switch unwrapInboundIn(data) {
        case .head(let head):
            self.head = head
            body.clear()
            if isOneTooMany {
                refuse(
                    context,
                    Problem(
                        kind: .tooManyConnections,
                        detail:
                            "nfqmigd serves \(ControlService.connectionLimit) connections at once: close some of yours."
                    ))
            } else if let length = head.headers.first(name: "content-length").flatMap({ Int($0) }),
                length > Self.longestBody
            {
                refuse(context, .bodyTooLarge)
            }
        case .body(var part):
            guard body.readableBytes + part.readableBytes <= Self.longestBody else {
                return refuse(context, .bodyTooLarge)
            }
            body.writeBuffer(&part)
        case .end:
            guard let head else { return }
            deadline?.cancel()
            state = .answering
            let request = ReceivedRequest(caller: caller, head: head, body: Data(body.readableBytesView))
            self.head = nil
            body.clear()
            let (responder, channel) = (responder, context.channel)
            answering = Task { await responder.answer(request, on: channel) }
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        switch (error as? HTTPParserError, state) {
        case (.headerOverflow?, .receiving):
            refuse(
                context,
                Problem(
                    kind: .headersTooLarge,
                    detail: "The headers may have \(ControlService.longestHeaders) octets together: send fewer."))
        case (_?, .receiving):
            refuse(context, Problem(kind: .malformedRequest, detail: "This is not an HTTP/1.1 request (\(error))."))
        default:
            context.close(promise: nil)
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        switch event {
        case ChannelEvent.inputClosed:
            // Somebody who has sent a whole request may still read its answer.
            isInputClosed = true
            if state != .answering { context.close(promise: nil) }
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

    private func awaitRequest(_ context: ChannelHandlerContext) {
        deadline?.cancel()
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
        body.clear()
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

extension Problem {
    fileprivate static var bodyTooLarge: Problem {
        Problem(
            kind: .contentTooLarge,
            detail: "A body may have \(ControlConnection.longestBody) octets: ask for less at once.")
    }
}
