// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import NFQueueBridge
import Testing
import Wire

struct QueueObservationTests {
    @Test func `what is pushed comes out in order and once`() throws {
        let ring = try ObservationRing<Int>(capacity: 8)
        var drained: [Int] = []
        for round in 0..<10 {
            for value in 0..<5 { ring.push(round * 5 + value) }
            ring.signal()
            ring.drain { drained.append($0) }
        }
        #expect(drained == Array(0..<50))
        #expect(ring.overflows == 0)
    }

    @Test func `what is pushed is not there before the signal, and what follows it waits for the next one`() throws {
        let ring = try ObservationRing<Int>(capacity: 8)
        var drained: [Int] = []
        ring.push(1)
        ring.drain { drained.append($0) }
        #expect(drained.isEmpty)
        ring.signal()
        ring.push(2)
        ring.drain { drained.append($0) }
        #expect(drained == [1])
        ring.signal()
        ring.drain { drained.append($0) }
        #expect(drained == [1, 2])
    }

    @Test func `a full ring loses the newest and counts them`() throws {
        let ring = try ObservationRing<Int>(capacity: 8)
        for value in 0..<11 { #expect(ring.push(value) == (value < 8)) }
        ring.signal()
        var drained: [Int] = []
        ring.drain { drained.append($0) }
        #expect(drained == Array(0..<8))
        #expect(ring.overflows == 3)
    }

    @Test func `the descriptor is readable from signal to drain`() throws {
        let ring = try ObservationRing<Int>(capacity: 8)
        ring.signal()
        #expect(!isReadable(ring.eventFileDescriptor))
        ring.push(1)
        #expect(!isReadable(ring.eventFileDescriptor))
        ring.signal()
        #expect(isReadable(ring.eventFileDescriptor))
        ring.drain { _ in }
        #expect(!isReadable(ring.eventFileDescriptor))
    }

    @Test func `what is not urgent wakes a consumer that rests, and no other`() throws {
        let ring = try ObservationRing<Int>(capacity: 64)
        var drained: [Int] = []
        #expect(ring.isEmpty && !ring.isExpected)
        ring.push(1, isUrgent: false)
        ring.signal()
        #expect(isReadable(ring.eventFileDescriptor) && ring.isExpected && !ring.isEmpty)
        ring.drain { drained.append($0) }
        #expect(ring.isEmpty && ring.isExpected)
        ring.push(2, isUrgent: false)
        ring.signal()
        #expect(!isReadable(ring.eventFileDescriptor) && !ring.isEmpty)
        ring.push(3)
        ring.push(4, isUrgent: false)
        ring.signal()
        #expect(isReadable(ring.eventFileDescriptor))
        ring.drain { drained.append($0) }
        ring.push(5, isUrgent: false)
        ring.signal()
        ring.rest()
        #expect(!isReadable(ring.eventFileDescriptor) && !ring.isExpected)
        ring.drain { drained.append($0) }
        ring.push(6, isUrgent: false)
        ring.signal()
        #expect(isReadable(ring.eventFileDescriptor) && ring.isExpected)
        ring.drain { drained.append($0) }
        #expect(drained == Array(1...6))
    }

    @Test func `a ring that is half full wakes its consumer, whatever is in it`() throws {
        let ring = try ObservationRing<Int>(capacity: 8)
        ring.push(0, isUrgent: false)
        ring.signal()
        ring.drain { _ in }
        for value in 1...4 {
            #expect(!isReadable(ring.eventFileDescriptor))
            ring.push(value, isUrgent: false)
            ring.signal()
        }
        #expect(isReadable(ring.eventFileDescriptor))
    }

    @Test func `a consumer that rests between looks gets every value within its patience`() throws {
        let ring = try ObservationRing<Int>(capacity: 64)
        let count = 200_000
        Thread.detachNewThread {
            for value in 0..<count {
                while !ring.push(value, isUrgent: false) { sched_yield() }
                ring.signal()
                if value % 64 == 0 { sched_yield() }
            }
        }
        var next = 0
        var disorder = 0
        var timeouts = 0
        func look() {
            ring.drain { value in
                if value != next { disorder += 1 }
                next += 1
            }
        }
        while next < count {
            // Rests at once: every wake-up that is missing shows as a timeout.
            ring.rest()
            look()
            if next == count { break }
            var descriptor = pollfd(fd: ring.eventFileDescriptor, events: Int16(POLLIN), revents: 0)
            if poll(&descriptor, 1, 2000) == 0 { timeouts += 1 }
            look()
        }
        #expect(next == count)
        #expect(disorder == 0)
        #expect(timeouts == 0)
    }

    @Test func `two threads pass a million values without loss or disorder`() throws {
        let ring = try ObservationRing<UInt64>(capacity: 1024)
        let count: UInt64 = 1_000_000
        Thread.detachNewThread {
            var lost: UInt64 = 0
            for value in 0..<count {
                repeat {
                    lost = ring.overflows
                    ring.push(value)
                    if ring.overflows != lost { sched_yield() }
                } while ring.overflows != lost
                if value % 32 == 31 { ring.signal() }
            }
            ring.signal()
        }
        var next: UInt64 = 0
        var disorder = 0
        while next < count {
            var descriptor = pollfd(fd: ring.eventFileDescriptor, events: Int16(POLLIN), revents: 0)
            // With a full ring the producer does not come to its signal, so this waits for a moment only.
            poll(&descriptor, 1, 1)
            ring.drain { value in
                if value != next { disorder += 1 }
                next += 1
            }
        }
        #expect(disorder == 0)
        #expect(next == count)
    }

    @Test func `observed segments pass through a ring`() throws {
        let ring = try ObservationRing<ObservedSegment>(capacity: 2)
        #expect(ring.overflows == 0)
    }

    private func isReadable(_ descriptor: Int32) -> Bool {
        var descriptor = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&descriptor, 1, 0) == 1
    }
}
