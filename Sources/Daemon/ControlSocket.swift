// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Foundation
internal import Glibc

/// The control interface's listening socket in the file system: who may connect, and that it is ours alone.
struct ControlSocket {
    let path: String
    /// The bound socket, not listening yet.
    let descriptor: Int32
    /// Which file it is, so that another daemon's is not removed at the end.
    private let file: (device: dev_t, inode: ino_t)

    /// Binds `path`; nobody can connect until somebody listens, and by then owner, group and mode are set. A socket that a
    /// dead daemon has left is replaced; one that answers is not.
    init(_ configuration: Configuration) throws {
        path = configuration.socket
        let directory = (path as NSString).deletingLastPathComponent
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
        } catch {
            throw SystemError(operation: .controlSocket, errno: EACCES, path: path)
        }
        var group: gid_t?
        if let name = configuration.socketGroup {
            guard let number = Self.group(named: name) else { throw UnknownGroup(name: name) }
            group = number
        }
        try Self.clear(path)
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        do {
            guard descriptor >= 0, unsafe Self.withAddress(path, { unsafe bind(descriptor, $0, $1) }) == 0,
                unsafe chown(path, .max, group ?? .max) == 0, unsafe chmod(path, configuration.socketMode) == 0
            else { throw SystemError(operation: .controlSocket, errno: errno, path: path) }
            file = try Self.identity(of: path)
        } catch {
            if descriptor >= 0 { close(descriptor) }
            throw error
        }
        self.descriptor = descriptor
    }

    /// Removes the socket's file, if it is still this one's.
    func remove() {
        guard let present = try? Self.identity(of: path), present == file else { return }
        unsafe unlink(path)
    }

    /// Removes a socket that nobody answers on. Throws when somebody does, or when it is something else.
    private static func clear(_ path: String) throws {
        var status = stat()
        guard unsafe lstat(path, &status) == 0 else { return }
        guard status.st_mode & S_IFMT == S_IFSOCK else {
            throw SystemError(operation: .controlSocket, errno: EEXIST, path: path)
        }
        if isAnswered(path) { throw AnotherDaemon(path: path) }
        unsafe unlink(path)
    }

    /// Whether somebody answers on the socket of this path.
    static func isAnswered(_ path: String) -> Bool {
        let probe = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        defer { close(probe) }
        // EAGAIN: it listens, and its backlog is full.
        return unsafe withAddress(path, { unsafe connect(probe, $0, $1) }) == 0 || errno == EAGAIN
    }

    private static func identity(of path: String) throws(SystemError) -> (device: dev_t, inode: ino_t) {
        var status = stat()
        guard unsafe lstat(path, &status) == 0 else {
            throw SystemError(operation: .controlSocket, errno: errno, path: path)
        }
        return (status.st_dev, status.st_ino)
    }

    private static func group(named name: String) -> gid_t? {
        if let number = gid_t(name) { return number }
        guard let entry = unsafe getgrnam(name) else { return nil }
        return unsafe entry.pointee.gr_gid
    }

    /// Calls `body` with the UNIX socket address of `path`, which is at most 107 octets long.
    private static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { room in
            for (index, octet) in path.utf8.prefix(107).enumerated() { unsafe room[index] = octet }
        }
        return unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }
}

/// The table cannot be removed while a daemon runs, which would make it again.
struct DaemonRuns: Error, Hashable, Sendable, CustomStringConvertible {
    let path: String

    var description: String { "A daemon runs and answers on \(path): stop it first, or it makes the table again." }
}

/// Somebody already answers on the control socket.
struct AnotherDaemon: Error, CustomStringConvertible {
    var path: String

    var description: String { "Another nfqmigd answers on \(path): stop it, or name another socket." }
}

/// The setting socket-group names nobody.
struct UnknownGroup: Error, CustomStringConvertible {
    var name: String

    var description: String { "There is no group \"\(name)\": create it, or change socket-group." }
}
