// Clients of exports: the certificates that were issued to them (`tidemarkd certificate client`), and which of these
// were revoked since. A file for each, authority/clients/SERIAL.json, written whole: issuing, which needs no server
// that runs, and revoking never write the same one at the same time.
//
// Thread-safe. All but is_revoked() reads or writes files: not on a shard's thread.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "net/certificates.h"

namespace tidemark::server {

class ExportClients {
 public:
  struct Certificate {
    std::string serial;  // lower-case hex
    std::string client;  // empty: it was issued before there were records, or its record is damaged
    WallMicros issued_us = 0, expires_us = 0;
    std::optional<WallMicros> revoked_us;
  };

  // A record that cannot be read counts as revoked, with a warning: what it said is not known.
  static Result<std::unique_ptr<ExportClients>> load(const std::string& directory);
  // Durable when it returns well; before the certificate is handed out.
  static Status record(const std::string& directory, const net::CertificateInfo& issued, WallMicros now_us);

  Result<std::vector<Certificate>> list() const;  // by name, then time
  // All certificates of a client, or the one with this serial, which need not be known. Durable when it returns well.
  // Code::not_found: no such client, and no serial; already_exists: all of them are revoked.
  Result<std::vector<Certificate>> revoke(const std::string& client_or_serial, WallMicros now_us);
  bool is_revoked(const std::string& serial) const {
    const std::lock_guard lock(mutex_);
    return revoked_.contains(serial);
  }

 private:
  explicit ExportClients(std::string directory) : directory_(std::move(directory)) {}

  const std::string directory_;
  std::mutex changing_;
  mutable std::mutex mutex_;
  std::set<std::string> revoked_;
};

}  // namespace tidemark::server
