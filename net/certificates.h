// Certificates: the authority of a data directory, and the agent's keys. P-256 throughout. Files and formats are PEM.
// Pure functions over PEM text; storing them is the caller's. Thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::net {

struct KeyAndCertificate {
  std::string key_pem;
  std::string certificate_pem;
};

struct CertificateInfo {
  MachineId machine;   // nil when it is not a machine's
  std::string client;  // empty when it is not one of a client of exports
  std::string serial;  // hex
  std::int64_t not_before_us = 0;
  std::int64_t not_after_us = 0;
  std::array<std::byte, 32> sha256{};  // of the DER
};

// A DNS name that every server's certificate has and no other: what agents check for, whatever address they use.
inline constexpr char kServerName[] = "tidemark-server";

inline constexpr auto kCaLifetime = std::chrono::hours(24 * 3650);
inline constexpr auto kServerLifetime = std::chrono::hours(24 * 825);
inline constexpr auto kMachineLifetime = std::chrono::hours(24 * 90);
inline constexpr auto kClientLifetime = std::chrono::hours(24 * 825);
inline constexpr auto kRenewBefore = std::chrono::hours(24 * 30);

Result<KeyAndCertificate> make_authority(const std::string& name, WallMicros now_us);
// `names`: DNS names and IP addresses the server is reached by; "tidemark-server" is always added.
Result<KeyAndCertificate> issue_server(const KeyAndCertificate& authority, const std::vector<std::string>& names,
                                       WallMicros now_us, std::chrono::seconds lifetime = kServerLifetime);
// The CSR's signature is checked, its key must be P-256; its subject is ignored: the certificate states `machine`.
// Returns PEM. Certificates begin 5 minutes before `now_us` (clocks differ) and never outlive their authority.
Result<std::string> issue_machine(const KeyAndCertificate& authority, const std::string& csr_pem,
                                  const MachineId& machine, WallMicros now_us,
                                  std::chrono::seconds lifetime = kMachineLifetime);
// For a client of exports (NBD over TCP), which is no machine and can do nothing else.
Result<KeyAndCertificate> issue_client(const KeyAndCertificate& authority, const std::string& name, WallMicros now_us,
                                       std::chrono::seconds lifetime = kClientLifetime);
struct KeyAndRequest {
  std::string key_pem;
  std::string csr_pem;
};
Result<KeyAndRequest> make_request(const std::string& common_name);
Result<std::string> make_request_for_key(const std::string& key_pem, const std::string& common_name);  // renewal
Result<CertificateInfo> describe_certificate(const std::string& certificate_pem);

}  // namespace tidemark::net
