// SPDX-License-Identifier: GPL-3.0-or-later

/// `GET /v1/explain`: what a packet of this client to this home would meet on the gateway now.
public struct Explanation: Codable, Hashable, Sendable {
    /// The client, with its port or for any port, and the home, as they were asked for.
    public var client: String
    public var home: String
    /// The session whose binding or transits apply; nil: none does.
    public var session: SessionSummary?
    /// What becomes of a SYN that opens a new connection, one sentence.
    public var newConnection: String
    /// What becomes of a segment of a connection that exists, one sentence.
    public var existingConnection: String
    /// The elements of our table that such packets, or their answers, match, as the kernel has them now.
    public var elements: [String]
    /// The connections that conntrack has between the two.
    public var conntrack: [Entry]
    /// The fwmark, such as `0x6e600000`, with which packets of a new connection pass our own chains, which take it away again; nil:
    /// none of ours. What the packets had before they lose with it.
    public var mark: String?

    /// One entry of conntrack.
    public struct Entry: Codable, Hashable, Sendable {
        /// What the client sends, before any translation.
        public var original: String
        /// What the host sends, before its translation is undone.
        public var reply: String
        public var state: String
        /// The connection's mark, such as `0x0`.
        public var mark: String
        /// Seconds until the entry ends without a further packet.
        public var timeout: UInt32

        public init(original: String, reply: String, state: String, mark: String, timeout: UInt32) {
            self.original = original
            self.reply = reply
            self.state = state
            self.mark = mark
            self.timeout = timeout
        }
    }

    public init(
        client: String, home: String, session: SessionSummary?, newConnection: String, existingConnection: String,
        elements: [String], conntrack: [Entry], mark: String?
    ) {
        self.client = client
        self.home = home
        self.session = session
        self.newConnection = newConnection
        self.existingConnection = existingConnection
        self.elements = elements
        self.conntrack = conntrack
        self.mark = mark
    }
}
