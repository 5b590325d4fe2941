#include "net/tls_context.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <string_view>

#include "base/crypto.h"
#include "base/random.h"
#include "net/lean_provider.h"
#include "net/openssl.h"
#include "wire/frame.h"

namespace tidemark::net {
namespace {

constexpr long kCertificateListMax = 16 << 10;  // bytes of certificates that a peer may show
constexpr long kSessionSeconds = 6 * 3600;      // a ticket is good for this long

// "\x0btidemark/1": the length in a byte, then the name.
std::string alpn_wire(std::string_view name) {
  return std::string(1, static_cast<char>(name.size())) + std::string(name);
}

int application_index() {
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

std::unexpected<Error> context_failed(std::string_view doing) {
  return fail(Code::internal, "TLS", "cannot " + std::string(doing) + ": " + take_openssl_reason());
}

}  // namespace

struct TlsContext::Callbacks {
  static TlsContext& of(SSL_CTX* context) {
    return *static_cast<TlsContext*>(SSL_CTX_get_ex_data(context, application_index()));
  }

  // OpenSSL does not ask choose_alpn when a client offers nothing at all.
  static int require_alpn(SSL* ssl, int* alert, void*) {
    const unsigned char* offered = nullptr;
    std::size_t size = 0;
    if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &offered, &size) == 1) {
      return SSL_CLIENT_HELLO_SUCCESS;
    }
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    return SSL_CLIENT_HELLO_ERROR;
  }

  static int choose_alpn(SSL* ssl, const unsigned char** chosen, unsigned char* chosen_size,
                         const unsigned char* offered, unsigned int offered_size, void*) {
    for (const std::string_view ours : {std::string_view(wire::kAlpnMachine), std::string_view(wire::kAlpnEnroll)}) {
      for (unsigned int at = 0; at < offered_size; at += 1u + offered[at]) {
        const std::string_view theirs(reinterpret_cast<const char*>(offered + at + 1), offered[at]);
        if (theirs != ours) continue;
        if (ours == wire::kAlpnEnroll && !show_authority(ssl)) return SSL_TLSEXT_ERR_ALERT_FATAL;
        *chosen = reinterpret_cast<const unsigned char*>(ours.data());
        *chosen_size = offered[at];
        return SSL_TLSEXT_ERR_OK;
      }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }

  // Who enrols knows the authority by its fingerprint only, so it needs to see the certificate. Everybody else has it.
  static bool show_authority(SSL* ssl) {
    const auto authority = read_certificate(of(SSL_get_SSL_CTX(ssl)).ca_pem_, "the authority's certificate");
    return authority && SSL_add1_chain_cert(ssl, authority->get()) == 1;
  }

  // Trust begins at the certificate with the pinned fingerprint, if the server shows it; all other checks stay.
  static int verify_pinned(X509_STORE_CTX* verification, void* argument) {
    const auto& self = *static_cast<const TlsContext*>(argument);
    STACK_OF(X509)* shown = X509_STORE_CTX_get0_untrusted(verification);
    STACK_OF(X509)* trusted = sk_X509_new_null();
    for (int i = 0; i < sk_X509_num(shown); ++i) {
      X509* certificate = sk_X509_value(shown, i);
      if (equal_secrets(describe(*certificate).sha256, self.pinned_ca_)) sk_X509_push(trusted, certificate);
    }
    int verified = 0;
    if (sk_X509_num(trusted) == 0) {
      X509_STORE_CTX_set_error(verification, kNotThePinnedAuthority);
    } else {
      X509_STORE_CTX_set0_trusted_stack(verification, trusted);
      verified = X509_verify_cert(verification);
    }
    sk_X509_free(trusted);
    return verified;
  }

  // A ticket is used for one connection at most (OpenSSL makes its session unusable then); each brings a new one.
  static int keep_session(SSL* ssl, SSL_SESSION* session) {
    of(SSL_get_SSL_CTX(ssl)).session_.reset(session);
    return 1;  // the reference is ours now
  }
};

TicketKeys TicketKeys::make() {
  TicketKeys keys;
  secure_random(keys.bytes);
  return keys;
}

void TlsContext::Free::operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
void TlsContext::Free::operator()(SSL_SESSION* session) const { SSL_SESSION_free(session); }

Result<std::shared_ptr<TlsContext>> TlsContext::make(bool server, const char* alpn) {
  auto self = std::make_shared<TlsContext>();
  self->server_ = server;
  self->alpn_ = alpn;
  self->context_.reset(SSL_CTX_new_ex(lean_library(), nullptr, server ? TLS_server_method() : TLS_client_method()));
  SSL_CTX* context = self->context_.get();
  if (context == nullptr || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384") != 1 ||
      SSL_CTX_set1_groups_list(context, "X25519:P-256") != 1 ||
      SSL_CTX_set1_sigalgs_list(context, "ECDSA+SHA256") != 1 || SSL_CTX_set_max_early_data(context, 0) != 1 ||
      SSL_CTX_set_ex_data(context, application_index(), self.get()) != 1) {
    return context_failed("make a context");
  }
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_max_cert_list(context, kCertificateListMax);
  SSL_CTX_set_timeout(context, kSessionSeconds);
  return self;
}

Status TlsContext::set_credentials(const Credentials& credentials) {
  const X509Ptr authority =
      TIDEMARK_TRY(read_certificate(credentials.ca_pem, "the authority's certificate", lean_library()));
  const X509Ptr own =
      TIDEMARK_TRY(read_certificate(credentials.certificate_pem, "the own certificate", lean_library()));
  const KeyPtr key = TIDEMARK_TRY(read_key(credentials.key_pem, "the own key", lean_library()));
  SSL_CTX* context = context_.get();
  if (X509_check_private_key(own.get(), key.get()) != 1) {
    ERR_clear_error();
    return fail(Code::invalid_argument, "the own key", "does not belong to the own certificate",
                "restore both together");
  }
  if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1 ||
      SSL_CTX_use_certificate(context, own.get()) != 1 || SSL_CTX_use_PrivateKey(context, key.get()) != 1) {
    return context_failed("use the own certificate");
  }
  // Without this every handshake builds a chain for the own certificate anew.
  SSL_CTX_set_mode(context, SSL_MODE_NO_AUTO_CHAIN);
  return {};
}

