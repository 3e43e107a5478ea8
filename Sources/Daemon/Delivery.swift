// SPDX-License-Identifier: GPL-3.0-or-later

internal import Foundation

#if canImport(FoundationNetworking)
    internal import FoundationNetworking
#endif

/// Brings a JSON document to a web address: what webhooks are made of.
struct Delivery: Hashable, Sendable {
    /// `http` or `https`.
    let address: URL
    /// Seconds until an answer has to be there.
    let timeout: Double

    /// nil when `text` is no web address.
    init?(_ text: String, timeout: Double) {
        guard let url = URL(string: text), url.scheme == "http" || url.scheme == "https", url.host != nil else {
            return nil
        }
        address = url
        self.timeout = timeout
    }

    /// Posts the document. The answer's status and body; throws when there is none in time.
    func post(_ document: Data) async throws -> (status: Int, body: Data) {
        var request = URLRequest(url: address, timeoutInterval: timeout)
        request.httpMethod = "POST"
        request.setValue("application/json", forHTTPHeaderField: "Content-Type")
        request.httpBody = document
        let (body, response) = try await URLSession.shared.data(for: request)
        return ((response as? HTTPURLResponse)?.statusCode ?? 0, body)
    }
}
