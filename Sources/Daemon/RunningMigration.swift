// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Logging
internal import Migration
internal import Spoofer
internal import Wire

/// A migration with what belongs to it outside its machine: times, timers, those who wait. Confined to the coordinator.
final class RunningMigration {
    var machine: MigrationMachine
    /// The session as it was asked for: its client's port may have changed since.
    let requested: SessionKey
    let startedAt: UInt64
    let requestedAt: Double
    var switchedAt: Double?
    var finishedAt: Double?
    var timeline: [TimelineEntry] = []
    var timer: UInt64?
    var waiters: [Waiter] = []
    var hostChecks: [HostCheck] = []
    /// Whether more has been done than to look: prepare, ask the to-host, switch.
    var isUnderWay = false
    /// The migration whose lifetime this one ends.
    var ends: UInt64?
    /// Older migrations of the session whose lifetimes are void since the switch, and still in the journal.
    var endedLifetimes: [UInt64] = []
    /// The client's connections, if they have been listed for this migration and it has not looked at them yet; and the
    /// announcements of new ones that had come before that.
    var dump: [ConnectionEntry]?
    var dumpPosition: UInt64?
    /// What the last look at the client's connections has found.
    var look: ConnectionLook?
    /// Conntrack's entries of the old connections, by client side.
    var entries: [FourTuple: ConnectionEntry] = [:]
    /// Entries of connections that are over: they keep their translation for a client that comes back from the same port.
    var closed: [ConnectionEntry] = []
    /// Challenges and RSTs sent, by the handshake's tuple.
    var sent: [FourTuple: (challenges: Int, resets: Int)] = [:]
    /// Whether an earlier process had begun it.
    var isResumed = false
    /// The drain that this is part of.
    var drain: UInt64?
    /// The session before the switch.
    var before: Session?

    /// The service that the session belonged to at the request.
    let service: String?
    private let eventLog: EventLog

    init(_ machine: MigrationMachine, service: String?, eventLog: EventLog) {
        self.machine = machine
        self.service = service
        requested = machine.request.session
        self.eventLog = eventLog
        startedAt = EventLoop.now
        requestedAt = EventLoop.wallClock
    }

    /// Writes a step with its time into the timeline, and into the log of events.
    func note(_ step: String, _ detail: String? = nil) {
        let milliseconds = Double(EventLoop.now - startedAt) / 1e6
        timeline.append(TimelineEntry(at: (milliseconds * 1000).rounded() / 1000, step: step, detail: detail))
        eventLog.publish(
            step == "finished" ? .migrationFinished : .migrationStep, step, detail, migration: machine.id,
            drain: drain, service: service)
    }

    /// A drain says by itself how far it is; what becomes of each of its sessions is in the log of events.
    var logLevel: Logger.Level {
        if case .failed? = machine.outcome { return .notice }
        return drain == nil ? .notice : .debug
    }

    var metadata: Logger.Metadata {
        [
            "migration": "\(machine.id)", "client": "\(machine.request.session.clientText)",
            "home": "\(machine.request.session.home)",
            "to": "\(machine.request.destinationText)",
        ]
    }

    func resumeWaiters(_ loop: EventLoop) {
        for waiter in waiters {
            if let timer = waiter.timer { loop.cancel(timer) }
            waiter.resume()
        }
        waiters = []
    }
}

/// A reset handshake on its way.
final class RunningHandshake {
    var handshake: ResetHandshake
    let migration: UInt64
    let connection: LocatedConnection
    let isTowardsClient: Bool
    var timer: UInt64?

    init(_ handshake: ResetHandshake, migration: UInt64, connection: LocatedConnection, isTowardsClient: Bool) {
        self.handshake = handshake
        self.migration = migration
        self.connection = connection
        self.isTowardsClient = isTowardsClient
    }
}

/// In passive mode: how a stopped segment of one side is shown to the other.
struct PassiveRelay {
    /// The four-tuple that the segment is given.
    var tuple: FourTuple
    var migration: UInt64
    var connection: LocatedConnection
    /// Whether these are the client's segments (the other side's RSTs otherwise).
    var isFromClient: Bool
    /// When a segment was last shown, in nanoseconds.
    var lastShown: UInt64 = 0
}