Result<std::shared_ptr<TlsContext>> TlsContext::server(const Credentials& credentials, const TicketKeys& tickets) {
  auto self = TIDEMARK_TRY(make(true, nullptr));
  TIDEMARK_TRY(self->set_credentials(credentials));
  self->ca_pem_ = credentials.ca_pem;
  SSL_CTX* context = self->context_.get();
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_client_hello_cb(context, Callbacks::require_alpn, nullptr);
  SSL_CTX_set_alpn_select_cb(context, Callbacks::choose_alpn, nullptr);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);  // tickets hold everything
  // A ticket that was made under another authority is not taken, whatever its key.
  const Sha256 scope = sha256(credentials.ca_pem);
  auto keys = tickets.bytes;
  if (SSL_CTX_set_session_id_context(context, reinterpret_cast<const unsigned char*>(scope.data()), scope.size()) !=
          1 ||
      SSL_CTX_set_tlsext_ticket_keys(context, keys.data(), keys.size()) != 1 ||
      SSL_CTX_set_num_tickets(context, 1) != 1) {
    return context_failed("set up session tickets");
  }
  OPENSSL_cleanse(keys.data(), keys.size());
  return self;
}

Result<std::shared_ptr<TlsContext>> TlsContext::exports(const Credentials& credentials) {
  auto self = TIDEMARK_TRY(make(true, nullptr));
  TIDEMARK_TRY(self->set_credentials(credentials));
  SSL_CTX* context = self->context_.get();
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  if (SSL_CTX_set_num_tickets(context, 0) != 1) return context_failed("do without session tickets");
  return self;
}

namespace {

// The server must show a certificate that a server alone has.
Status check_server_name(SSL_CTX* context) {
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  X509_VERIFY_PARAM* parameters = SSL_CTX_get0_param(context);
  X509_VERIFY_PARAM_set_hostflags(parameters, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_WILDCARDS);
  if (X509_VERIFY_PARAM_set1_host(parameters, static_cast<const char*>(kServerName), 0) != 1) {
    return context_failed("set up the check of the server's name");
  }
  return {};
}

Status offer_alpn(SSL_CTX* context, const char* name) {
  const std::string offer = alpn_wire(name);
  const auto* bytes = reinterpret_cast<const unsigned char*>(offer.data());
  if (SSL_CTX_set_alpn_protos(context, bytes, static_cast<unsigned int>(offer.size())) != 0) {
    return context_failed("set up ALPN");
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::agent(const Credentials& credentials) {
  auto self = TIDEMARK_TRY(make(false, static_cast<const char*>(wire::kAlpnMachine)));
  TIDEMARK_TRY(self->set_credentials(credentials));
  TIDEMARK_TRY(check_server_name(self->context_.get()));
  TIDEMARK_TRY(offer_alpn(self->context_.get(), self->alpn_));
  SSL_CTX_set_session_cache_mode(self->context_.get(), SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(self->context_.get(), Callbacks::keep_session);
  return self;
}

Result<std::shared_ptr<TlsContext>> TlsContext::enrolling(const std::array<std::byte, 32>& ca_sha256) {
  auto self = TIDEMARK_TRY(make(false, static_cast<const char*>(wire::kAlpnEnroll)));
  self->pinned_ca_ = ca_sha256;
  TIDEMARK_TRY(check_server_name(self->context_.get()));
  TIDEMARK_TRY(offer_alpn(self->context_.get(), self->alpn_));
  SSL_CTX_set_cert_verify_callback(self->context_.get(), Callbacks::verify_pinned, self.get());
  SSL_CTX_set_session_cache_mode(self->context_.get(), SSL_SESS_CACHE_OFF);
  return self;
}

}  // namespace tidemark::net
