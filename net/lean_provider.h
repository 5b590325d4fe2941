// OpenSSL 3.0 reads the public key of every certificate through its decoders, and each time it builds the list of those
// that might fit from all that the provider has (some seventy, and thirty kinds of keys). That was 40 % of the CPU of a
// handshake with a client certificate. Here is a library context of OpenSSL whose provider is OpenSSL's own default
// one, less what TLS 1.3 with P-256 certificates has no use for. Only for the sources of net/.
#pragma once

typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;

namespace tidemark::net {

// Made once and kept for the life of the process. Null, which means OpenSSL's default context, when it cannot be made:
// everything works then, only slower. Thread-safe.
OSSL_LIB_CTX* lean_library();

// Makes it what this thread uses where OpenSSL lets no context be named: the certificate within a session ticket is
// read that way, twice in a full handshake's life.
class LeanScope {
 public:
  LeanScope();
  ~LeanScope();
  LeanScope(const LeanScope&) = delete;
  LeanScope& operator=(const LeanScope&) = delete;

 private:
  OSSL_LIB_CTX* before_;
};

}  // namespace tidemark::net
