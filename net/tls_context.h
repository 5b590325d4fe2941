// TLS 1.3 contexts: AES-256-GCM, P-256 certificates, ALPN, tickets. Wraps OpenSSL's SSL_CTX so that no other folder
// includes OpenSSL. A context is made once per thread that uses it (shards share ticket keys by passing the same
// TicketKeys); it is not thread-safe to change, and never changes after it was made.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_session_st SSL_SESSION;

namespace tidemark::net {

struct TicketKeys {
  std::array<std::byte, 80> bytes{};
  static TicketKeys make();  // random, for one run of the server
};

struct Credentials {
  std::string certificate_pem;  // own certificate
  std::string key_pem;
  std::string ca_pem;  // whom to trust
};

class TlsContext {
 public:
  // Server: asks for a client certificate and verifies one that is shown, but does not insist: whoever has none can
  // only enrol, and is told so in an Error frame. ALPN: wire::kAlpnMachine or wire::kAlpnEnroll.
  static Result<std::shared_ptr<TlsContext>> server(const Credentials& credentials, const TicketKeys& tickets);
  // Server of exports (NBD): whoever has no certificate of our authority does not get in; no ALPN, no tickets. Whose
  // the certificate is, the caller looks at: Peer::client.
  static Result<std::shared_ptr<TlsContext>> exports(const Credentials& credentials);
  // Agent with its certificate.
  static Result<std::shared_ptr<TlsContext>> agent(const Credentials& credentials);
  // Agent that enrols: no certificate, trusts only a chain whose CA certificate has this SHA-256 (DER).
  static Result<std::shared_ptr<TlsContext>> enrolling(const std::array<std::byte, 32>& ca_sha256);

  SSL_CTX* native() const { return context_.get(); }
  bool is_server() const { return server_; }
  const char* alpn() const { return alpn_; }  // what a client offers

  // The newest session ticket that the server gave an agent, to resume with; null when there is none.
  SSL_SESSION* session() const { return session_.get(); }

 private:
  struct Free {
    void operator()(SSL_CTX* context) const;
    void operator()(SSL_SESSION* session) const;
  };
  struct Callbacks;  // what OpenSSL calls back
  static Result<std::shared_ptr<TlsContext>> make(bool server, const char* alpn);
  Status set_credentials(const Credentials& credentials);

  std::unique_ptr<SSL_CTX, Free> context_;
  std::unique_ptr<SSL_SESSION, Free> session_;
  bool server_ = false;
  const char* alpn_ = nullptr;
  std::string ca_pem_;                     // of a server: shown to those who enrol
  std::array<std::byte, 32> pinned_ca_{};  // of an enrolling agent
};

}  // namespace tidemark::net
