#include "net/tls_error.h"

#include <openssl/sslerr.h>

#include <cerrno>
#include <system_error>

#include "base/clock.h"

namespace tidemark::net {
namespace {

constexpr char kClocks[] = "compare the clocks of both machines";
constexpr char kEnrolAgain[] = "enrol the machine again with a token from `tidemark token create --machine NAME`";
constexpr char kRightServer[] = "check the address, or enrol with a token of this server";

// Our own verdict on the certificate the peer showed.
Error verdict(const SSL* ssl, long result, const std::string& peer) {
  const bool is_server = SSL_is_server(ssl) == 1;
  const std::string remedy = is_server ? kEnrolAgain : kRightServer;
  const auto refuse = [&](std::string what, std::string what_to_do) {
    return Error{Code::unauthenticated, peer, std::move(what), std::move(what_to_do)};
  };
  switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return refuse("its certificate has expired", is_server ? kEnrolAgain : "renew the server's certificate");
    case X509_V_ERR_CERT_NOT_YET_VALID: return refuse("its certificate is not valid yet", kClocks);
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT: return refuse("its certificate is self-signed", remedy);
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_CERT_UNTRUSTED: return refuse("its certificate was issued by an unknown authority", remedy);
    case kNotThePinnedAuthority:
      return refuse("it is not the server the token was made for: its authority has another fingerprint",
                    "check the address and use a token made by this server");
    case X509_V_ERR_INVALID_PURPOSE:
    case X509_V_ERR_INVALID_CA:
      return refuse(is_server ? "its certificate is not one of a machine" : "its certificate is not one of a server",
                    remedy);
    case X509_V_ERR_HOSTNAME_MISMATCH: return refuse("its certificate is not one of a Tidemark server", remedy);
    default: return refuse(std::string("its certificate is refused: ") + X509_verify_cert_error_string(result), remedy);
  }
}

// An alert the peer sent: its verdict on us.
Error told(const SSL* ssl, int alert, const std::string& peer) {
  const bool is_server = SSL_is_server(ssl) == 1;
  const auto refused = [&](std::string what, std::string remedy) {
    return Error{Code::unauthenticated, peer, std::move(what), std::move(remedy)};
  };
  const std::string ours = is_server ? "restart the agent with the right authority, or enrol it again" : kEnrolAgain;
  switch (alert) {
    case SSL_AD_UNKNOWN_CA: return refused("refuses our certificate: issued by an authority it does not know", ours);
    case SSL_AD_CERTIFICATE_EXPIRED:
      return refused("refuses our certificate: it has expired",
                     is_server ? "renew the server's certificate" : kEnrolAgain);
    case SSL_AD_CERTIFICATE_REVOKED: return refused("refuses our certificate: it was revoked", ours);
    case SSL_AD_BAD_CERTIFICATE: return refused("refuses our certificate: not valid, or not valid yet", kClocks);
    case SSL_AD_UNSUPPORTED_CERTIFICATE: return refused("refuses our certificate: made for another purpose", ours);
    case SSL_AD_CERTIFICATE_UNKNOWN: return refused("refuses our certificate", ours);
    case SSL_AD_CERTIFICATE_REQUIRED: return refused("demands a certificate, and we have shown none", ours);
    case SSL_AD_DECRYPT_ERROR: return refused("refuses our certificate: our key does not fit it", ours);
    case SSL_AD_ACCESS_DENIED: return refused("refuses access", ours);
    case SSL_AD_NO_APPLICATION_PROTOCOL:
      return {Code::unsupported, peer, "does not speak our protocol over TLS (no common ALPN name)",
              "check the address, and that both ends are of versions that fit"};
    case SSL_AD_PROTOCOL_VERSION:
      return {Code::unsupported, peer, "does not speak TLS 1.3", "check the address; something on the way may end TLS"};
    case SSL_AD_HANDSHAKE_FAILURE:
      return {Code::unsupported, peer, "found no common TLS parameters (we need TLS 1.3, AES-256-GCM, P-256)",
              "check the address; something on the way may end TLS"};
    default:
      return {Code::protocol, peer, std::string("ended TLS with the alert: ") + SSL_alert_desc_string_long(alert), {}};
  }
}

}  // namespace

Error not_tls(const std::string& peer) {
  return {Code::protocol, peer, "the other end does not speak TLS", "check the address and the port"};
}

Error certificate_expired(const std::string& peer, bool is_server, std::int64_t not_after_us) {
  return {Code::unauthenticated, peer, "its certificate has expired at " + format_rfc3339(not_after_us),
          is_server ? kEnrolAgain : "renew the server's certificate"};
}

Error tls_error(const SSL* ssl, const std::string& peer) {
  const unsigned long error = ERR_peek_error();  // the oldest is the cause
  const int reason = ERR_GET_LIB(error) == ERR_LIB_SSL ? ERR_GET_REASON(error) : 0;
  const char* const text = error == 0 ? nullptr : ERR_reason_error_string(error);
  ERR_clear_error();
  if (reason >= SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256) {
    return told(ssl, reason - SSL_AD_REASON_OFFSET, peer);
  }
  const long result = SSL_get_verify_result(ssl);
  switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED: return verdict(ssl, result, peer);
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST: return not_tls(peer);
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
      return {Code::unsupported, peer, "does not speak TLS 1.3", "check the address and the versions of both ends"};
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_NO_SUITABLE_KEY_SHARE:
    case SSL_R_NO_SUITABLE_GROUPS:
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS:
      return {
          Code::unsupported, peer, "has no TLS parameters in common with us (we need TLS 1.3, AES-256-GCM, P-256)", {}};
    case SSL_R_NO_APPLICATION_PROTOCOL:
    case SSL_R_CALLBACK_FAILED:  // the check of the first message found no ALPN in it
      return {Code::unsupported, peer, "offered no application protocol that we speak (ALPN)",
              "connect with tidemark-agent, of a version that fits"};
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
      return {Code::protocol, peer, "sent a TLS record that was altered on its way or is not its own", {}};
    default:
      return {Code::protocol,
              peer,
              std::string("broke the TLS protocol: ") + (text == nullptr ? "no reason known" : text),
              {}};
  }
}

Error network_error(int error_number, const std::string& peer, const std::string& doing) {
  const std::string reason = std::error_code(error_number, std::generic_category()).message();
  switch (error_number) {
    case ECONNREFUSED:
      return {Code::unavailable, peer, "refused the connection: nothing listens there",
              "check that tidemarkd runs, and the port"};
    case ECONNRESET:
    case EPIPE: return {Code::unavailable, peer, "cut the connection", {}};
    case ETIMEDOUT: return {Code::timed_out, peer, "does not answer any more", "check the network between the two"};
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
      return {Code::unavailable, peer, "cannot be reached: " + reason, "check the network, routes and firewalls"};
    case EACCES:
    case EPERM: return {Code::unavailable, peer, "cannot be reached: " + reason, "a local firewall forbids it"};
    default: return {Code::unavailable, peer, "cannot " + doing + ": " + reason, {}};
  }
}

}  // namespace tidemark::net
