// SPDX-License-Identifier: GPL-3.0-or-later

internal import Foundation
internal import Synchronization

#if canImport(FoundationNetworking)
    internal import FoundationNetworking
#endif

/// Brings a JSON document to a web address: what hooks and webhooks are made of.
struct Delivery: Hashable, Sendable {
    /// How many octets of an answer are kept; what comes on top is not waited for.
    static let longestAnswer = 65_536

    /// `http` or `https`.
    let address: URL
    /// Seconds until the whole answer has to be there.
    let timeout: Double

    /// nil when `text` is no web address.
    init?(_ text: String, timeout: Double) {
        guard let url = URL(string: text), url.scheme == "http" || url.scheme == "https",
            let host = url.host, !host.isEmpty
        else { return nil }
        address = url
        self.timeout = timeout
    }

    /// Posts the document. The answer's status and body; throws when there is none in time. A redirection is an answer
    /// like any other: nobody but the operator says where documents go.
    func post(_ document: Data) async throws -> (status: Int, body: Data) {
        var request = URLRequest(url: address, timeoutInterval: timeout)
        request.httpMethod = "POST"
        request.setValue("application/json", forHTTPHeaderField: "Content-Type")
        request.httpBody = document
        let posting = Postings.shared.begin(request)
        let limit = Task {
            try await Task.sleep(for: .seconds(timeout))
            Postings.shared.end(posting, .failure(URLError(.timedOut)))
        }
        defer { limit.cancel() }
        return try await withTaskCancellationHandler {
            try await posting.wait()
        } onCancel: {
            Postings.shared.end(posting, .failure(CancellationError()))
        }
    }

    /// What was wrong with a post that threw, as a clause without an end.
    func clause(about error: any Error) -> String {
        if (error as? URLError)?.code == .timedOut { return "it did not answer within \(timeout.plainText) s" }
        return "it cannot be reached: \(error.localizedDescription)".droppingPeriod
    }
}

/// One request on its way.
private final class Posting: Sendable {
    typealias Answer = (status: Int, body: Data)

    private struct State {
        var body = Data()
        var result: Result<Answer, any Error>?
        var continuation: CheckedContinuation<Answer, any Error>?
    }

    let task: URLSessionDataTask
    private let state = Mutex(State())

    init(_ task: URLSessionDataTask) { self.task = task }

    func wait() async throws -> Answer {
        try await withCheckedThrowingContinuation { continuation in
            let result = state.withLock { state in
                if state.result == nil { state.continuation = continuation }
                return state.result
            }
            if let result { continuation.resume(with: result) }
        }
    }

    /// Keeps a part of the answer; false when there is no room for more.
    func add(_ part: Data) -> Bool {
        state.withLock { state in
            state.body.append(part.prefix(Delivery.longestAnswer - state.body.count))
            return state.body.count < Delivery.longestAnswer
        }
    }

    /// What has come so far.
    var answer: Answer {
        ((task.response as? HTTPURLResponse)?.statusCode ?? 0, state.withLock { $0.body })
    }

    /// Only the first result counts.
    func finish(_ result: Result<Answer, any Error>) {
        let continuation = state.withLock { state in
            if state.result == nil { state.result = result }
            let continuation = state.continuation
            state.continuation = nil
            return continuation
        }
        continuation?.resume(with: result)
    }
}

/// All requests on their way, in one session, so that connections are used again.
private final class Postings: NSObject, URLSessionDataDelegate, Sendable {
    static let shared = Postings()
    private static let session = URLSession(configuration: .ephemeral, delegate: shared, delegateQueue: nil)

    private let open = Mutex<[Int: Posting]>([:])

    func begin(_ request: URLRequest) -> Posting {
        let posting = Posting(Self.session.dataTask(with: request))
        open.withLock { $0[posting.task.taskIdentifier] = posting }
        posting.task.resume()
        return posting
    }

    func end(_ posting: Posting, _ result: Result<Posting.Answer, any Error>) {
        _ = open.withLock { $0.removeValue(forKey: posting.task.taskIdentifier) }
        posting.finish(result)
        posting.task.cancel()
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        guard let posting = open.withLock({ $0[dataTask.taskIdentifier] }), !posting.add(data) else { return }
        end(posting, .success(posting.answer))
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        guard let posting = open.withLock({ $0.removeValue(forKey: task.taskIdentifier) }) else { return }
        posting.finish(error.map { .failure($0) } ?? .success(posting.answer))
    }

    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest, completionHandler: @escaping @Sendable (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }
}
