// What went wrong in TLS, in words a person understands. Only for the sources of net/.
#pragma once

#include <string>

#include "base/status.h"
#include "net/openssl.h"

namespace tidemark::net {

// Why an operation on `ssl` failed just now: our own verdict on the peer's certificate, an alert the peer sent, or a
// breach of the protocol. `peer` becomes the error's object. Empties the thread's queue of OpenSSL errors.
Error tls_error(const SSL* ssl, const std::string& peer);

Error not_tls(const std::string& peer);
Error certificate_expired(const std::string& peer, bool is_server, std::int64_t not_after_us);

// A socket's error: refused, reset, timed out, unreachable. `doing`: "receive", "connect".
Error network_error(int error_number, const std::string& peer, const std::string& doing);

}  // namespace tidemark::net
