// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Glibc
internal import Logging
internal import Synchronization

/// Who asked for what, and what was answered: one line of JSON for each request that would change something.
final class AuditLog: Sendable {
    private let path: String
    private let logger: Logger
    private let descriptor: Mutex<Int32>
    /// The longest request that is written down, in octets.
    private static let longest = 4096

    /// Opens `audit.log` in `directory` for appending; makes it when it is not there.
    init(directory: String, logger: Logger) {
        path = directory + "/audit.log"
        self.logger = logger
        descriptor = Mutex(-1)
        reopen()
    }

    deinit {
        descriptor.withLock { if $0 >= 0 { _ = close($0) } }
    }

    /// Goes on in the file that has the name now: after another program has moved the old one away.
    func reopen() {
        let fresh = unsafe open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o640)
        if fresh < 0 {
            let reason = unsafe String(cString: strerror(errno))
            logger.error("The audit log \(path) cannot be opened (\(reason)): requests are in this log only.")
        }
        descriptor.withLock { descriptor in
            if descriptor >= 0 { _ = close(descriptor) }
            descriptor = fresh
        }
    }

    /// Writes down a request and its answer. `status` is HTTP's, `answer` what was made, or why it was refused.
    func write(_ request: ControlRequest, method: String, path: String, status: Int, answer: String) {
        var line: [String: Any] = [
            "at": (EventLoop.wallClock * 1000).rounded() / 1000, "user": request.caller.user,
            "group": request.caller.group, "process": request.caller.process, "method": method, "path": path,
            "status": status, "answer": answer,
        ]
        if !request.body.isEmpty {
            let whole = request.body.count <= Self.longest
            line["request"] =
                (whole ? try? JSONSerialization.jsonObject(with: request.body) : nil)
                ?? String(decoding: request.body.prefix(Self.longest), as: UTF8.self)
        }
        guard
            var data = try? JSONSerialization.data(
                withJSONObject: line, options: [.sortedKeys, .withoutEscapingSlashes])
        else { return }
        logger.notice(
            "audit", metadata: ["record": "\(String(decoding: data, as: UTF8.self))"])
        data.append(0x0a)
        // One call, so that lines of two processes do not mix.
        let written = descriptor.withLock { descriptor in
            unsafe data.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
        }
        if written != data.count { logger.error("A line could not be written to the audit log \(self.path).") }
    }
}

extension ControlRoute {
    /// This route, with each of its requests written into the audit log if it may change something.
    func audited(by log: AuditLog) -> ControlRoute {
        guard method != "GET" else { return self }
        return ControlRoute(method, path, query: query, longestBody: longestBody) { request in
            let path = path.split(separator: "/").map { part in
                part.hasPrefix(":") ? request.parameters[String(part.dropFirst())] ?? String(part) : String(part)
            }.joined(separator: "/")
            do {
                let answer = try await handle(request)
                if case .document(let document, let status) = answer {
                    log.write(
                        request, method: method, path: "/" + path, status: status,
                        answer: (document as? MigrationReport).map { "migration \($0.id)" } ?? "done")
                } else {
                    log.write(request, method: method, path: "/" + path, status: 200, answer: "done")
                }
                return answer
            } catch let problem as Problem {
                log.write(request, method: method, path: "/" + path, status: problem.status, answer: problem.detail)
                throw problem
            }
        }
    }
}
