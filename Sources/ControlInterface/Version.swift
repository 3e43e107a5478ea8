// SPDX-License-Identifier: GPL-3.0-or-later

/// The version of both programs, after Semantic Versioning.
public let productVersion = "0.1.0"
