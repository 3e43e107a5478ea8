// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc

/// A system call of the daemon's own that failed, apart from the netfilter ones.
public struct SystemError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Operation: String, Hashable, Sendable {
        case eventLoop = "set up the event loop"
        case capabilities = "read the process's capabilities"
        case stateDirectory = "use the state directory"
        case controlSocket = "open the control socket"
    }

    public var operation: Operation
    public var errno: Int32
    /// The file that it was about.
    public var path: String?

    public init(operation: Operation, errno: Int32, path: String? = nil) {
        self.operation = operation
        self.errno = errno
        self.path = path
    }

    public var description: String {
        let reason = unsafe String(cString: strerror(errno))
        return "Cannot \(operation.rawValue)\(path.map { " " + $0 } ?? ""): \(reason)."
    }
}
