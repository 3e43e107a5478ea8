// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Foundation
internal import Glibc

/// A hook's program while it runs: its own process group, a time limit, its output in bounds. Confined to the event loop's
/// thread, which it never blocks.
final class HookProgram {
    /// What is kept of standard output and of standard error; more is read and thrown away.
    static let outputLimit = 65_536

    private let loop: EventLoop
    private var process: pid_t = 0
    private var processDescriptor: Int32 = -1
    private var pipes: [Int32: Data] = [:]
    private var output: Int32 = -1
    private var error: Int32 = -1
    private var timer: UInt64?
    private var completion: ((HookResult) -> Void)?

    /// Starts `words` (the program's absolute path and its arguments) with this environment and `input` as its standard
    /// input. `completion` is called once, on the loop's thread, never before this returns.
    init(
        _ words: [String], environment: [String: String], input: Data, timeout: Double, loop: EventLoop,
        completion: @escaping (HookResult) -> Void
    ) {
        self.loop = loop
        self.completion = completion
        let failure = start(words, environment: environment, input: input)
        if failure != 0 {
            closeAll()
            let reason = "it cannot be started: \(unsafe String(cString: strerror(failure)))"
            timer = loop.schedule(at: EventLoop.now) { self.finish(.failed(reason: reason)) }
            return
        }
        for end in [output, error] { loop.watch(end) { self.read(end) } }
        loop.watch(processDescriptor) { self.ended() }
        timer = loop.schedule(at: EventLoop.now + UInt64(timeout * 1e9)) { self.overrun(timeout) }
    }

    /// Ends the program and whatever it has started in its group, and says nothing more.
    func cancel() {
        completion = nil
        kill()
        abandon()
    }

    /// Sets everything up; 0 or errno.
    private func start(_ words: [String], environment: [String: String], input: Data) -> Int32 {
        var writing: [Int32] = []
        for _ in 0..<2 {
            var ends: [Int32] = [-1, -1]
            guard unsafe pipe(&ends) == 0 else {
                for end in writing { close(end) }
                return errno
            }
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
            _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
            pipes[ends[0]] = Data()
            if writing.isEmpty { output = ends[0] } else { error = ends[0] }
            writing.append(ends[1])
        }
        defer { for end in writing { close(end) } }
        let result = unsafe Self.withCStrings(words) { arguments in
            unsafe Self.withCStrings(environment.map { "\($0.key)=\($0.value)" }) { variables in
                unsafe input.withUnsafeBytes { octets in
                    unsafe nfqmig_spawn(
                        words[0], arguments, variables, octets.baseAddress, octets.count, writing[0], writing[1],
                        &processDescriptor)
                }
            }
        }
        guard result > 0 else { return -result }
        process = result
        return 0
    }

    private func read(_ end: Int32) {
        guard pipes[end] != nil else { return }
        var buffer = [UInt8](repeating: 0, count: 16_384)
        // A few turns only: a program that prints without end must not keep the loop.
        for _ in 0..<8 {
            let count = unsafe Glibc.read(end, &buffer, buffer.count)
            if count > 0 {
                let room = Self.outputLimit - (pipes[end]?.count ?? 0)
                pipes[end]?.append(contentsOf: buffer.prefix(min(count, room)))
                continue
            }
            if count == 0 || (errno != EAGAIN && errno != EINTR) { loop.forget(end) }
            return
        }
    }

    /// The program is no more. What it has left running may still hold its output open: nobody waits for that.
    private func ended() {
        var status: Int32 = 0
        guard unsafe waitpid(process, &status, WNOHANG) == process else { return }
        process = 0
        read(output)
        read(error)
        let printed = pipes[output] ?? Data()
        let complaint = firstLine(pipes[error] ?? Data())
        let signal = status & 0x7f
        let code = (status >> 8) & 0xff
        closeAll()
        if signal != 0 {
            finish(.failed(reason: "it was ended by signal \(signal)\(complaint)"))
        } else if code != 0 {
            finish(.failed(reason: "it ended with \(code)\(complaint)"))
        } else {
            finish(.succeeded(printed))
        }
    }

    private func overrun(_ timeout: Double) {
        timer = nil
        let complaint = firstLine(pipes[error] ?? Data())
        kill()
        finish(.failed(reason: "it did not end within \(timeout.plainText) s\(complaint)"))
        abandon()
    }

    private func kill() {
        if process > 0 { _ = Glibc.kill(-process, SIGKILL) }
    }

    /// Waits, without anybody else waiting, for the end of a program that has been killed.
    private func abandon() {
        if let timer { loop.cancel(timer) }
        timer = nil
        for end in pipes.keys {
            loop.forget(end)
            close(end)
        }
        pipes = [:]
        guard process > 0 else { return closeAll() }
        loop.watch(processDescriptor) {
            var status: Int32 = 0
            guard unsafe waitpid(self.process, &status, WNOHANG) == self.process else { return }
            self.process = 0
            self.closeAll()
        }
    }

    private func finish(_ result: HookResult) {
        if let timer { loop.cancel(timer) }
        timer = nil
        let completion = completion
        self.completion = nil
        completion?(result)
    }

    private func closeAll() {
        for end in pipes.keys {
            loop.forget(end)
            close(end)
        }
        pipes = [:]
        if processDescriptor >= 0 {
            loop.forget(processDescriptor)
            close(processDescriptor)
        }
        processDescriptor = -1
    }

    /// The first line that says something, as the end of a clause.
    private func firstLine(_ data: Data) -> String {
        let line = String(decoding: data, as: UTF8.self).split(whereSeparator: \.isNewline)
            .map { $0.trimmingCharacters(in: .whitespaces) }.first { !$0.isEmpty }
        guard let line else { return "" }
        let printable = String(line.unicodeScalars.filter { $0.properties.generalCategory != .control }.prefix(200))
        return ": \(printable)".trimmingCharacters(in: CharacterSet(charactersIn: ". "))
    }

    /// Calls `body` with the words as C strings behind one another, a null pointer at the end.
    private static func withCStrings<Result>(
        _ words: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> Result
    ) -> Result {
        var pointers = unsafe words.map { unsafe strdup($0) }
        unsafe pointers.append(nil)
        defer { unsafe pointers.forEach { unsafe free($0) } }
        return unsafe pointers.withUnsafeBufferPointer { buffer in
            // An array with its null pointer is never empty.
            unsafe body(buffer.baseAddress.unsafelyUnwrapped)
        }
    }
}
