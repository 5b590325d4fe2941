// The certificate authority of a data directory: its keys, the server's certificate, and what it issues to machines.
// Files: authority/{ca.key,ca.pem,server.key,server.pem}, mode 0600. Immutable once loaded; thread-safe.
// Issuing costs about a millisecond of CPU: not on a shard's thread.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "net/certificates.h"
#include "net/tls_context.h"

namespace tidemark::server {

struct Superblock;

class Authority {
 public:
  // Makes CA and server certificate in an existing, empty directory.
  static Status create(const std::string& directory, const Superblock& superblock, const Clock& clock);
  static Result<Authority> load(const std::string& directory);
  // Issues the server's certificate anew, for the superblock's addresses.
  static Status renew_server(const std::string& directory, const Superblock& superblock, const Clock& clock);

  net::Credentials server_credentials() const;
  const std::string& ca_pem() const { return ca_.certificate_pem; }
  const std::array<std::byte, 32>& ca_sha256() const { return ca_info_.sha256; }
  const net::CertificateInfo& server_info() const { return server_info_; }

  // For a client of exports.
  Result<net::KeyAndCertificate> issue_client(const std::string& name, WallMicros now_us) const {
    return net::issue_client(ca_, name, now_us);
  }
  struct Issued {
    std::string certificate_pem;
    net::CertificateInfo info;
  };
  Result<Issued> issue_machine(const std::string& csr_pem, const MachineId& machine, WallMicros now_us) const;

 private:
  net::KeyAndCertificate ca_;
  net::KeyAndCertificate server_;
  net::CertificateInfo ca_info_;
  net::CertificateInfo server_info_;
};

// Every name the server's certificate carries: hosts of the addresses, the host's name, localhost, 127.0.0.1, ::1.
std::vector<std::string> certificate_names(const std::vector<std::string>& addresses);

}  // namespace tidemark::server
